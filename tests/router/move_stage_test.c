/* move_stage: from any placement to any other, stage by stage, in as little memory as there is:
 * every expert has a host at any time, no worker holds more than it may, and it ends with the
 * target. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "router/capacity.h"
#include "router/move_stage.h"

#define BYTES 100u /* of an expert */
#define LAYERS_MAX 3u
#define EXPERTS_MAX 12u
#define WORKERS_MAX 6u

static uint64_t rng;
static errbuf eb;

static uint32_t
below(uint32_t n)
{
    rng = hash_mix(rng);
    return (uint32_t)((rng >> 20) % n);
}

static uint32_t
count_hosted(const fleet_view *v, uint32_t w)
{
    uint32_t count = 0;
    for (uint32_t id = 0; id < v->home->num_layers * v->home->num_experts; id++)
        count += fleet_view_hosts(v, w, id);
    return count;
}

/* A fleet whose workers host what `home` (owned from here on) says, in memory for `room` experts
 * more each. */
static void
view_init(fleet_view *v, placement *home, const uint32_t *room)
{
    const uint32_t ids = home->num_layers * home->num_experts;
    memset(v, 0, sizeof *v);
    v->started = v->covered = true;
    v->worker_end = home->worker_count;
    v->home = home;
    v->hosted = calloc((size_t)home->worker_count * ids, sizeof *v->hosted);
    for (uint32_t w = 0; w < home->worker_count; w++) {
        for (uint32_t id = 0; id < ids; id++)
            v->hosted[w * ids + id] =
                placement_is_host(home, id / home->num_experts, id % home->num_experts, w);
        v->members[w].ready = true;
        v->members[w].experts_hosted = count_hosted(v, w);
        v->members[w].memory_bytes = ((uint64_t)v->members[w].experts_hosted + room[w]) * BYTES;
    }
}

/* Load what the stage lacks, adopt it, release the rest; returns how many were loaded. */
static uint32_t
carry_out(fleet_view *v, placement *stage)
{
    uint32_t loaded = 0;
    const uint32_t ids = stage->num_layers * stage->num_experts;
    for (uint32_t w = 0; w < stage->worker_count; w++) {
        const member *m = &v->members[w];
        uint32_t most = m->experts_hosted;
        for (uint32_t id = 0; id < ids; id++)
            most += placement_is_host(stage, id / stage->num_experts, id % stage->num_experts, w) &&
                    !fleet_view_hosts(v, w, id);
        cr_assert_leq(most * (uint64_t)BYTES, m->memory_bytes, "worker %u", w);
        loaded += most - m->experts_hosted;
    }
    for (uint32_t l = 0; l < stage->num_layers; l++) {
        for (uint32_t e = 0; e < stage->num_experts; e++) {
            uint32_t count;
            (void)placement_hosts(stage, l, e, &count);
            cr_assert_neq(count, 0, "layer %u expert %u has no host", l, e);
        }
    }
    for (uint32_t w = 0; w < stage->worker_count; w++) {
        for (uint32_t id = 0; id < ids; id++)
            v->hosted[w * ids + id] =
                placement_is_host(stage, id / stage->num_experts, id % stage->num_experts, w);
        v->members[w].experts_hosted = count_hosted(v, w);
    }
    placement_free(v->home);
    v->home = stage;
    return loaded;
}

/* Returns how many stages it took; 0: there was no memory. */
static uint32_t
go_to(fleet_view *v, const placement *target, uint32_t *loads)
{
    *loads = 0;
    for (uint32_t stages = 1;; stages++) {
        placement *stage;
        bool last;
        const moe_err err = move_stage_make(&stage, v, target, BYTES, &last, &eb);
        cr_assert(err == MOE_OK || err == MOE_ENOMEM, "%s", eb.text);
        if (err) return 0;
        *loads += carry_out(v, stage);
        cr_assert_lt(stages, 1000, "it does not come to an end");
        if (last) return stages;
    }
}

