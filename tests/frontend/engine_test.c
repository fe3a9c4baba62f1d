/* engine: the promises of engine.h and engine_start.h, against a router that can be told to
 * misbehave.  Every sequence of every test is checked for its exact events: prompt logprobs once
 * and in order, then tokens, each once and each the right one, and exactly one last event. */
#include <criterion/criterion.h>

#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/strbuf.h"
#include "frontend/engine_start.h"
#include "tests/frontend/engine_client.h"
#include "tests/support/tsan_nng.h"

#define EOS 3u

static fake_router router;
static engine *e;
static metrics *m;
static errbuf eb;

static void
setup(void)
{
    log_init("test", LOG_LEVEL_ERROR);
    fake_router_init(&router);
}

static void
teardown(void)
{
    if (e != NULL) engine_stop(e);
    engine_free(e);
    e = NULL;
    if (router.server != NULL) fake_router_kill(&router);
    metrics_free(m);
    m = NULL;
}

TestSuite(engine, .init = setup, .fini = teardown, .timeout = 120);

static engine_config
default_config(void)
{
    static const uint32_t eos = EOS;
    return (engine_config){.router_urls = {router.url},
                           .router_count = 1,
                           .router_timeout_ms = 2000,
                           .move_after_ms = 0,
                           .give_up_after_ms = 100000,
                           .max_waiting = 64,
                           .prefix_caching = true,
                           .model_fingerprint = 7,
                           .vocab_size = FAKE_VOCAB,
                           .eos_ids = &eos,
                           .eos_count = 1,
                           .metrics = m};
}

static void
start_engine(void)
{
    const engine_config config = default_config();
    cr_assert_eq(engine_start(&e, &config, &eb), MOE_OK, "%s", eb.text);
}

static void
start_ready(void)
{
    if (router.server == NULL) fake_router_serve(&router);
    start_engine();
    UNTIL(engine_ready(e, NULL, 0));
}

/* ---- tests ---- */

Test(engine, a_sequence_gets_its_tokens_in_order_and_one_end)
{
    start_ready();
    cr_expect_eq(engine_max_model_len(e), 64);
    static client c[6];
    for (uint32_t i = 0; i < 6; i++) {
        client_go(e, &c[i], 1 + 7 * i, 1 + 3 * i, i);
    }
    for (uint32_t i = 0; i < 6; i++) {
        client_expect(&c[i], FINISH_LENGTH);
    }
    cr_expect_eq(router.refused, 0, "%s", router.refusal);

    /* The same prompt again finds its full blocks, but computes its last token. */
    static client again;
    client_go(e, &again, 36, 4, 5);
    client_expect(&again, FINISH_LENGTH);
    cr_expect_eq(again.cached_tokens, 32);
    cr_expect_eq(c[5].cached_tokens, 0);
}

Test(engine, a_sequence_ends_with_a_stop_token_an_end_of_sequence_or_its_sinks_wish)
{
    start_ready();
    static client c[4];
    for (uint32_t i = 0; i < 4; i++) {
        client_init(&c[i], 5, 20, 9);
    }
    uint32_t third;
    uint32_t ids[8];
    memcpy(ids, c[0].tokens, sizeof ids);
    ids[5] = fake_router_next(ids, 5);
    ids[6] = fake_router_next(ids, 6);
    third = fake_router_next(ids, 7);
    c[0].params->stop_token_count = 1;
    c[0].params->stop_token_ids[0] = third;
    c[1].stop_after = 4;
    c[2].params->stop_token_count = 1; /* comes too early to be heeded */
    c[2].params->stop_token_ids[0] = third;
    c[2].params->min_tokens = 5;
    c[3].params->max_tokens = c[3].max_tokens = 1; /* the end and the sink's wish at once */
    c[3].stop_after = 1;
    for (uint32_t i = 0; i < 4; i++) {
        cr_assert_eq(client_submit(e, &c[i]), MOE_OK);
    }
    client_expect(&c[0], FINISH_STOP);
    cr_expect_eq(c[0].total, 8);
    client_expect(&c[1], FINISH_STOP);
    cr_expect_eq(c[1].total, 9);
    client_expect(&c[2], FINISH_LENGTH);
    client_expect(&c[3], FINISH_LENGTH);

    /* A prompt whose first token is the end of the sequence. */
    static client eos;
    uint64_t seed = 0;
    do {
        free(eos.params);
        client_init(&eos, 2, 9, ++seed);
    } while (fake_router_next(eos.tokens, 2) != EOS);
    cr_assert_eq(client_submit(e, &eos), MOE_OK);
    client_expect(&eos, FINISH_STOP);
    cr_expect_eq(eos.total, 3);
    static client ignores;
    client_init(&ignores, 2, 9, seed);
    ignores.params->ignore_eos = true;
    cr_assert_eq(client_submit(e, &ignores), MOE_OK);
    client_expect(&ignores, FINISH_LENGTH);
}

