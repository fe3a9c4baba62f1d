#include "proto/fleet_json.h"

#include <stdbool.h>
#include <stdlib.h>

#define NS_PER_S_F 1e9

/* Members that can't be added for want of memory are missed by nobody but the reader: cJSON's
 * helpers return NULL then.  The objects and arrays that others go into are checked. */

static moe_err
finish(cJSON *root, bool whole, cJSON **out, errbuf *eb)
{
    *out = whole ? root : NULL;
    if (whole) return MOE_OK;
    cJSON_Delete(root);
    return err_set(eb, MOE_ENOMEM, "out of memory");
}

/* A new object at the end of list; NULL: out of memory. */
static cJSON *
add_object(cJSON *list)
{
    cJSON *o = cJSON_CreateObject();
    if (o != NULL && cJSON_AddItemToArray(list, o)) return o;
    cJSON_Delete(o);
    return NULL;
}

static void
add_count(cJSON *o, const char *name, uint64_t value)
{
    cJSON_AddNumberToObject(o, name, (double)value);
}

static void
add_seconds(cJSON *o, const char *name, uint64_t ns)
{
    cJSON_AddNumberToObject(o, name, (double)ns / NS_PER_S_F);
}

/* ---- statistics ---- */

static bool
add_workers(cJSON *root, const Conclave__RouterStats *s)
{
    cJSON *list = cJSON_AddArrayToObject(root, "workers");
    for (size_t i = 0; i < s->n_workers; i++) {
        const Conclave__WorkerStatus *w = s->workers[i];
        cJSON *o = list == NULL ? NULL : add_object(list);
        if (o == NULL) return false;
        add_count(o, "id", w->worker_id);
        add_count(o, "pid", w->pid);
        cJSON_AddStringToObject(o, "state", w->state);
        cJSON_AddStringToObject(o, "backend", w->backend);
        add_count(o, "slots", w->slots);
        add_count(o, "experts_hosted", w->experts_hosted);
        add_count(o, "bytes_hosted", w->bytes_hosted);
        add_count(o, "memory_bytes", w->memory_bytes);
        add_count(o, "rows", w->rows);
        add_seconds(o, "busy_seconds", w->busy_ns);
        add_seconds(o, "wait_seconds", w->wait_ns);
    }
    return list != NULL;
}

static void
add_verdicts(cJSON *to, const Conclave__BalanceStats *b)
{
    cJSON *o = cJSON_AddObjectToObject(to, "verdicts");
    for (size_t i = 0; i < b->n_verdicts && o != NULL; i++)
        add_count(o, b->verdicts[i]->verdict, b->verdicts[i]->count);
}

static void
add_doubles(cJSON *to, const char *name, const double *values, size_t count)
{
    cJSON *list = cJSON_AddArrayToObject(to, name);
    for (size_t i = 0; i < count && list != NULL; i++)
        cJSON_AddItemToArray(list, cJSON_CreateNumber(values[i]));
}

static bool
add_balance(cJSON *root, const Conclave__BalanceStats *b)
{
    if (b == NULL) return true;
    cJSON *o = cJSON_AddObjectToObject(root, "eplb");
    if (o == NULL) return false;
    cJSON_AddBoolToObject(o, "enabled", b->enabled);
    cJSON_AddStringToObject(o, "policy", b->policy);
    cJSON_AddNumberToObject(o, "balancedness", b->balancedness);
    add_count(o, "decisions", b->decisions);
    add_count(o, "adopted", b->adopted);
    add_count(o, "refused", b->refused);
    add_count(o, "failed", b->failed);
    add_count(o, "experts_moved", b->experts_moved);
    add_count(o, "bytes_moved", b->bytes_moved);
    add_count(o, "peer_bytes_moved", b->peer_bytes_moved);
    add_count(o, "peer_failures", b->peer_failures);
    add_seconds(o, "move_seconds", b->move_ns);
    add_count(o, "repairs", b->repairs);
    add_seconds(o, "last_recovery_seconds", b->last_recovery_ns);
    add_seconds(o, "max_recovery_seconds", b->recovery_ns_max);
    add_seconds(o, "recovery_seconds", b->recovery_ns);
    add_count(o, "step_interval", b->step_interval);
    add_count(o, "steps_since_look", b->idle_steps);
    cJSON_AddBoolToObject(o, "overdue", b->overdue);
    if (b->any_adopted) add_seconds(o, "seconds_since_adopted", b->adopted_age_ns);
    add_verdicts(o, b);
    add_doubles(o, "layer_balancedness", b->layer_balancedness, b->n_layer_balancedness);
    cJSON *last = b->any ? cJSON_AddObjectToObject(o, "last") : NULL;
    if (last == NULL) return !b->any;
    add_seconds(last, "seconds_ago", b->last_age_ns);
    cJSON_AddStringToObject(last, "verdict", b->last_verdict);
    cJSON_AddStringToObject(last, "reason", b->last_text);
    cJSON_AddNumberToObject(last, "gain_seconds", b->last_gain_ns / NS_PER_S_F);
    cJSON_AddNumberToObject(last, "bytes", b->last_bytes);
    return true;
}

