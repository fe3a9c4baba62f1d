#include "frontend/cell.h"

#include <stdlib.h>
#include <string.h>

#include "frontend/router_choice.h"
#include "frontend/seq_table.h"

typedef struct member {
    router_limits limits;
    scheduler *scheduler; /* NULL: was never there */
} member;

struct cell {
    cell_config config;
    seq_table *seqs; /* NULL until the first router is there */
    seq_list queue;
    uint64_t placed, placed_by_prefix, recalled;
    router_limits first; /* of the first router that was there */
    member routers[CELL_ROUTERS_MAX];
};

/* ---------------------------------------------------------------- create, routers */

moe_err
cell_create(cell **out, const cell_config *config, errbuf *eb)
{
    *out = NULL;
    if (config->router_count == 0 || config->router_count > CELL_ROUTERS_MAX)
        return err_set(eb, MOE_ERANGE, "a cell has 1 to %d routers, not %u", CELL_ROUTERS_MAX,
                       config->router_count);
    if (config->eos_count > sizeof config->eos_ids / sizeof config->eos_ids[0])
        return err_set(eb, MOE_ERANGE, "%u end-of-sequence tokens, at most 8", config->eos_count);
    cell *c = calloc(1, sizeof *c);
    if (c == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    c->config = *config;
    *out = c;
    return MOE_OK;
}

void
cell_free(cell *c)
{
    if (c == NULL) return;
    for (uint32_t r = 0; r < c->config.router_count; r++) {
        scheduler_free(c->routers[r].scheduler);
    }
    seq_table_free(c->seqs);
    free(c);
}

static moe_err
other_limits(const router_limits *h, const router_limits *c, const char *whose, errbuf *eb)
{
    return err_set(eb, MOE_EMISMATCH,
                   "the router has other limits than %s: %u sequences, %u tokens a step, %u tokens "
                   "of context, %u KV blocks of %u; not %u, %u, %u, %u of %u",
                   whose, h->max_num_seqs, h->max_num_batched_tokens, h->max_model_len,
                   h->kv_block_count, h->kv_block_tokens, c->max_num_seqs,
                   c->max_num_batched_tokens, c->max_model_len, c->kv_block_count,
                   c->kv_block_tokens);
}

static scheduler_config
config_of(const cell *c, const router_limits *l)
{
    /* Preempted sequences wait too: room for them, so that what was admitted is never refused. */
    scheduler_config config = {.max_num_seqs = l->max_num_seqs,
                               .max_num_batched_tokens = l->max_num_batched_tokens,
                               .max_model_len = l->max_model_len,
                               .max_waiting = c->config.max_waiting + l->max_num_seqs,
                               .kv_block_count = l->kv_block_count,
                               .kv_block_tokens = l->kv_block_tokens,
                               .prefix_caching = c->config.prefix_caching,
                               .eos_count = c->config.eos_count};
    memcpy(config.eos_ids, c->config.eos_ids, sizeof config.eos_ids);
    return config;
}

/* Sequences that run, or ended and wait for their last step in flight, have slots; as many more may
 * wait beyond max_waiting, since those that run may all be preempted. */
static uint32_t
table_capacity(const cell *c, uint32_t max_num_seqs)
{
    return c->config.max_waiting + 2 * c->config.router_count * (max_num_seqs + 1);
}

moe_err
cell_set_router(cell *c, uint32_t id, const router_limits *limits, errbuf *eb)
{
    member *r = &c->routers[id];
    if (r->scheduler != NULL) {
        if (memcmp(limits, &r->limits, sizeof *limits) == 0) return MOE_OK;
        return other_limits(limits, &r->limits, "when it was there before", eb);
    }
    scheduler_config config = config_of(c, limits);
    moe_err err = scheduler_check_config(&config, eb);
    if (err != MOE_OK) return err;
    if (c->seqs != NULL && (limits->max_model_len != c->first.max_model_len ||
                            limits->kv_block_tokens != c->first.kv_block_tokens ||
                            limits->max_num_seqs > c->first.max_num_seqs + 1))
        return other_limits(limits, &c->first, "the others", eb);
    seq_table *seqs = c->seqs;
    if (seqs == NULL) {
        err = seq_table_create(&seqs, table_capacity(c, limits->max_num_seqs));
        if (err != MOE_OK)
            return err_set(eb, err, "no memory for %u sequences", limits->max_num_seqs);
    }
    config.seqs = seqs;
    err = scheduler_create(&r->scheduler, &config, eb);
    if (err != MOE_OK) {
        if (c->seqs == NULL) seq_table_free(seqs);
        return err;
    }
    if (c->seqs == NULL) c->first = *limits;
    c->seqs = seqs;
    r->limits = *limits;
    return MOE_OK;
}

bool
cell_is_open(const cell *c)
{
    return c->seqs != NULL;
}

uint32_t
cell_max_model_len(const cell *c)
{
    return c->first.max_model_len;
}

uint32_t
cell_capacity(const cell *c)
{
    return c->seqs == NULL ? 0 : seq_table_capacity(c->seqs);
}

scheduler *
cell_scheduler(const cell *c, uint32_t router)
{
    return c->routers[router].scheduler;
}

/* ---------------------------------------------------------------- in and out */

void
cell_get_stats(const cell *c, cell_stats *out)
{
    *out = (cell_stats){.queued = c->queue.count,
                        .placed = c->placed,
                        .placed_by_prefix = c->placed_by_prefix,
                        .recalled = c->recalled};
    scheduler_stats *sum = &out->sum;
    sum->waiting = c->queue.count;
    for (uint32_t r = 0; r < c->config.router_count; r++) {
        if (c->routers[r].scheduler == NULL) continue;
        scheduler_stats one;
        scheduler_get_stats(c->routers[r].scheduler, &one);
        sum->running += one.running;
        sum->waiting += one.waiting;
        sum->blocks_used += one.blocks_used;
        sum->blocks_total += one.blocks_total;
        sum->preemptions += one.preemptions;
        sum->prefix_query_tokens += one.prefix_query_tokens;
        sum->prefix_hit_tokens += one.prefix_hit_tokens;
        sum->steps += one.steps;
        sum->steps_limited_by_seqs += one.steps_limited_by_seqs;
        sum->steps_limited_by_tokens += one.steps_limited_by_tokens;
        sum->steps_limited_by_blocks += one.steps_limited_by_blocks;
    }
}

/* Passes if one router can take it: it then waits for that one. */
static moe_err
check_fits_one(const cell *c, uint32_t prompt_len, const gen_params *params, uint32_t *total_max,
               errbuf *eb)
{
    moe_err err = MOE_OK;
    for (uint32_t r = 0; r < c->config.router_count; r++) {
        if (c->routers[r].scheduler == NULL) continue;
        err = scheduler_check(c->routers[r].scheduler, prompt_len, params, total_max, eb);
        if (err == MOE_OK) return MOE_OK;
    }
    return err;
}

static bool
is_full(const cell *c, uint32_t *waiting)
{
    cell_stats stats;
    cell_get_stats(c, &stats);
    uint64_t most = c->config.max_waiting;
    for (uint32_t r = 0; r < c->config.router_count; r++) {
        most += c->routers[r].limits.max_num_seqs;
    }
    *waiting = stats.sum.waiting;
    return stats.sum.waiting >= most;
}

moe_err
cell_submit(cell *c, const uint32_t *prompt, uint32_t prompt_len, const gen_params *params,
            void *user, seq_id *out, errbuf *eb)
{
    *out = 0;
    uint32_t total_max, waiting;
    if (!cell_is_open(c)) return err_set(eb, MOE_ECLOSED, "no router was there yet");
    const moe_err err = check_fits_one(c, prompt_len, params, &total_max, eb);
    if (err != MOE_OK) return err;
    if (is_full(c, &waiting))
        return err_set(eb, MOE_EBUSY, "%u sequences are waiting already", waiting);
    seq *q = seq_table_add(c->seqs, prompt, prompt_len, total_max, params, user);
    if (q == NULL) return err_set(eb, MOE_ENOMEM, "out of memory for %u tokens", total_max);
    seq_list_push_last(&c->queue, q);
    *out = q->id;
    return MOE_OK;
}

void *
cell_abort(cell *c, seq_id id)
{
    if (c->seqs == NULL) return NULL;
    seq *q = seq_table_find(c->seqs, id);
    if (q == NULL) return NULL;
    if (q->owner != NULL) return scheduler_abort(q->owner, id);
    void *user = q->user;
    seq_list_remove(&c->queue, q);
    seq_table_remove(c->seqs, q);
    return user;
}

void *
cell_abort_any(cell *c)
{
    if (c->queue.first != NULL) return cell_abort(c, c->queue.first->id);
    void *user = NULL;
    for (uint32_t r = 0; r < c->config.router_count && user == NULL; r++) {
        if (c->routers[r].scheduler != NULL) user = scheduler_abort_any(c->routers[r].scheduler);
    }
    return user;
}

/* ---------------------------------------------------------------- placing */

static router_option
option_of(const member *r, bool up, const seq *q)
{
    if (!up || r->scheduler == NULL || !scheduler_fits(r->scheduler, q->total_max))
        return (router_option){0};
    const uint32_t load = scheduler_load(r->scheduler);
    if (load >= r->limits.max_num_seqs) return (router_option){0};
    return (router_option){.room = true,
                           .blocks = scheduler_has_blocks(r->scheduler, q),
                           .cached_tokens = scheduler_cached_tokens(r->scheduler, q),
                           .load = load,
                           .capacity = r->limits.max_num_seqs};
}

void
cell_place(cell *c, const bool *up)
{
    bool lacks_blocks = false; /* the first of the queue, wherever there is room */
    const uint32_t count = c->config.router_count;
    for (seq *q; (q = c->queue.first) != NULL;) {
        router_option options[CELL_ROUTERS_MAX];
        for (uint32_t r = 0; r < count; r++) {
            options[r] = option_of(&c->routers[r], up[r], q);
        }
        const uint32_t chosen = router_choice(options, count);
        if (chosen == ROUTER_CHOICE_NONE) {
            for (uint32_t r = 0; r < count; r++)
                lacks_blocks = lacks_blocks || options[r].room;
            break;
        }
        seq_list_remove(&c->queue, q);
        scheduler_put(c->routers[chosen].scheduler, q);
        c->placed++;
        c->placed_by_prefix += options[chosen].cached_tokens > 0;
    }
    for (uint32_t r = 0; r < count; r++) {
        if (c->routers[r].scheduler != NULL)
            scheduler_set_backlog(c->routers[r].scheduler, c->queue.count > 0, lacks_blocks);
    }
}

uint32_t
cell_recall(cell *c, uint32_t id)
{
    scheduler *s = c->routers[id].scheduler;
    uint32_t count = 0;
    for (seq *q; s != NULL && (q = scheduler_take(s)) != NULL; count++) {
        seq *before = c->queue.first; /* ids rise with arrival */
        while (before != NULL && before->id < q->id)
            before = before->next;
        seq_list_insert(&c->queue, before, q);
    }
    c->recalled += count;
    return count;
}