Test(engine, prompt_logprobs_come_once_whatever_is_computed_again)
{
    router.kv_block_count = 16; /* 64 tokens for all: sequences push each other out */
    metrics_create(&m);
    start_ready();
    static client c[4];
    for (uint32_t i = 0; i < 4; i++) {
        client_init(&c[i], 10 + i, 30, i);
        c[i].wants_logprobs = c[i].wants_prompt_logprobs = true;
        c[i].params->prompt_logprobs = true;
        c[i].params->num_logprobs = i % 2 ? 2 : 0;
        c[i].params->ignore_eos = true;
    }
    fake_router_hold(&router); /* until all are there: a fast router could serve one by one */
    for (uint32_t i = 0; i < 4; i++) {
        cr_assert_eq(client_submit(e, &c[i]), MOE_OK, "%s", c[i].error);
    }
    fake_router_release(&router);
    for (uint32_t i = 0; i < 4; i++) {
        client_expect(&c[i], FINISH_LENGTH);
        cr_expect_eq(c[i].prompt_logprobs, c[i].prompt_len - 1);
    }
    cr_expect_eq(router.refused, 0, "%s", router.refusal);
    engine_stop(e);
    strbuf text;
    strbuf_init(&text, 1 << 16);
    metrics_print(m, &text);
    cr_assert_not_null(strstr(strbuf_text(&text), "vllm:num_preemptions_total"));
    cr_expect_null(strstr(strbuf_text(&text), "vllm:num_preemptions_total 0\n"),
                   "nothing was preempted");
    cr_expect_not_null(strstr(strbuf_text(&text), "vllm:num_requests_running 0\n"));
    strbuf_fini(&text);
    engine_free(e);
    e = NULL;
}

Test(engine, the_experts_of_every_token_are_told_though_prompts_are_cached_and_steps_lost)
{
    router.kv_block_count = 16;
    router.lose_every = 7;
    start_ready();
    static client c[4], cached;
    client_go(e, &cached, 12, 2, 0); /* leaves its prompt's blocks in the cache */
    client_expect(&cached, FINISH_LENGTH);
    const routing_shape shape = engine_routing(e);
    cr_expect_eq(routing_token_bytes(&shape), FAKE_LAYERS * FAKE_TOP_K);
    fake_router_hold(&router);
    for (uint32_t i = 0; i < 4; i++) {
        client_init(&c[i], 12, 30, 0);
        c[i].wants_routed = c[i].params->routed_experts = i != 3;
        c[i].params->ignore_eos = true;
        cr_assert_eq(client_submit(e, &c[i]), MOE_OK, "%s", c[i].error);
    }
    fake_router_release(&router);
    for (uint32_t i = 0; i < 4; i++) {
        client_expect(&c[i], FINISH_LENGTH);
        cr_expect_eq(c[i].routed, i != 3 ? c[i].total - 1 : 0);
        if (i != 3) cr_expect_eq(c[i].cached_tokens, 0);
    }
    cr_expect_eq(router.refused, 0, "%s", router.refusal);
}

