#include "router/eplb_conclave.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/eplb_dispersion.h"
#include "router/eplb_search.h"

/* How close to the ideal a proposal has to come before it is left alone: who moves little is
 * content earlier. */
#define TOLERANCE_FEW_MOVES 0.01
#define TOLERANCE_FRESH 0.001

/* What a worker sheds has to go to one that itself may have more than expected. */
#define LOOSE_FACTOR 2

/* What became of one layer. */
typedef struct layer_choice {
    uint32_t layer;
    uint32_t base_moves;  /* experts to load so that each has a host */
    uint32_t moves;       /* for the proposal */
    bool repaired;        /* it can't stay as it is */
    bool worth;           /* there is a proposal that pays */
    bool taken;           /* in the next placement */
    double before, after; /* time of the slowest worker: as it is (or repaired), and proposed */
    double gain_ns, cost_ns;
    bool too_small; /* without a proposal: because there was nothing to gain */
} layer_choice;

typedef struct decision {
    const eplb_input *in;
    eplb_fleet fleet;
    eplb_search *search;
    eplb_layer *base, *plan, *best;
    placement *kept, *next; /* every layer as it is, and as proposed */
    double *loads;          /* [L][E] */
    layer_choice *choices;  /* [L] */
    double gain_per_row;    /* ns over the interval, for each row less on the slowest worker */
    double cost_per_move;   /* ns */
    double dispersion;      /* how much more rows vary than by chance alone */
    double sigmas;          /* times sqrt(rows): what a gain must exceed */
    double reach; /* times sqrt(rows): what a step's rows vary by, in rows of the window */
    double ideal_sum;
} decision;

static void
decision_fini(decision *d)
{
    eplb_search_free(d->search);
    placement_free(d->kept);
    free(d->base);
    free(d->plan);
    free(d->best);
    free(d->loads);
    free(d->choices);
}

static double
or_else(double value, double fallback)
{
    return value > 0 ? value : fallback;
}

static moe_err
decision_init(decision *d, const eplb_input *in, const double *speeds, placement *next)
{
    const eplb_costs *c = &in->costs;
    const uint32_t layers = next->num_layers, experts = next->num_experts;
    *d = (decision){
        .in = in,
        .next = next,
        .dispersion = 1,
        .fleet = {.num_experts = experts,
                  .worker_count = next->worker_count,
                  .slot_count = next->slot_count,
                  .slot_first = next->slot_first,
                  .speeds = speeds},
    };
    d->base = eplb_layer_create(&d->fleet);
    d->plan = eplb_layer_create(&d->fleet);
    d->best = eplb_layer_create(&d->fleet);
    d->loads = malloc((size_t)layers * experts * sizeof *d->loads);
    d->choices = calloc(layers, sizeof *d->choices);
    if (!d->base || !d->plan || !d->best || !d->loads || !d->choices) return MOE_ENOMEM;
    if (eplb_search_create(&d->search, &d->fleet, in->num_groups, in->num_nodes) ||
        placement_clone(&d->kept, next, NULL))
        return MOE_ENOMEM;
    for (size_t i = 0; i < (size_t)layers * experts; i++)
        d->loads[i] = (double)in->expert_rows[i];

    const double window = or_else(in->window_steps, 1);
    d->gain_per_row = or_else(c->row_ns, 1) * or_else(c->interval_steps, window) / window;
    if (c->move_bytes_per_s > 0)
        d->cost_per_move = c->bytes_per_expert * c->move_interference / c->move_bytes_per_s * 1e9;
    /* The largest of n normal numbers is about sqrt(2 ln n) sigmas above their mean. */
    if (c->noise_sigmas < 0) return MOE_OK;
    d->dispersion = eplb_dispersion(in->current, in->part_rows, in->part_count);
    d->sigmas = (c->noise_sigmas + sqrt(2 * log((double)layers * next->worker_count))) *
                sqrt(d->dispersion);
    d->reach = LOOSE_FACTOR * sqrt(2 * log(next->worker_count)) * sqrt(window);
    return MOE_OK;
}

/* How much of the slowest worker's time may be chance. */
static double
chance(const decision *d, const eplb_layer *l)
{
    uint32_t w;
    eplb_layer_slowest(l, &w);
    return d->sigmas * sqrt(l->rows[w]) / d->fleet.speeds[w];
}

/* Does it pay to gain so much for so much?  Asked of every proposal, and of what a later one has
 * beyond the choice so far: the last percent is not worth moving everything. */
static bool
pays(const decision *d, double gain, double cost)
{
    const eplb_costs *c = &d->in->costs;
    return gain > 0 && gain >= c->gain_min * d->base->ideal * d->gain_per_row &&
           gain >= c->hysteresis * cost;
}