static placement *
place(uint32_t layers, uint32_t experts, uint32_t workers, const uint32_t *slot_counts,
      const uint32_t *slots)
{
    placement *p;
    cr_assert_eq(placement_create(&p, layers, experts, workers, slot_counts, &eb), MOE_OK);
    memcpy(p->slots, slots, (size_t)layers * p->slot_count * sizeof *slots);
    placement_index(p);
    return p;
}

/* Workers 0 and 1 exchange experts 0 and 1 of one layer; expert 2 is on worker 2. */
static uint32_t
exchange(const uint32_t room[3], uint32_t *loads)
{
    static const uint32_t ones[] = {1, 1, 1}, from[] = {0, 1, 2}, to[] = {1, 0, 2};
    fleet_view v;
    placement *target = place(1, 3, 3, ones, to);
    view_init(&v, place(1, 3, 3, ones, from), room);
    const uint32_t stages = go_to(&v, target, loads);
    placement_free(target);
    fleet_view_fini(&v);
    return stages;
}

Test(move_stage, full_workers_exchange_experts_through_one_free_slot_anywhere)
{
    uint32_t loads;
    cr_expect_eq(exchange((uint32_t[]){1, 1, 0}, &loads), 1);
    cr_expect_eq(loads, 2);
    cr_expect_eq(exchange((uint32_t[]){1, 0, 0}, &loads), 2);
    cr_expect_eq(loads, 2);
    cr_expect_neq(exchange((uint32_t[]){0, 0, 1}, &loads), 0, "%s", eb.text);
    cr_expect_eq(loads, 3, "one of them went over worker 2");
    cr_expect_eq(exchange((uint32_t[]){0, 0, 0}, &loads), 0);
    cr_expect_not_null(strstr(eb.text, "100 bytes"), "%s", eb.text);
}

Test(move_stage, a_copy_that_has_another_gives_way_first)
{
    /* Expert 2 is on both full workers that are to exchange 0 and 1; then only on worker 2. */
    static const uint32_t twos[] = {2, 2, 1}, from[] = {0, 2, 1, 2, PLACEMENT_EMPTY},
                          to[] = {1, PLACEMENT_EMPTY, 0, PLACEMENT_EMPTY, 2};
    fleet_view v;
    uint32_t loads;
    placement *target = place(1, 3, 3, twos, to);
    view_init(&v, place(1, 3, 3, twos, from), (uint32_t[]){0, 0, 0});
    v.members[2].memory_bytes = BYTES;
    cr_expect_neq(go_to(&v, target, &loads), 0, "%s", eb.text);
    cr_expect_eq(loads, 3);
    placement_free(target);
    fleet_view_fini(&v);
}

/* Any experts anywhere, each once, and replicas in some of the other slots. */
static placement *
draw_placement(uint32_t layers, uint32_t experts, uint32_t workers, const uint32_t *slot_counts)
{
    placement *p;
    cr_assert_eq(placement_create(&p, layers, experts, workers, slot_counts, &eb), MOE_OK);
    for (uint32_t l = 0; l < layers; l++) {
        uint32_t *slots = p->slots + (size_t)l * p->slot_count;
        for (uint32_t e = 0; e < experts; e++) {
            uint32_t s = below(p->slot_count);
            while (slots[s] != PLACEMENT_EMPTY)
                s = (s + 1) % p->slot_count;
            slots[s] = e;
        }
        for (uint32_t w = 0; w < workers; w++) {
            for (uint32_t s = p->slot_first[w]; s < p->slot_first[w + 1]; s++) {
                const uint32_t e = below(experts);
                placement_index_layer(p, l);
                if (slots[s] == PLACEMENT_EMPTY && below(2) && !placement_is_host(p, l, e, w))
                    slots[s] = e;
            }
        }
    }
    placement_index(p);
    return p;
}