Test(engine, an_abort_ends_a_sequence_that_waits_or_runs_and_no_other)
{
    start_ready();
    fake_router_hold(&router);
    static client c[7];
    for (uint32_t i = 0; i < 7; i++) { /* four run, three wait */
        client_go(e, &c[i], 4, 12, i);
        if (i == 0) fake_router_wait_held(&router);
    }
    engine_abort(e, c[0].id); /* runs */
    engine_abort(e, c[6].id); /* waits */
    engine_abort(e, c[6].id);
    engine_abort(e, 999999); /* never was */
    fake_router_release(&router);
    client_expect(&c[0], FINISH_ABORT);
    cr_expect_leq(c[0].total, 5);
    client_expect(&c[6], FINISH_ABORT);
    cr_expect_eq(c[6].total, 4);
    for (uint32_t i = 1; i < 6; i++) {
        client_expect(&c[i], FINISH_LENGTH);
    }
    engine_abort(e, c[1].id); /* ended already */
    static client after;
    client_go(e, &after, 4, 2, 1);
    client_expect(&after, FINISH_LENGTH);
    cr_expect_eq(router.refused, 0, "%s", router.refusal);
}

Test(engine, a_full_queue_refuses_and_takes_again_when_there_is_room)
{
    router.max_num_seqs = 1;
    fake_router_serve(&router);
    engine_config config = default_config();
    config.max_waiting = 3;
    cr_expect_neq(engine_start(&e, &config, &eb), MOE_EBUSY);
    UNTIL(engine_ready(e, NULL, 0));
    fake_router_hold(&router);
    static client c[5], refused;
    client_go(e, &c[0], 4, 2, 0);
    fake_router_wait_held(&router);
    cr_expect_eq(engine_reserve(e, 4), MOE_EBUSY, "all of a request or nothing");
    cr_expect_eq(engine_reserve(e, 2), MOE_OK);
    cr_expect_eq(engine_reserve(e, 2), MOE_EBUSY);
    client_go(e, &c[1], 4, 2, 1); /* uses one of the two */
    engine_unreserve(e, 1);
    cr_expect_eq(engine_reserve(e, 2), MOE_OK);
    client_go(e, &c[2], 4, 2, 2);
    client_go(e, &c[3], 4, 2, 3);
    cr_expect_eq(engine_reserve(e, 1), MOE_EBUSY);
    /* Without a reservation the scheduler's own limit holds: max_waiting and the running ones. */
    client_go(e, &c[4], 4, 2, 4);
    client_init(&refused, 4, 2, 9);
    cr_expect_eq(client_submit(e, &refused), MOE_EBUSY);
    cr_expect_eq(refused.id, 0);
    fake_router_release(&router);
    for (uint32_t i = 0; i < 5; i++) {
        client_expect(&c[i], FINISH_LENGTH);
    }
    UNTIL(engine_reserve(e, 3) == MOE_OK);
    engine_unreserve(e, 100); /* more than was reserved */
    cr_expect_eq(engine_reserve(e, 3), MOE_OK);
}

Test(engine, impossible_sequences_are_refused_with_the_reason)
{
    start_engine();
    static client c;
    client_init(&c, 4, 2, 0);
    cr_expect_eq(client_submit(e, &c), MOE_ECLOSED, "no router was seen yet");
    cr_expect_eq(engine_reserve(e, 1), MOE_ECLOSED);
    cr_expect_eq(engine_max_model_len(e), 0);
    char detail[64];
    cr_expect(!engine_ready(e, detail, sizeof detail));
    cr_expect_str_neq(detail, "");
    engine_abort(e, 5); /* before there is a queue of aborts */
    fake_router_serve(&router);
    UNTIL(engine_ready(e, detail, sizeof detail));
    client_init(&c, 64, 2, 0);
    cr_expect_eq(client_submit(e, &c), MOE_ERANGE);
    cr_expect_not_null(strstr(c.error, "64"), "%s", c.error);
    client_init(&c, 0, 2, 0);
    cr_expect_eq(client_submit(e, &c), MOE_ERANGE);
}

