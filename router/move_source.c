#include "router/move_source.h"

#include <stdlib.h>
#include <string.h>

/* Is a the better one to copy from? */
static bool
is_better(const fleet_view *v, uint32_t worker, const uint32_t *chosen, uint32_t a, uint32_t b)
{
    const char *host = v->members[worker].host_id;
    const bool near_a = strcmp(v->members[a].host_id, host) == 0;
    const bool near_b = strcmp(v->members[b].host_id, host) == 0;
    return near_a != near_b ? near_a : chosen[a] < chosen[b];
}

/* WORKER_MAX: nobody. */
static uint32_t
choose_peer(const fleet_view *v, uint32_t worker, uint32_t id, const uint32_t *chosen)
{
    uint32_t best = WORKER_MAX;
    for (uint32_t w = 0; w < v->worker_end; w++) {
        if (w == worker || !v->members[w].ready || !fleet_view_hosts(v, w, id)) continue;
        if (best == WORKER_MAX || is_better(v, worker, chosen, w, best)) best = w;
    }
    return best;
}

moe_err
move_offer_init(move_offer *out, const fleet_view *v, uint32_t worker, const uint32_t *ids,
                size_t count, uint32_t *chosen, errbuf *eb)
{
    uint32_t index_of[WORKER_MAX] = {0}; /* + 1 */
    out->url_count = 0;
    out->peer_of = calloc(count + 1, sizeof *out->peer_of);
    if (out->peer_of == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    for (size_t i = 0; i < count; i++) {
        const uint32_t w = choose_peer(v, worker, ids[i], chosen);
        if (w == WORKER_MAX) continue;
        chosen[w]++;
        if (index_of[w] == 0) {
            out->urls[out->url_count++] = (char *)(uintptr_t)v->members[w].control_url;
            index_of[w] = (uint32_t)out->url_count;
        }
        out->peer_of[i] = index_of[w];
    }
    return MOE_OK;
}

void
move_offer_fini(move_offer *o)
{
    free(o->peer_of);
    o->peer_of = NULL;
}
