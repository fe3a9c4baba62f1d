/* seq_table: sequences, found by id in constant time, and lists of them.
 *
 * Internal to the scheduler and to the cell, whose schedulers share one table.  The table is sized
 * at create; only a sequence's token array is allocated when it is added.
 *
 * Threads: one owner, the scheduler's.
 */
#ifndef MOE_FRONTEND_SEQ_TABLE_H
#define MOE_FRONTEND_SEQ_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "frontend/scheduler.h"

typedef struct seq {
    seq_id id; /* rises with arrival; 0 = this entry is unused */
    void *user;
    scheduler *owner;  /* who has it in one of its lists; NULL: nobody yet, or nobody now */
    gen_params params; /* a copy: the caller's may go with the last event, before commit */
    uint32_t *tokens;  /* [total_max], owned */
    uint32_t prompt_len;
    uint32_t total;     /* tokens known: prompt and output so far */
    uint32_t total_max; /* with the last token that can be sampled */

    /* Only while it runs. */
    bool running;
    bool sent;          /* the router knows it: it is or was part of a step */
    uint32_t slot;      /* of the router */
    uint32_t computed;  /* tokens whose keys and values are in its blocks, those of steps in flight
                           included */
    uint32_t confirmed; /* of them: by committed steps */
    uint32_t sampling;  /* steps in flight that sample a token for it */
    uint32_t *table;    /* [block_count] its blocks; memory of the slot */
    uint32_t block_count;
    uint32_t block_sent;       /* entries the router knows */
    uint32_t block_registered; /* entries that were offered to the prefix cache, or came from it */
    uint32_t planned;          /* tokens in the step being planned */
    uint32_t in_flight;        /* steps in flight it is part of */
    bool gone;                 /* finished or aborted: kept until its last step in flight ends */

    struct seq *prev, *next; /* in one list */
} seq;

typedef struct seq_list {
    seq *first, *last;
    uint32_t count;
} seq_list;

void seq_list_push_first(seq_list *list, seq *q);
void seq_list_push_last(seq_list *list, seq *q);
/* Ahead of `before`, which is in the list; NULL: last. */
void seq_list_insert(seq_list *list, seq *before, seq *q);
void seq_list_remove(seq_list *list, seq *q);

typedef struct seq_table seq_table;

/* capacity >= 1.  MOE_ENOMEM. */
moe_err seq_table_create(seq_table **out, uint32_t capacity);
void seq_table_free(seq_table *table); /* accepts NULL; frees sequences still in it too */

/* Take an entry, with a copy of the prompt in a token array of total_max >= prompt_len, and the
 * params.  NULL if out of memory.  At most capacity sequences may be in the table. */
seq *seq_table_add(seq_table *table, const uint32_t *prompt, uint32_t prompt_len,
                   uint32_t total_max, const gen_params *params, void *user);
uint32_t seq_table_count(const seq_table *table);
uint32_t seq_table_capacity(const seq_table *table);
/* NULL if unknown or removed. */
seq *seq_table_find(const seq_table *table, seq_id id);
/* Take it out of its list first. */
void seq_table_remove(seq_table *table, seq *q);

#endif