Test(engine, a_router_killed_in_a_step_is_waited_for_and_every_token_comes_once)
{
    start_ready();
    for (uint32_t round = 0; round < 3; round++) {
        static client c[6];
        fake_router_hold(&router);
        for (uint32_t i = 0; i < 6; i++) {
            client_init(&c[i], 3 + 4 * i, 16, 10 * round + i);
            c[i].wants_prompt_logprobs = c[i].params->prompt_logprobs = i % 2;
            if (i % 2) c[i].params->num_logprobs = 0, c[i].wants_logprobs = true;
            c[i].params->ignore_eos = true;
            cr_assert_eq(client_submit(e, &c[i]), MOE_OK);
        }
        for (uint32_t step = 0; step < 5 * round; step++) {
            fake_router_wait_held(&router);
            fake_router_pass(&router);
        }
        fake_router_wait_held(&router);
        fake_router_kill(&router);
        UNTIL(!engine_ready(e, NULL, 0));
        fake_router_restart(&router);
        for (uint32_t i = 0; i < 6; i++) {
            client_expect(&c[i], FINISH_LENGTH);
        }
    }
    cr_expect_eq(router.refused, 0, "%s", router.refusal);
}

Test(engine, a_step_lost_by_a_living_router_is_run_again)
{
    start_ready();
    static client c[3];
    /* Not looked at, as when the fleet is not ready: the router never sees that step's number. */
    router.fail = RPC_UNAVAILABLE;
    for (uint32_t i = 0; i < 3; i++) {
        client_go(e, &c[i], 20, 8, i);
    }
    for (uint32_t i = 0; i < 3; i++) {
        client_expect(&c[i], FINISH_LENGTH);
    }
    /* Computed, but answered as lost, again and again. */
    pthread_mutex_lock(&router.lock);
    router.lose_every = 11;
    pthread_mutex_unlock(&router.lock);
    for (uint32_t i = 0; i < 3; i++) {
        client_init(&c[i], 8, 24, 10 + i);
        c[i].params->ignore_eos = true;
        cr_assert_eq(client_submit(e, &c[i]), MOE_OK);
    }
    for (uint32_t i = 0; i < 3; i++) {
        client_expect(&c[i], FINISH_LENGTH);
    }
    cr_expect_eq(router.refused, 0, "%s", router.refusal);
}

Test(engine, a_router_that_is_not_ready_is_waited_for_with_its_reason)
{
    router.ready = false;
    fake_router_serve(&router);
    start_engine();
    char detail[64] = "";
    UNTIL(!engine_ready(e, detail, sizeof detail) && strstr(detail, "1 of 2 workers") != NULL);
    static client c;
    client_go(e, &c, 4, 2, 0); /* its limits are known: it may queue */
    pthread_mutex_lock(&router.lock);
    router.ready = true;
    pthread_mutex_unlock(&router.lock);
    client_expect(&c, FINISH_LENGTH);
    cr_expect_null(engine_refusal(e));
}

Test(engine, a_refused_step_ends_its_sequences_with_the_reason_and_nothing_else)
{
    start_ready();
    for (uint32_t round = 0; round < 3; round++) {
        static client c, next;
        pthread_mutex_lock(&router.lock);
        router.fail = RPC_INVALID_ARGUMENT;
        pthread_mutex_unlock(&router.lock);
        client_go(e, &c, 4, 5, round);
        client_expect(&c, FINISH_ERROR);
        cr_expect_not_null(strstr(c.error, "told to fail"), "%s", c.error);
        client_go(e, &next, 4, 5, round);
        client_expect(&next, FINISH_LENGTH);
    }
    cr_expect_eq(router.refused, 0, "%s", router.refusal);
}