Test(move_stage, comes_from_any_placement_to_any_other_where_one_worker_has_room_for_one)
{
    uint32_t most = 0;
    for (uint64_t seed = 0; seed < 2000; seed++) {
        uint32_t slots[WORKERS_MAX], room[WORKERS_MAX] = {0}, loads;
        rng = seed;
        const uint32_t layers = 1 + below(LAYERS_MAX), experts = 1 + below(EXPERTS_MAX),
                       workers = 1 + below(WORKERS_MAX);
        for (uint32_t w = 0; w < workers; w++)
            slots[w] = (experts + workers - 1) / workers + below(2);
        fleet_view v;
        placement *target = draw_placement(layers, experts, workers, slots);
        view_init(&v, draw_placement(layers, experts, workers, slots), room);
        /* What the target needs at least; and one worker has one more. */
        const uint32_t lucky = below(workers);
        for (uint32_t w = 0; w < workers; w++) {
            uint64_t need = 0;
            for (uint32_t id = 0; id < layers * experts; id++)
                need += placement_is_host(target, id / experts, id % experts, w);
            need = (need + (w == lucky)) * BYTES;
            if (need > v.members[w].memory_bytes) v.members[w].memory_bytes = need;
        }
        v.members[lucky].memory_bytes += BYTES;
        const uint32_t stages = go_to(&v, target, &loads);
        cr_assert_neq(stages, 0, "seed %lu: %s", (unsigned long)seed, eb.text);
        if (stages > most) most = stages;
        for (uint32_t w = 0; w < workers; w++) {
            for (uint32_t id = 0; id < layers * experts; id++)
                cr_assert_eq(fleet_view_hosts(&v, w, id),
                             placement_is_host(target, id / experts, id % experts, w));
        }
        placement_free(target);
        fleet_view_fini(&v);
    }
    cr_log_info("at most %u stages", most);
}

Test(move_stage, does_not_look_at_memory_that_is_not_known)
{
    static const uint32_t ones[] = {1, 1}, from[] = {0, 1}, to[] = {1, 0};
    fleet_view v;
    placement *stage, *target = place(1, 2, 2, ones, to);
    bool last;
    view_init(&v, place(1, 2, 2, ones, from), (uint32_t[]){0, 0});
    cr_expect_eq(move_stage_make(&stage, &v, target, 0, &last, &eb), MOE_OK);
    cr_expect(last);
    placement_free(stage);
    v.members[0].memory_bytes = v.members[1].memory_bytes = 0;
    cr_expect_eq(move_stage_make(&stage, &v, target, BYTES, &last, &eb), MOE_OK);
    cr_expect(last);
    placement_free(stage);
    placement_free(target);
    fleet_view_fini(&v);
}

Test(capacity, keeps_room_free_unless_the_experts_need_it)
{
    capacity_rule rule = {
        .expert_bytes = BYTES, .num_layers = 2, .num_experts = 6, .spare_slots = 1};
    const bool usable[] = {true, true, false, true};
    uint32_t out[4];
    cr_expect_eq(capacity_fill(&rule, 4, (uint64_t[]){900, 700, 0, 0}, usable, out), 0);
    cr_expect_arr_eq(out, ((uint32_t[]){4, 3, 0, 6}), sizeof out);
    cr_expect_eq(capacity_fill(&rule, 2, (uint64_t[]){900, 800}, usable, out), 0);
    cr_expect_arr_eq(out, ((uint32_t[]){4, 3}), 2 * sizeof out[0]);
    /* 5 slots with a spare one, 6 without. */
    cr_expect_eq(capacity_fill(&rule, 2, (uint64_t[]){600, 600}, usable, out), 0);
    cr_expect_arr_eq(out, ((uint32_t[]){3, 3}), 2 * sizeof out[0]);
    cr_expect_eq(capacity_fill(&rule, 2, (uint64_t[]){600, 400}, usable, out), 200);
    cr_expect_arr_eq(out, ((uint32_t[]){3, 2}), 2 * sizeof out[0]);
    rule.expert_bytes = 0;
    cr_expect_eq(capacity_fill(&rule, 2, (uint64_t[]){1, 1}, usable, out), 0);
    cr_expect_arr_eq(out, ((uint32_t[]){6, 6}), 2 * sizeof out[0]);
}
