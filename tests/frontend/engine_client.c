#include "tests/frontend/engine_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"

static void
wrong(client *c, const char *what)
{
    if (c->wrong++ == 0) snprintf(c->first_wrong, sizeof c->first_wrong, "%s", what);
}

static void
hear_prompt_logprobs(client *c, const gen_event *ev)
{
    if (c->total != c->prompt_len) wrong(c, "prompt logprobs after a token");
    if (ev->position != ++c->prompt_logprobs) wrong(c, "prompt logprobs out of order");
    if (ev->token != c->tokens[ev->position]) wrong(c, "another token's prompt logprobs");
    if (ev->logprobs == NULL || ev->logprobs->logprob != -(float)ev->position)
        wrong(c, "wrong prompt logprobs");
    if (ev->finish != FINISH_NONE) wrong(c, "an end with prompt logprobs");
}

static void
hear_routed(client *c, const gen_event *ev)
{
    if (!c->wants_routed) wrong(c, "experts that nobody asked for");
    if (ev->position > c->routed) wrong(c, "experts of a token are left out");
    if (ev->position + ev->routed_count > c->total)
        wrong(c, "experts of a token that is not there");
    for (uint32_t t = 0; t < ev->routed_count && c->wrong == 0; t++) {
        for (uint32_t i = 0; i < FAKE_LAYERS * FAKE_TOP_K; i++)
            if (ev->routed[t * FAKE_LAYERS * FAKE_TOP_K + i] !=
                fake_router_expert(c->tokens, ev->position + t + 1))
                wrong(c, "wrong experts");
    }
    if (ev->position + ev->routed_count > c->routed) c->routed = ev->position + ev->routed_count;
}

static void
hear_token(client *c, const gen_event *ev)
{
    if (c->wants_prompt_logprobs && c->prompt_logprobs + 1 != c->prompt_len)
        wrong(c, "a token before all prompt logprobs");
    if (ev->position != c->total) wrong(c, "a token out of place");
    if (c->wants_routed && c->routed != c->total) wrong(c, "a token before its history's experts");
    if (ev->token != fake_router_next(c->tokens, c->total)) wrong(c, "a wrong token");
    if (c->wants_logprobs != (ev->logprobs != NULL)) wrong(c, "logprobs or not");
    if (c->wants_logprobs && ev->logprobs->logprob != -(float)c->total) wrong(c, "wrong logprobs");
    if (c->total < FAKE_LEN_MAX) c->tokens[c->total++] = ev->token;
}

bool
client_sink(void *user, const gen_event *ev)
{
    client *c = user;
    if (atomic_load(&c->ended)) wrong(c, "an event after the last one");
    if (ev->kind == GEN_PROMPT_LOGPROBS) hear_prompt_logprobs(c, ev);
    if (ev->kind == GEN_ROUTED) hear_routed(c, ev);
    if (ev->kind == GEN_TOKEN) hear_token(c, ev);
    if (ev->kind == GEN_FINISH && ev->finish != FINISH_ABORT && ev->finish != FINISH_ERROR)
        wrong(c, "an end without a token");
    c->cached_tokens = ev->cached_tokens;
    const bool stop = ev->kind == GEN_TOKEN && ev->finish == FINISH_NONE && c->stop_after != 0 &&
                      c->total - c->prompt_len >= c->stop_after;
    const bool last = stop || ev->finish != FINISH_NONE;
    if (last) {
        c->finish = stop ? FINISH_STOP : ev->finish;
        c->unserved = ev->unserved;
        if (ev->error != NULL) snprintf(c->error, sizeof c->error, "%s", ev->error);
        memset(c->params, 0xee, sizeof *c->params);
        free(c->params);
        c->params = NULL;
    }
    atomic_fetch_add(&c->heard, 1);
    if (last) atomic_fetch_add(&c->ended, 1);
    return stop;
}

void
client_init(client *c, uint32_t prompt_len, uint32_t max_tokens, uint64_t seed)
{
    *c = (client){.prompt_len = prompt_len, .total = prompt_len, .max_tokens = max_tokens};
    c->params = calloc(1, sizeof *c->params);
    *c->params = (gen_params){.temperature = 1,
                              .top_p = 1,
                              .repetition_penalty = 1,
                              .max_tokens = max_tokens,
                              .num_logprobs = -1};
    for (uint32_t i = 0; i < prompt_len; i++) {
        c->tokens[i] = (uint32_t)(hash_combine(seed, i) % FAKE_VOCAB);
    }
}

moe_err
client_submit(engine *e, client *c)
{
    seq_id id;
    errbuf eb = {{0}};
    const moe_err err =
        engine_submit(e, c->tokens, c->prompt_len, c->params, client_sink, c, &id, &eb);
    if (err) {
        snprintf(c->error, sizeof c->error, "%s", eb.text);
        free(c->params);
        c->params = NULL;
    }
    c->id = id;
    return err;
}

void
client_go(engine *e, client *c, uint32_t prompt_len, uint32_t max_tokens, uint64_t seed)
{
    client_init(c, prompt_len, max_tokens, seed);
    cr_assert_eq(client_submit(e, c), MOE_OK, "%s", c->error);
}

void
client_check(const client *c, finish_reason finish)
{
    cr_expect_eq(c->wrong, 0, "%u broken promises, first: %s", c->wrong, c->first_wrong);
    cr_expect_eq(atomic_load(&c->ended), 1);
    cr_expect_eq(c->finish, finish, "finish %d: %s", c->finish, c->error);
}

void
client_expect(client *c, finish_reason finish)
{
    UNTIL(atomic_load(&c->ended) > 0);
    client_check(c, finish);
    if (finish == FINISH_LENGTH) cr_expect_eq(c->total - c->prompt_len, c->max_tokens);
}