Test(engine, an_answer_that_does_not_fit_is_an_error_and_no_crash)
{
    start_ready();
    for (int how = SPOIL_NOTHING + 1; how < SPOIL_COUNT_OF_KINDS; how++) {
        static client c, next;
        pthread_mutex_lock(&router.lock);
        router.spoil = (fake_spoil)how;
        pthread_mutex_unlock(&router.lock);
        client_init(&c, 6, 5, (uint64_t)how);
        c.wants_logprobs = c.wants_prompt_logprobs = c.params->prompt_logprobs = true;
        c.wants_routed = c.params->routed_experts = true;
        c.params->num_logprobs = 2;
        cr_assert_eq(client_submit(e, &c), MOE_OK);
        UNTIL(atomic_load(&c.ended) > 0);
        cr_expect_eq(c.finish, FINISH_ERROR, "spoiled as %d: finish %d", how, c.finish);
        cr_expect_eq(c.wrong, 0, "spoiled as %d: %s", how, c.first_wrong);
        client_go(e, &next, 4, 5, (uint64_t)how);
        client_expect(&next, FINISH_LENGTH);
    }
    cr_expect_eq(router.refused, 0, "%s", router.refusal);
}

static void
expect_refusal(const char *part)
{
    fake_router_serve(&router);
    start_engine();
    UNTIL(engine_refusal(e) != NULL);
    cr_expect_not_null(strstr(engine_refusal(e), part), "%s", engine_refusal(e));
    cr_expect(!engine_ready(e, NULL, 0));
    engine_stop(e);
    engine_free(e);
    e = NULL;
    fake_router_kill(&router);
}

Test(engine, a_router_of_another_version_model_or_without_limits_is_refused)
{
    router.version = "0.0.0-other";
    expect_refusal("0.0.0-other");
    router.version = CONCLAVE_VERSION;
    router.fingerprint = 8;
    expect_refusal("another model");
    router.fingerprint = 7;
    router.max_model_len = 0;
    expect_refusal("max_model_len");
}

Test(engine, a_router_that_comes_back_with_other_limits_is_refused)
{
    start_ready();
    fake_router_kill(&router);
    router.max_num_seqs = 2;
    fake_router_restart(&router);
    UNTIL(engine_refusal(e) != NULL);
    cr_expect_not_null(strstr(engine_refusal(e), "other limits"), "%s", engine_refusal(e));
    static client c; /* main ends the process now; whoever submits is answered all the same */
    client_go(e, &c, 4, 5, 0);
    engine_stop(e);
    client_check(&c, FINISH_ABORT);
    engine_free(e);
    e = NULL;
}

Test(engine, stopping_ends_every_sequence_even_when_the_router_never_answers)
{
    start_ready();
    fake_router_hold(&router);
    static client c[20];
    for (uint32_t i = 0; i < 20; i++) {
        client_go(e, &c[i], 1 + i, 5, i);
    }
    fake_router_wait_held(&router);
    engine_stop(e);
    for (uint32_t i = 0; i < 20; i++) {
        client_check(&c[i], FINISH_ABORT);
    }
    static client late;
    client_init(&late, 4, 2, 0);
    cr_expect_eq(client_submit(e, &late), MOE_ECLOSED);
    engine_abort(e, c[0].id);
    cr_expect(!engine_ready(e, NULL, 0));
    engine_free(e);
    e = NULL;
}

