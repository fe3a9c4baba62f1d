#include "frontend/seq_table.h"

#include <assert.h>
#include <stdlib.h>

/* An id is serial * capacity + index + 1: never used twice, rising, and it says where to look. */
struct seq_table {
    uint32_t capacity;
    uint64_t serial_next;
    seq *unused; /* linked by next */
    seq *seqs;   /* [capacity] */
};

void
seq_list_push_first(seq_list *list, seq *q)
{
    q->prev = NULL;
    q->next = list->first;
    *(q->next ? &q->next->prev : &list->last) = q;
    list->first = q;
    list->count++;
}

void
seq_list_push_last(seq_list *list, seq *q)
{
    q->next = NULL;
    q->prev = list->last;
    *(q->prev ? &q->prev->next : &list->first) = q;
    list->last = q;
    list->count++;
}

void
seq_list_remove(seq_list *list, seq *q)
{
    assert(list->count > 0);
    *(q->prev ? &q->prev->next : &list->first) = q->next;
    *(q->next ? &q->next->prev : &list->last) = q->prev;
    q->prev = q->next = NULL;
    list->count--;
}

moe_err
seq_table_create(seq_table **out, uint32_t capacity)
{
    *out = NULL;
    seq_table *table = calloc(1, sizeof *table);
    if (table == NULL) return MOE_ENOMEM;
    table->capacity = capacity;
    table->seqs = calloc(capacity, sizeof table->seqs[0]);
    if (table->seqs == NULL) {
        seq_table_free(table);
        return MOE_ENOMEM;
    }
    for (uint32_t i = capacity; i-- > 0;) {
        table->seqs[i].next = table->unused;
        table->unused = &table->seqs[i];
    }
    *out = table;
    return MOE_OK;
}

void
seq_table_free(seq_table *table)
{
    if (table == NULL) return;
    for (uint32_t i = 0; table->seqs != NULL && i < table->capacity; i++)
        free(table->seqs[i].tokens);
    free(table->seqs);
    free(table);
}

seq *
seq_table_add(seq_table *table, uint32_t total_max)
{
    uint32_t *tokens = malloc((size_t)total_max * sizeof tokens[0]);
    if (tokens == NULL) return NULL;
    seq *q = table->unused;
    assert(q != NULL);
    table->unused = q->next;
    const uint64_t index = (uint64_t)(q - table->seqs);
    *q = (seq){.id = table->serial_next++ * table->capacity + index + 1,
               .tokens = tokens,
               .total_max = total_max};
    return q;
}

seq *
seq_table_find(seq_table *table, seq_id id)
{
    if (id == 0) return NULL;
    seq *q = &table->seqs[(id - 1) % table->capacity];
    return q->id == id ? q : NULL;
}

void
seq_table_remove(seq_table *table, seq *q)
{
    free(q->tokens);
    *q = (seq){.next = table->unused};
    table->unused = q;
}