moe_err
fleet_json_stats(const Conclave__RouterStats *s, cJSON **out, errbuf *eb)
{
    cJSON *o = cJSON_CreateObject();
    if (o == NULL) return finish(o, false, out, eb);
    cJSON_AddBoolToObject(o, "ready", s->ready);
    cJSON_AddStringToObject(o, "detail", s->detail);
    add_count(o, "epoch", s->epoch);
    add_count(o, "steps", s->steps);
    add_count(o, "tokens", s->tokens);
    add_seconds(o, "step_seconds", s->step_ns);
    cJSON_AddNumberToObject(o, "recent_p50_ms", (double)s->recent_p50_ns / 1e6);
    cJSON_AddNumberToObject(o, "recent_p99_ms", (double)s->recent_p99_ns / 1e6);
    add_count(o, "resends", s->resends);
    add_count(o, "step_waits", s->step_waits);
    add_count(o, "workers_lost", s->workers_lost);
    return finish(o, add_workers(o, s) && add_balance(o, s->balance), out, eb);
}

/* ---- placement ---- */

static moe_err
check_placement(const Conclave__PlacementReply *p, uint64_t *slot_count, errbuf *eb)
{
    *slot_count = 0;
    for (size_t w = 0; w < p->n_slot_counts; w++)
        *slot_count += p->slot_counts[w];
    if (*slot_count > UINT32_MAX || *slot_count * p->num_layers != p->n_slots)
        return err_set(eb, MOE_EINVAL, "a placement of %zu slots, not %u layers of %llu",
                       p->n_slots, p->num_layers, (unsigned long long)*slot_count);
    if (p->n_slots != 0 && *slot_count < p->num_experts)
        return err_set(eb, MOE_EINVAL, "a placement of %u experts in %llu slots", p->num_experts,
                       (unsigned long long)*slot_count);
    for (size_t i = 0; i < p->n_slots; i++) {
        if (p->slots[i] > p->num_experts)
            return err_set(eb, MOE_EINVAL, "slot %zu holds expert %u of %u", i, p->slots[i] - 1,
                           p->num_experts);
    }
    return MOE_OK;
}

/* {"expert": e, "hosts": []} for each expert; hosts [E] out. */
static bool
add_experts(cJSON *layer, uint32_t num_experts, cJSON **hosts)
{
    cJSON *list = cJSON_AddArrayToObject(layer, "experts");
    for (uint32_t e = 0; e < num_experts; e++) {
        cJSON *o = list == NULL ? NULL : add_object(list);
        if (o == NULL) return false;
        add_count(o, "expert", e);
        hosts[e] = cJSON_AddArrayToObject(o, "hosts");
        if (hosts[e] == NULL) return false;
    }
    return list != NULL;
}

/* slots: of this layer, of all workers. */
static bool
add_layer(cJSON *layers, uint32_t l, const Conclave__PlacementReply *p, const uint32_t *slots,
          cJSON **hosts)
{
    cJSON *layer = add_object(layers);
    if (layer == NULL) return false;
    add_count(layer, "layer", l);
    if (!add_experts(layer, p->num_experts, hosts)) return false;
    for (size_t w = 0; w < p->n_slot_counts; slots += p->slot_counts[w++]) {
        for (uint32_t s = 0; s < p->slot_counts[w]; s++) {
            if (slots[s] == 0) continue;
            cJSON *host = add_object(hosts[slots[s] - 1]);
            if (host == NULL) return false;
            add_count(host, "worker", w);
            add_count(host, "slot", s);
        }
    }
    return true;
}

