#include "frontend/seq_table.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* An id is serial * capacity + index + 1: never used twice, rising, and it says where to look. */
struct seq_table {
    uint32_t capacity, count;
    uint64_t serial_next;
    seq *unused; /* linked by next */
    seq *seqs;   /* [capacity] */
};

void
seq_list_insert(seq_list *list, seq *before, seq *q)
{
    q->next = before;
    q->prev = before != NULL ? before->prev : list->last;
    *(q->prev ? &q->prev->next : &list->first) = q;
    *(q->next ? &q->next->prev : &list->last) = q;
    list->count++;
}

void
seq_list_push_first(seq_list *list, seq *q)
{
    seq_list_insert(list, list->first, q);
}

void
seq_list_push_last(seq_list *list, seq *q)
{
    seq_list_insert(list, NULL, q);
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
seq_table_add(seq_table *table, const uint32_t *prompt, uint32_t prompt_len, uint32_t total_max,
              const gen_params *params, void *user)
{
    uint32_t *tokens = malloc((size_t)total_max * sizeof tokens[0]);
    if (tokens == NULL) return NULL;
    memcpy(tokens, prompt, (size_t)prompt_len * sizeof prompt[0]);
    seq *q = table->unused;
    assert(q != NULL);
    table->unused = q->next;
    table->count++;
    const uint64_t index = (uint64_t)(q - table->seqs);
    *q = (seq){.id = table->serial_next++ * table->capacity + index + 1,
               .user = user,
               .params = *params,
               .tokens = tokens,
               .prompt_len = prompt_len,
               .total = prompt_len,
               .total_max = total_max};
    return q;
}

uint32_t
seq_table_count(const seq_table *table)
{
    return table->count;
}

uint32_t
seq_table_capacity(const seq_table *table)
{
    return table->capacity;
}

seq *
seq_table_find(const seq_table *table, seq_id id)
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
    table->count--;
}
