/* engine: every sequence gets its tokens once, in order, and exactly one last event, whatever
 * happens to the router. */
#include <criterion/criterion.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/futex.h"
#include "common/hash.h"
#include "frontend/engine_start.h"
#include "tests/frontend/fake_router.h"

#define WAIT_NS (20 * NS_PER_S)

static char dir[64], url[128];
static engine *e;

static void
setup(void)
{
    snprintf(dir, sizeof dir, "/tmp/engine-test-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    snprintf(url, sizeof url, "ipc://%s/r.sock", dir);
    e = NULL;
}

static void
teardown(void)
{
    if (e != NULL) engine_stop(e);
    engine_free(e);
    e = NULL;
    cr_expect_eq(rmdir(dir), 0, "something was left in the run directory");
}

TestSuite(engine, .init = setup, .fini = teardown, .timeout = 60);

static void
start_engine(uint32_t max_waiting)
{
    errbuf eb = {{0}};
    static const uint32_t eos[] = {2};
    cr_assert_eq(engine_start(&e,
                              &(engine_config){.router_url = url,
                                               .max_waiting = max_waiting,
                                               .prefix_caching = true,
                                               .model_fingerprint = 77,
                                               .vocab_size = FAKE_VOCAB,
                                               .eos_ids = eos,
                                               .eos_count = 1},
                              &eb),
                 MOE_OK, "%s", eb.text);
}

/* The engine goes first: nng can hang when a socket is closed while a message comes in
 * (proto/rpc_nng.h). */
static void
finish(fake_router *r)
{
    engine_stop(e);
    engine_free(e);
    e = NULL;
    fake_router_stop(r);
}

/* Poll a condition; the tests never sleep for a fixed time. */
#define WAIT_UNTIL(condition)                                                                      \
    do {                                                                                           \
        const uint64_t end = clock_now_ns() + WAIT_NS;                                             \
        while (!(condition) && clock_now_ns() < end)                                               \
            usleep(1000);                                                                          \
        cr_assert(condition);                                                                      \
    } while (0)

/* What one sequence's sink saw. */
typedef struct seen {
    gen_params params;
    uint32_t tokens[FAKE_MODEL_LEN], token_count;
    uint32_t prompt_logprobs;
    bool prompt_order_broken, after_end;
    uint32_t stop_after; /* the sink ends the sequence after so many tokens; 0 = never */
    finish_reason finish;
    char error[128];
    _Atomic uint32_t done;
} seen;

static bool
sink(void *user, const gen_event *event)
{
    seen *s = user;
    if (atomic_load(&s->done)) s->after_end = true;
    if (event->kind == GEN_PROMPT_LOGPROBS) {
        s->prompt_logprobs++;
        if (event->position != s->prompt_logprobs || s->token_count > 0 ||
            event->logprobs->logprob != -(float)event->position)
            s->prompt_order_broken = true;
        return false;
    }
    if (event->kind == GEN_TOKEN && s->token_count < FAKE_MODEL_LEN)
        s->tokens[s->token_count++] = event->token;
    const bool stop = s->stop_after != 0 && s->token_count == s->stop_after;
    if (event->error != NULL) snprintf(s->error, sizeof s->error, "%s", event->error);
    if (event->finish != FINISH_NONE || stop) {
        s->finish = event->finish;
        futex_bump(&s->done);
    }
    return stop;
}

static void
wait_done(seen *s)
{
    cr_assert(futex_wait_change(&s->done, 0, clock_now_ns() + WAIT_NS), "no last event");
}

static seen *
new_seen(uint32_t max_tokens)
{
    seen *s = calloc(1, sizeof *s);
    s->params = (gen_params){.temperature = 1,
                             .top_p = 1,
                             .repetition_penalty = 1,
                             .max_tokens = max_tokens,
                             .num_logprobs = -1};
    return s;
}

static moe_err
submit(seen *s, const uint32_t *prompt, uint32_t len, seq_id *id)
{
    errbuf eb = {{0}};
    seq_id ignored;
    return engine_submit(e, prompt, len, &s->params, sink, s, id ? id : &ignored, &eb);
}

static void
expect_tokens(const seen *s, const uint32_t *prompt, uint32_t len, uint32_t count)
{
    uint32_t want[FAKE_MODEL_LEN];
    fake_router_expect(prompt, len, count, want);
    cr_expect_eq(s->token_count, count);
    cr_expect_eq(memcmp(s->tokens, want, count * sizeof *want), 0, "other tokens than asked alone");
    cr_expect_not(s->after_end, "an event after the last one");
}

static const uint32_t prompt[50] = {1,  5,  9,  13, 17, 21, 25, 29, 33,
                                    37, 41, 45, 49, 53, 57, 61, 65};

Test(engine, a_sequence_gets_its_tokens_and_one_end)
{
    fake_router *r = fake_router_start(&(fake_router_options){url, 1, .fingerprint = 77});
    start_engine(8);
    WAIT_UNTIL(engine_ready(e, NULL, 0));
    cr_expect_eq(engine_max_model_len(e), FAKE_MODEL_LEN);
    seen *s = new_seen(7);
    cr_assert_eq(submit(s, prompt, 50, NULL), MOE_OK);
    wait_done(s);
    cr_expect_eq(s->finish, FINISH_LENGTH);
    expect_tokens(s, prompt, 50, 7);
    free(s);
    finish(r);
}

Test(engine, a_sink_can_end_its_sequence)
{
    fake_router *r = fake_router_start(&(fake_router_options){url, 1, .fingerprint = 77});
    start_engine(8);
    WAIT_UNTIL(engine_ready(e, NULL, 0));
    seen *s = new_seen(60);
    s->stop_after = 3;
    cr_assert_eq(submit(s, prompt, 5, NULL), MOE_OK);
    wait_done(s);
    expect_tokens(s, prompt, 5, 3);
    /* Stopping the engine would tell it again if it were still there. */
    finish(r);
    cr_expect_not(s->after_end);
    free(s);
}

Test(engine, prompt_logprobs_come_once_and_first_even_when_computed_again)
{
    /* 8 blocks of 16 tokens for four sequences of up to 80: somebody is preempted. */
    fake_router *r =
        fake_router_start(&(fake_router_options){url, 1, .kv_blocks = 8, .fingerprint = 77});
    start_engine(8);
    WAIT_UNTIL(engine_ready(e, NULL, 0));
    seen *s[4];
    for (uint32_t i = 0; i < 4; i++) {
        s[i] = new_seen(30);
        s[i]->params.prompt_logprobs = true;
        s[i]->params.num_logprobs = 0;
        cr_assert_eq(submit(s[i], prompt, 40 + i, NULL), MOE_OK);
    }
    for (uint32_t i = 0; i < 4; i++) {
        wait_done(s[i]);
        expect_tokens(s[i], prompt, 40 + i, 30);
        cr_expect_eq(s[i]->prompt_logprobs, 40 + i - 1);
        cr_expect_not(s[i]->prompt_order_broken);
        free(s[i]);
    }
    finish(r);
}

Test(engine, a_full_queue_refuses_and_reservations_count)
{
    start_engine(3); /* no router: nothing is known yet */
    cr_expect_eq(engine_reserve(e, 1), MOE_ECLOSED);
    fake_router *r =
        fake_router_start(&(fake_router_options){url, 1, .fingerprint = 77, .not_ready = true});
    WAIT_UNTIL(engine_max_model_len(e) != 0);
    cr_expect_not(engine_ready(e, NULL, 0));
    cr_expect_eq(engine_reserve(e, 4), MOE_EBUSY);
    cr_expect_eq(engine_reserve(e, 2), MOE_OK);
    seen *s = new_seen(5);
    cr_expect_eq(submit(s, prompt, 5, NULL), MOE_OK); /* uses one reservation */
    cr_expect_eq(engine_reserve(e, 2), MOE_EBUSY);
    cr_expect_eq(engine_reserve(e, 1), MOE_OK);
    engine_unreserve(e, 2);
    cr_expect_eq(engine_reserve(e, 2), MOE_OK);
    finish(r);
    cr_expect_eq(s->finish, FINISH_ABORT);
    free(s);
}

Test(engine, an_abort_ends_a_sequence_wherever_it_is)
{
    fake_router *r =
        fake_router_start(&(fake_router_options){url, 1, .fingerprint = 77, .not_ready = true});
    start_engine(8);
    WAIT_UNTIL(engine_max_model_len(e) != 0);
    seen *s = new_seen(60);
    seq_id id;
    cr_assert_eq(submit(s, prompt, 5, &id), MOE_OK);
    engine_abort(e, id);
    engine_abort(e, id); /* twice is harmless, as is an unknown one */
    engine_abort(e, 123456);
    wait_done(s);
    cr_expect_eq(s->finish, FINISH_ABORT);
    cr_expect_eq(s->token_count, 0);
    free(s);
    finish(r);
}

Test(engine, a_refused_step_ends_its_sequences_with_the_reason)
{
    fake_router *r =
        fake_router_start(&(fake_router_options){url, 1, .fingerprint = 77, .refuse_after = 3});
    start_engine(8);
    WAIT_UNTIL(engine_ready(e, NULL, 0));
    seen *s = new_seen(60);
    cr_assert_eq(submit(s, prompt, 5, NULL), MOE_OK);
    wait_done(s);
    cr_expect_eq(s->finish, FINISH_ERROR);
    cr_expect_not_null(strstr(s->error, "scripted refusal"), "%s", s->error);
    cr_expect_eq(s->token_count, 2);
    free(s);
    finish(r);
}

Test(engine, another_version_or_model_is_refused)
{
    fake_router *r =
        fake_router_start(&(fake_router_options){url, 1, .version = "9.9.9", .fingerprint = 77});
    start_engine(8);
    WAIT_UNTIL(engine_refusal(e) != NULL);
    cr_expect_not_null(strstr(engine_refusal(e), "9.9.9"), "%s", engine_refusal(e));
    cr_expect_not(engine_ready(e, NULL, 0));
    finish(r);

    r = fake_router_start(&(fake_router_options){url, 1, .fingerprint = 78});
    start_engine(8);
    WAIT_UNTIL(engine_refusal(e) != NULL);
    cr_expect_not_null(strstr(engine_refusal(e), "another model"), "%s", engine_refusal(e));
    finish(r);
}

/* ---- many threads ---- */

typedef struct client {
    pthread_t thread;
    uint64_t seed;
    uint32_t ended, wrong;
} client;

static void *
client_main(void *arg)
{
    client *c = arg;
    for (uint32_t i = 0; i < 30; i++) {
        const uint64_t draw = hash_combine(c->seed, i);
        const uint32_t len = 1 + (uint32_t)(draw % 40), count = 1 + (uint32_t)(draw >> 8) % 30;
        const bool abort = (draw >> 16) % 4 == 0;
        seen *s = new_seen(count);
        seq_id id;
        moe_err err;
        while ((err = submit(s, prompt, len, &id)) == MOE_EBUSY)
            usleep(500);
        if (err) {
            c->wrong++;
            free(s);
            continue;
        }
        if (abort) engine_abort(e, id);
        if (!futex_wait_change(&s->done, 0, clock_now_ns() + WAIT_NS)) {
            c->wrong++;
            return NULL; /* s leaks: the sink may still come */
        }
        uint32_t want[FAKE_MODEL_LEN];
        fake_router_expect(prompt, len, count, want);
        c->ended++;
        c->wrong += s->after_end || s->token_count > count || (!abort && s->token_count != count) ||
                    memcmp(s->tokens, want, s->token_count * sizeof *want) != 0;
        free(s);
    }
    return NULL;
}

Test(engine, many_clients_get_exactly_what_they_would_get_alone)
{
    fake_router *r =
        fake_router_start(&(fake_router_options){url, 1, .kv_blocks = 12, .fingerprint = 77});
    start_engine(4);
    WAIT_UNTIL(engine_ready(e, NULL, 0));
    client clients[8] = {{0}};
    for (uint32_t i = 0; i < 8; i++) {
        clients[i].seed = i;
        cr_assert_eq(pthread_create(&clients[i].thread, NULL, client_main, &clients[i]), 0);
    }
    for (uint32_t i = 0; i < 8; i++) {
        pthread_join(clients[i].thread, NULL);
        cr_expect_eq(clients[i].ended, 30);
        cr_expect_eq(clients[i].wrong, 0);
    }
    finish(r);
}