static bool
add_layers(cJSON *root, const Conclave__PlacementReply *p, size_t slot_count)
{
    cJSON *layers = cJSON_AddArrayToObject(root, "layers");
    cJSON **hosts = calloc(slot_count + 1, sizeof *hosts); /* of the experts, which are fewer */
    bool good = layers != NULL && hosts != NULL;
    for (uint32_t l = 0; l < p->num_layers && good && p->n_slots != 0; l++)
        good = add_layer(layers, l, p, p->slots + l * slot_count, hosts);
    free(hosts);
    return good;
}

static bool
add_slot_counts(cJSON *root, const Conclave__PlacementReply *p)
{
    cJSON *list = cJSON_AddArrayToObject(root, "workers");
    for (size_t w = 0; w < p->n_slot_counts; w++) {
        cJSON *o = list == NULL ? NULL : add_object(list);
        if (o == NULL) return false;
        add_count(o, "id", w);
        add_count(o, "slots", p->slot_counts[w]);
    }
    return list != NULL;
}

moe_err
fleet_json_placement(const Conclave__PlacementReply *p, cJSON **out, errbuf *eb)
{
    uint64_t slot_count;
    *out = NULL;
    const moe_err err = check_placement(p, &slot_count, eb);
    if (err) return err;
    cJSON *o = cJSON_CreateObject();
    if (o == NULL) return finish(o, false, out, eb);
    add_count(o, "epoch", p->epoch);
    cJSON_AddStringToObject(o, "parallelism", p->parallelism);
    add_count(o, "num_layers", p->num_layers);
    add_count(o, "num_experts", p->num_experts);
    return finish(o, add_slot_counts(o, p) && add_layers(o, p, (size_t)slot_count), out, eb);
}

/* ---- the window ---- */

static bool
add_heat(cJSON *layers, uint32_t l, const Conclave__RoutingReply *r)
{
    cJSON *layer = add_object(layers);
    if (layer == NULL) return false;
    const uint64_t *rows = r->rows + (size_t)l * r->num_experts;
    uint64_t sum = 0;
    add_count(layer, "layer", l);
    cJSON *tokens = cJSON_AddArrayToObject(layer, "tokens");
    for (uint32_t e = 0; e < r->num_experts; e++) {
        cJSON *n = cJSON_CreateNumber((double)rows[e]);
        if (n == NULL || !cJSON_AddItemToArray(tokens, n)) {
            cJSON_Delete(n);
            return false;
        }
        sum += rows[e];
    }
    add_count(layer, "total", sum);
    if (r->n_layer_balancedness != 0)
        cJSON_AddNumberToObject(layer, "balancedness", r->layer_balancedness[l]);
    return tokens != NULL;
}

moe_err
fleet_json_routing(const Conclave__RoutingReply *r, cJSON **out, errbuf *eb)
{
    *out = NULL;
    if ((uint64_t)r->num_layers * r->num_experts != r->n_rows || r->num_experts == 0 ||
        (r->n_layer_balancedness != 0 && r->n_layer_balancedness != r->num_layers))
        return err_set(eb, MOE_EINVAL, "a window of %zu counts, not %u layers of %u experts",
                       r->n_rows, r->num_layers, r->num_experts);
    cJSON *o = cJSON_CreateObject();
    if (o == NULL) return finish(o, false, out, eb);
    add_count(o, "window_steps", r->window_steps);
    add_count(o, "num_layers", r->num_layers);
    add_count(o, "num_experts", r->num_experts);
    add_count(o, "top_k", r->top_k);
    if (r->n_layer_balancedness != 0) cJSON_AddNumberToObject(o, "balancedness", r->balancedness);
    cJSON *layers = cJSON_AddArrayToObject(o, "layers");
    bool good = layers != NULL;
    for (uint32_t l = 0; l < r->num_layers && good; l++)
        good = add_heat(layers, l, r);
    return finish(o, good, out, eb);
}

char *
fleet_json_text(const cJSON *root)
{
    return cJSON_PrintUnformatted(root);
}