Test(engine, stopping_works_at_any_moment)
{
    for (uint32_t i = 0; i < 12; i++) {
        if (i % 3 == 1) fake_router_serve(&router);
        start_engine();
        static client c[3];
        uint32_t count = 0;
        if (i % 3 == 1 && i % 2) {
            UNTIL(engine_ready(e, NULL, 0));
            while (count < 3)
                client_go(e, &c[count], 4, 40, count), count++;
            UNTIL(atomic_load(&c[0].heard) >= i);
        }
        engine_stop(e);
        for (uint32_t k = 0; k < count; k++) {
            cr_expect_eq(c[k].wrong, 0, "%s", c[k].first_wrong);
            cr_expect_eq(atomic_load(&c[k].ended), 1);
        }
        engine_free(e);
        e = NULL;
        if (router.server != NULL) fake_router_kill(&router);
    }
}

/* ---- many threads ---- */

#define THREADS 8
#define PER_THREAD 24

typedef struct load_thread {
    pthread_t thread;
    uint64_t seed;
    client clients[PER_THREAD];
    bool submitted[PER_THREAD];
} load_thread;

static void *
load_main(void *arg)
{
    load_thread *t = arg;
    for (uint32_t i = 0; i < PER_THREAD; i++) {
        const uint64_t draw = hash_combine(t->seed, i);
        client *c = &t->clients[i];
        client_init(c, 1 + (uint32_t)(draw % 30), 1 + (uint32_t)(draw >> 8) % 20, draw % 5);
        c->stop_after = draw >> 16 & 7 ? 0 : 3;
        c->wants_prompt_logprobs = c->params->prompt_logprobs = (draw >> 20 & 7) == 0;
        if (c->wants_prompt_logprobs) c->params->num_logprobs = 0, c->wants_logprobs = true;
        errbuf why;
        seq_id id;
        const bool reserved = engine_reserve(e, 1) == MOE_OK;
        const moe_err err =
            engine_submit(e, c->tokens, c->prompt_len, c->params, client_sink, c, &id, &why);
        if (err) {
            if (reserved) engine_unreserve(e, 1);
            free(c->params);
            continue;
        }
        t->submitted[i] = true;
        if ((draw >> 24 & 3) == 0) engine_abort(e, id);
        if ((draw >> 26 & 3) == 0) UNTIL(atomic_load(&c->ended) > 0);
    }
    return NULL;
}

static void
run_load(bool lossy, bool stop_early)
{
    static load_thread threads[THREADS];
    memset(threads, 0, sizeof threads);
    router.kv_block_count = 24;
    if (lossy) router.lose_every = 23;
    start_ready();
    for (uint32_t i = 0; i < THREADS; i++) {
        threads[i].seed = i + 100 * lossy + 200 * stop_early;
        cr_assert_eq(pthread_create(&threads[i].thread, NULL, load_main, &threads[i]), 0);
    }
    if (stop_early) {
        UNTIL(atomic_load(&threads[0].clients[2].heard) > 0);
        engine_stop(e);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i].thread, NULL);
    }
    for (uint32_t i = 0; i < THREADS * PER_THREAD; i++) {
        client *c = &threads[i / PER_THREAD].clients[i % PER_THREAD];
        if (!threads[i / PER_THREAD].submitted[i % PER_THREAD]) continue;
        UNTIL(atomic_load(&c->ended) > 0);
        cr_expect_eq(c->wrong, 0, "%u broken promises, first: %s", c->wrong, c->first_wrong);
        cr_expect_eq(atomic_load(&c->ended), 1);
        cr_expect_neq(c->finish, FINISH_ERROR, "%s", c->error);
        if (c->finish == FINISH_LENGTH) cr_expect_eq(c->total, c->prompt_len + c->max_tokens);
    }
    cr_expect_eq(router.refused, 0, "%s", router.refusal);
    if (!stop_early) engine_stop(e);
    engine_free(e);
    e = NULL;
}

Test(engine, many_threads_submit_and_abort_and_each_sequence_ends_once)
{
    run_load(false, false);
}

Test(engine, many_threads_over_a_router_that_loses_steps)
{
    run_load(true, false);
}

Test(engine, stopping_while_many_threads_submit_ends_each_sequence_once)
{
    run_load(false, true);
}