static void
weigh(decision *d, layer_choice *choice, double noise)
{
    uint32_t w;
    const double after = eplb_layer_slowest(d->plan, &w);
    const uint32_t moves = eplb_layer_moves(d->plan, d->in->current, choice->layer);
    const double extra = moves > choice->base_moves ? moves - choice->base_moves : 0;
    const double gain = (choice->before - after - noise) * d->gain_per_row;
    const double cost = extra * d->cost_per_move;
    if (pays(d, gain, 0)) choice->too_small = false;
    if (choice->worth) {
        if (!pays(d, gain - choice->gain_ns, cost - choice->cost_ns)) return;
    } else if (!pays(d, gain, cost)) {
        if (gain > choice->gain_ns) { /* only to tell what was turned down */
            choice->gain_ns = gain;
            choice->cost_ns = cost;
        }
        return;
    }
    choice->worth = true;
    choice->gain_ns = gain;
    choice->cost_ns = cost;
    choice->after = after;
    choice->moves = moves;
    eplb_layer_copy(d->best, d->plan);
}

/* Go on from what is there, as long as a step may pay.  Each step's outcome is a proposal: what
 * pays may be the first few. */
static void
propose_steps(decision *d, layer_choice *choice, bool add_replicas, double noise)
{
    const double price = d->in->costs.hysteresis * d->cost_per_move / d->gain_per_row;
    eplb_layer_copy(d->plan, d->base);
    for (uint32_t i = 0; i < eplb_search_steps_max(&d->fleet); i++) {
        if (!eplb_search_step(d->search, d->plan, add_replicas, TOLERANCE_FEW_MOVES, price)) return;
        weigh(d, choice, noise);
    }
}

static void
propose_fresh(decision *d, layer_choice *choice, double noise)
{
    eplb_layer_copy(d->plan, d->base);
    eplb_search_fresh(d->search, d->plan, TOLERANCE_FRESH);
    eplb_search_relabel(d->search, d->plan, d->in->current, choice->layer);
    weigh(d, choice, noise);
}

/* A layer that changes anyway also uses its slots for what single steps need, if that pays. */
static void
loosen(decision *d, layer_choice *choice)
{
    eplb_layer_copy(d->plan, d->best);
    eplb_search_loosen(d->search, d->plan, d->reach);
    const uint32_t moves = eplb_layer_moves(d->plan, d->in->current, choice->layer);
    const double extra = moves > choice->moves ? moves - choice->moves : 0;
    const double gain =
        (eplb_layer_unlucky(d->best, d->reach) - eplb_layer_unlucky(d->plan, d->reach)) *
        d->gain_per_row;
    uint32_t w;
    if (!pays(d, gain, extra * d->cost_per_move)) return;
    choice->gain_ns += gain;
    choice->cost_ns += extra * d->cost_per_move;
    choice->moves = moves;
    choice->after = eplb_layer_slowest(d->plan, &w);
    eplb_layer_copy(d->best, d->plan);
}

static void
choose_for_layer(decision *d, uint32_t layer)
{
    layer_choice *choice = &d->choices[layer];
    const placement *current = d->in->current;
    uint32_t w;
    *choice = (layer_choice){.layer = layer, .too_small = true};
    choice->repaired =
        !eplb_layer_start(d->base, d->loads + (size_t)layer * d->fleet.num_experts, current, layer);
    choice->before = choice->after = eplb_layer_slowest(d->base, &w);
    choice->base_moves = eplb_layer_moves(d->base, current, layer);
    d->ideal_sum += d->base->ideal;
    eplb_layer_store(d->base, current, d->kept, layer);

    const double noise = chance(d, d->base);
    const double most = choice->before - d->base->ideal - noise;
    if (most <= 0 || most < d->in->costs.gain_min * d->base->ideal) return;
    propose_steps(d, choice, false, noise);
    propose_steps(d, choice, true, noise);
    propose_fresh(d, choice, noise);
    if (!choice->worth) return;
    if (d->reach > 0) loosen(d, choice);
    eplb_layer_store(d->best, current, d->next, layer);
}

/* Repairs first, then most gain less cost for each expert moved. */
static int
compare_choices(const void *a, const void *b)
{
    const layer_choice *x = a, *y = b;
    if (x->repaired != y->repaired) return x->repaired ? -1 : 1;
    const double vx = (x->gain_ns - x->cost_ns) / (x->moves + 1);
    const double vy = (y->gain_ns - y->cost_ns) / (y->moves + 1);
    if (vx != vy) return vx > vy ? -1 : 1;
    return x->layer < y->layer ? -1 : x->layer > y->layer;
}

