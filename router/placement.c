#include "router/placement.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SHARE_SUM_TOLERANCE 1e-4

static moe_err
sum_slots(uint32_t worker_count, const uint32_t *slot_counts, uint32_t *sum, errbuf *eb)
{
    uint64_t total = 0;
    for (uint32_t w = 0; w < worker_count; w++)
        total += slot_counts[w];
    if (total > PLACEMENT_SLOT_MAX)
        return err_set(eb, MOE_ERANGE, "placement: more than %u slots", PLACEMENT_SLOT_MAX);
    *sum = (uint32_t)total;
    return MOE_OK;
}

moe_err
placement_create(placement **out, uint32_t num_layers, uint32_t num_experts, uint32_t worker_count,
                 const uint32_t *slot_counts, errbuf *eb)
{
    *out = NULL;
    if (num_layers == 0 || num_layers > PLACEMENT_LAYER_MAX || num_experts == 0 ||
        num_experts > PLACEMENT_EXPERT_MAX || worker_count == 0 ||
        worker_count > PLACEMENT_WORKER_MAX)
        return err_set(eb, MOE_ERANGE, "placement: %u layers, %u experts, %u workers", num_layers,
                       num_experts, worker_count);
    uint32_t slots = 0;
    moe_err err = sum_slots(worker_count, slot_counts, &slots, eb);
    if (err) return err;

    const size_t all_slots = (size_t)num_layers * slots;
    const size_t firsts = (size_t)num_layers * (num_experts + 1);
    placement *p = calloc(1, sizeof *p + (2 * worker_count + 1 + 3 * all_slots + firsts) * 4);
    if (p == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    p->num_layers = num_layers;
    p->num_experts = num_experts;
    p->worker_count = worker_count;
    p->slot_count = slots;
    p->slot_first = (uint32_t *)(p + 1);
    p->slots = p->slot_first + worker_count + 1;
    p->shares = (float *)(p->slots + all_slots);
    p->hosts = (uint32_t *)(p->shares + all_slots);
    p->host_first = p->hosts + all_slots;
    p->speeds = p->host_first + firsts;
    for (uint32_t w = 0; w < worker_count; w++) {
        p->slot_first[w + 1] = p->slot_first[w] + slot_counts[w];
        p->speeds[w] = PLACEMENT_SPEED_ONE;
    }
    memset(p->slots, 0xff, all_slots * sizeof *p->slots);
    *out = p;
    return MOE_OK;
}

void
placement_free(placement *p)
{
    free(p);
}

moe_err
placement_clone(placement **out, const placement *p, errbuf *eb)
{
    *out = NULL;
    const size_t words = 2 * p->worker_count + 1 + 3 * (size_t)p->num_layers * p->slot_count +
                         (size_t)p->num_layers * (p->num_experts + 1);
    placement *c = malloc(sizeof *c + words * 4);
    if (c == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    *c = *p;
    c->slot_first = (uint32_t *)(c + 1);
    memcpy(c->slot_first, p->slot_first, words * 4);
    c->slots = c->slot_first + (p->slots - p->slot_first);
    c->shares = (float *)(c->slots + ((uint32_t *)p->shares - p->slots));
    c->hosts = c->slot_first + (p->hosts - p->slot_first);
    c->host_first = c->slot_first + (p->host_first - p->slot_first);
    c->speeds = c->slot_first + (p->speeds - p->slot_first);
    *out = c;
    return MOE_OK;
}

void
placement_set_speeds(placement *p, const double *speeds)
{
    for (uint32_t w = 0; w < p->worker_count; w++) {
        const double scaled = speeds[w] * PLACEMENT_SPEED_ONE;
        p->speeds[w] = scaled < 1                     ? 1
                       : scaled > PLACEMENT_SPEED_MAX ? PLACEMENT_SPEED_MAX
                                                      : (uint32_t)lround(scaled);
    }
}

/* First expert of worker w's run: with equal slots the runs are those of e * W / E. */
static uint32_t
run_begin(const placement *p, uint32_t w)
{
    const uint64_t scaled = (uint64_t)p->num_experts * p->slot_first[w];
    return (uint32_t)((scaled + p->slot_count - 1) / p->slot_count);
}

moe_err
placement_set_linear(placement *p, errbuf *eb)
{
    if (p->slot_count < p->num_experts)
        return err_set(eb, MOE_ERANGE, "%u slots can't hold %u experts", p->slot_count,
                       p->num_experts);
    for (uint32_t l = 0; l < p->num_layers; l++) {
        uint32_t *slots = p->slots + (size_t)l * p->slot_count;
        memset(slots, 0xff, p->slot_count * sizeof *slots);
        for (uint32_t w = 0; w < p->worker_count; w++) {
            const uint32_t begin = run_begin(p, w), end = run_begin(p, w + 1);
            for (uint32_t e = begin; e < end; e++)
                slots[p->slot_first[w] + e - begin] = e;
        }
    }
    placement_index(p);
    placement_set_even_shares(p);
    return MOE_OK;
}

static uint32_t count_in(const uint32_t *slots, uint32_t n, uint32_t expert);

/* An expert of worker `from` that worker w does not have yet: of those in the fewest slots, so that
 * all get replicas before one gets a second, the one in the lowest slot.  PLACEMENT_EMPTY if there
 * is none. */
static uint32_t
expert_to_take(const placement *p, uint32_t layer, uint32_t w, uint32_t from)
{
    const uint32_t *slots = placement_layer_slots(p, layer);
    uint32_t best = PLACEMENT_EMPTY, fewest = UINT32_MAX;
    for (uint32_t s = p->slot_first[from]; s < p->slot_first[from + 1]; s++) {
        if (slots[s] == PLACEMENT_EMPTY || placement_is_host(p, layer, slots[s], w)) continue;
        const uint32_t copies = count_in(slots, p->slot_count, slots[s]);
        if (copies >= fewest) continue;
        fewest = copies;
        best = slots[s];
    }
    return best;
}

static void
fill_worker(placement *p, uint32_t layer, uint32_t w)
{
    uint32_t *slots = p->slots + (size_t)layer * p->slot_count;
    uint32_t from = w, fruitless = 0;
    for (uint32_t s = p->slot_first[w]; s < p->slot_first[w + 1] && fruitless < p->worker_count;) {
        if (slots[s] != PLACEMENT_EMPTY) {
            s++;
            continue;
        }
        from = from + 1 == p->worker_count ? 0 : from + 1;
        slots[s] = expert_to_take(p, layer, w, from);
        fruitless = slots[s] == PLACEMENT_EMPTY ? fruitless + 1 : 0;
    }
}

void
placement_fill_spare(placement *p)
{
    for (uint32_t l = 0; l < p->num_layers; l++) {
        for (uint32_t w = 0; w < p->worker_count; w++)
            fill_worker(p, l, w);
    }
    placement_index(p);
    placement_set_even_shares(p);
}

/* A counting sort of the slots by expert, then duplicates (which lie side by side) are squeezed
 * out. */
void
placement_index_layer(placement *p, uint32_t layer)
{
    const uint32_t *slots = placement_layer_slots(p, layer);
    uint32_t *first = p->host_first + (size_t)layer * (p->num_experts + 1);
    uint32_t *hosts = p->hosts + (size_t)layer * p->slot_count;
    memset(first, 0, (p->num_experts + 1) * sizeof *first);
    for (uint32_t s = 0; s < p->slot_count; s++) {
        if (slots[s] != PLACEMENT_EMPTY) first[slots[s]]++;
    }
    uint32_t sum = 0;
    for (uint32_t e = 0; e <= p->num_experts; e++) {
        const uint32_t n = first[e];
        first[e] = sum;
        sum += n;
    }
    /* first[e] moves to the end of its list while it is filled. */
    for (uint32_t w = 0; w < p->worker_count; w++) {
        for (uint32_t s = p->slot_first[w]; s < p->slot_first[w + 1]; s++) {
            if (slots[s] != PLACEMENT_EMPTY) hosts[first[slots[s]]++] = w;
        }
    }
    uint32_t begin = 0, kept = 0;
    for (uint32_t e = 0; e < p->num_experts; e++) {
        const uint32_t end = first[e];
        first[e] = kept;
        for (uint32_t i = begin; i < end; i++) {
            if (i == begin || hosts[i] != hosts[i - 1]) hosts[kept++] = hosts[i];
        }
        begin = end;
    }
    first[p->num_experts] = kept;
}

void
placement_index(placement *p)
{
    for (uint32_t l = 0; l < p->num_layers; l++)
        placement_index_layer(p, l);
}

static uint32_t
count_in(const uint32_t *slots, uint32_t n, uint32_t expert)
{
    uint32_t count = 0;
    for (uint32_t s = 0; s < n; s++)
        count += slots[s] == expert;
    return count;
}

void
placement_set_even_shares(placement *p)
{
    for (uint32_t l = 0; l < p->num_layers; l++) {
        const uint32_t *slots = placement_layer_slots(p, l);
        float *shares = p->shares + (size_t)l * p->slot_count;
        for (uint32_t s = 0; s < p->slot_count; s++)
            shares[s] = slots[s] == PLACEMENT_EMPTY
                            ? 0
                            : 1.0f / (float)count_in(slots, p->slot_count, slots[s]);
    }
}

bool
placement_is_host(const placement *p, uint32_t layer, uint32_t expert, uint32_t worker)
{
    if (worker >= p->worker_count) return false;
    const uint32_t first = p->slot_first[worker], end = p->slot_first[worker + 1];
    return count_in(placement_layer_slots(p, layer) + first, end - first, expert) != 0;
}

static moe_err
check_slots(const placement *p, uint32_t layer, bool unique, errbuf *eb)
{
    const uint32_t *slots = placement_layer_slots(p, layer);
    for (uint32_t w = 0; w < p->worker_count; w++) {
        for (uint32_t s = p->slot_first[w]; s < p->slot_first[w + 1]; s++) {
            const uint32_t e = slots[s];
            if (e == PLACEMENT_EMPTY) continue;
            if (e >= p->num_experts)
                return err_set(eb, MOE_EINVAL, "layer %u worker %u: there is no expert %u", layer,
                               w, e);
            if (unique && count_in(slots + p->slot_first[w], s - p->slot_first[w], e) != 0)
                return err_set(eb, MOE_EINVAL, "layer %u: worker %u has expert %u twice", layer, w,
                               e);
        }
    }
    return MOE_OK;
}

static moe_err
check_expert(const placement *p, uint32_t layer, uint32_t expert, errbuf *eb)
{
    const uint32_t *slots = placement_layer_slots(p, layer);
    const float *shares = p->shares + (size_t)layer * p->slot_count;
    double sum = 0;
    uint32_t count = 0;
    for (uint32_t s = 0; s < p->slot_count; s++) {
        if (slots[s] != expert) continue;
        if (!(shares[s] >= 0))
            return err_set(eb, MOE_EINVAL, "layer %u expert %u: a share is negative", layer,
                           expert);
        sum += (double)shares[s];
        count++;
    }
    if (count == 0)
        return err_set(eb, MOE_EINVAL, "layer %u: expert %u is on no worker", layer, expert);
    if (!(fabs(sum - 1) <= SHARE_SUM_TOLERANCE))
        return err_set(eb, MOE_EINVAL, "layer %u expert %u: shares add up to %g", layer, expert,
                       sum);
    return MOE_OK;
}

moe_err
placement_check(const placement *p, bool unique, errbuf *eb)
{
    for (uint32_t l = 0; l < p->num_layers; l++) {
        moe_err err = check_slots(p, l, unique, eb);
        for (uint32_t e = 0; e < p->num_experts && !err; e++)
            err = check_expert(p, l, e, eb);
        if (err) return err;
    }
    return MOE_OK;
}

void
placement_worker_rows(const placement *p, uint32_t layer, const uint64_t *expert_rows, double *out)
{
    const uint32_t *slots = placement_layer_slots(p, layer);
    const float *shares = p->shares + (size_t)layer * p->slot_count;
    for (uint32_t w = 0; w < p->worker_count; w++) {
        double rows = 0;
        for (uint32_t s = p->slot_first[w]; s < p->slot_first[w + 1]; s++) {
            if (slots[s] != PLACEMENT_EMPTY)
                rows += (double)expert_rows[slots[s]] * (double)shares[s];
        }
        out[w] = rows;
    }
}

static double
balancedness_of(const placement *p, uint32_t first, uint32_t count, const uint64_t *expert_rows,
                const double *speeds, double *scratch)
{
    double speed_sum = 0, means = 0, maxima = 0;
    for (uint32_t w = 0; w < p->worker_count; w++)
        speed_sum += speeds ? speeds[w] : 1;
    for (uint32_t l = 0; l < count; l++) {
        double rows = 0, most = 0;
        placement_worker_rows(p, first + l, expert_rows + (size_t)l * p->num_experts, scratch);
        for (uint32_t w = 0; w < p->worker_count; w++) {
            const double speed = speeds ? speeds[w] : 1;
            rows += scratch[w];
            if (speed > 0 && scratch[w] / speed > most) most = scratch[w] / speed;
        }
        means += speed_sum > 0 ? rows / speed_sum : 0;
        maxima += most;
    }
    return maxima > 0 ? means / maxima : 1;
}

double
placement_balancedness(const placement *p, const uint64_t *expert_rows, const double *speeds,
                       double *scratch)
{
    return balancedness_of(p, 0, p->num_layers, expert_rows, speeds, scratch);
}

double
placement_layer_balancedness(const placement *p, uint32_t layer, const uint64_t *expert_rows,
                             const double *speeds, double *scratch)
{
    return balancedness_of(p, layer, 1, expert_rows, speeds, scratch);
}

/* Calls for everything that `there` hosts and `here` does not; returns how many.  out may be NULL:
 * only count. */
static size_t
missing(const placement *here, const placement *there, placement_change *out)
{
    size_t count = 0;
    for (uint32_t l = 0; l < there->num_layers; l++) {
        const uint32_t *slots = placement_layer_slots(there, l);
        for (uint32_t w = 0; w < there->worker_count; w++) {
            const uint32_t first = there->slot_first[w];
            for (uint32_t s = first; s < there->slot_first[w + 1]; s++) {
                const uint32_t e = slots[s];
                if (e == PLACEMENT_EMPTY || placement_is_host(here, l, e, w)) continue;
                if (count_in(slots + first, s - first, e) != 0) continue;
                if (out) out[count] = (placement_change){.layer = l, .expert = e, .worker = w};
                count++;
            }
        }
    }
    return count;
}

moe_err
placement_diff_init(placement_diff *out, const placement *from, const placement *to, errbuf *eb)
{
    *out = (placement_diff){0};
    if (from->num_layers != to->num_layers || from->num_experts != to->num_experts)
        return err_set(eb, MOE_EINVAL, "placements of %u x %u and %u x %u experts",
                       from->num_layers, from->num_experts, to->num_layers, to->num_experts);
    const size_t moves = missing(from, to, NULL), drops = missing(to, from, NULL);
    out->moves = malloc((moves + 1) * sizeof *out->moves);
    out->drops = malloc((drops + 1) * sizeof *out->drops);
    if (out->moves == NULL || out->drops == NULL) {
        placement_diff_fini(out);
        return err_set(eb, MOE_ENOMEM, "out of memory");
    }
    out->move_count = missing(from, to, out->moves);
    out->drop_count = missing(to, from, out->drops);
    return MOE_OK;
}

void
placement_diff_fini(placement_diff *d)
{
    free(d->moves);
    free(d->drops);
    *d = (placement_diff){0};
}