/* Take layers while what is left of the interval after their moves still pays for them. */
static void
take_layers(decision *d)
{
    const eplb_costs *c = &d->in->costs;
    const double interval_s = c->step_ns * c->interval_steps / 1e9;
    const double room = c->move_bytes_per_s * interval_s;
    double bytes = 0;
    qsort(d->choices, d->next->num_layers, sizeof *d->choices, compare_choices);
    for (uint32_t i = 0; i < d->next->num_layers; i++) {
        layer_choice *choice = &d->choices[i];
        bytes += choice->base_moves * c->bytes_per_expert;
        if (!choice->worth) continue;
        const double with =
            bytes + (choice->moves - (double)choice->base_moves) * c->bytes_per_expert;
        const double left = room > 0 ? 1 - with / room : 1;
        if (left <= 0 || choice->gain_ns * left < c->hysteresis * choice->cost_ns) continue;
        choice->taken = true;
        bytes = with;
    }
}

static void
keep_layer(const decision *d, uint32_t layer)
{
    const size_t slots = d->next->slot_count, base = layer * slots;
    memcpy(d->next->slots + base, d->kept->slots + base, slots * sizeof *d->next->slots);
    memcpy(d->next->shares + base, d->kept->shares + base, slots * sizeof *d->next->shares);
    placement_index_layer(d->next, layer);
}

/* Sum up, and complete the next placement with the layers that stay. */
static void
sum_up(decision *d, eplb_outcome *out)
{
    bool repaired = false, load = false, small = true;
    double before = 0, after = 0, refused_gain = 0, refused_cost = 0;
    for (uint32_t i = 0; i < d->next->num_layers; i++) {
        const layer_choice *c = &d->choices[i];
        load |= c->before > 0;
        before += c->before;
        after += c->taken ? c->after : c->before;
        repaired |= c->repaired;
        small &= c->too_small;
        out->layers_changed += c->taken || c->repaired;
        if (c->taken) {
            out->move_count += c->moves;
            out->gain_ns += c->gain_ns;
            out->cost_ns += c->cost_ns;
        } else {
            keep_layer(d, c->layer);
            out->move_count += c->base_moves;
            refused_gain += c->too_small ? 0 : c->gain_ns;
            refused_cost += c->too_small ? 0 : c->cost_ns;
        }
    }
    out->balancedness_before = before > 0 ? d->ideal_sum / before : 1;
    out->balancedness_after = after > 0 ? d->ideal_sum / after : 1;
    out->move_bytes = (double)out->move_count * d->in->costs.bytes_per_expert;
    if (repaired)
        out->verdict = EPLB_REPAIRED;
    else if (out->layers_changed != 0)
        out->verdict = EPLB_ADOPTED;
    else
        out->verdict = !load ? EPLB_NO_LOAD : small ? EPLB_BALANCED : EPLB_TOO_DEAR;
    if (out->layers_changed == 0) {
        out->gain_ns = refused_gain;
        out->cost_ns = refused_cost;
    }
}

static void
explain(eplb_outcome *o, uint32_t layers, double dispersion)
{
    switch (o->verdict) {
    case EPLB_ADOPTED:
    case EPLB_REPAIRED:
        snprintf(o->text, sizeof o->text,
                 "%s%u of %u layers change, %llu experts (%.1f MB) move: balancedness %.3f to "
                 "%.3f, gain %.1f ms for %.1f ms",
                 o->verdict == EPLB_REPAIRED ? "experts had no host: " : "", o->layers_changed,
                 layers, (unsigned long long)o->move_count, o->move_bytes / 1e6,
                 o->balancedness_before, o->balancedness_after, o->gain_ns / 1e6, o->cost_ns / 1e6);
        break;
    case EPLB_NO_LOAD: snprintf(o->text, sizeof o->text, "no rows were counted"); break;
    case EPLB_TOO_DEAR:
        snprintf(o->text, sizeof o->text,
                 "balancedness %.3f: a gain of %.1f ms does not pay for moves of %.1f ms",
                 o->balancedness_before, o->gain_ns / 1e6, o->cost_ns / 1e6);
        break;
    default:
        snprintf(o->text, sizeof o->text,
                 "balancedness %.3f: no layer can gain more than chance explains (rows vary %.1f "
                 "times as much as independent ones)",
                 o->balancedness_before, dispersion);
    }
}

moe_err
eplb_conclave_decide(const eplb_input *in, const double *speeds, eplb_outcome *out, errbuf *eb)
{
    decision d;
    moe_err err = decision_init(&d, in, speeds, out->next);
    if (err) {
        decision_fini(&d);
        return err_set(eb, err, "out of memory");
    }
    for (uint32_t l = 0; l < out->next->num_layers; l++)
        choose_for_layer(&d, l);
    take_layers(&d);
    sum_up(&d, out);
    explain(out, out->next->num_layers, d.dispersion);
    if (out->layers_changed == 0) {
        placement_free(out->next);
        out->next = NULL;
    }
    decision_fini(&d);
    return MOE_OK;
}
