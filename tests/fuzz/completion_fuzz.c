/* completion_fuzz: bodies of /v1/completions, through parsing and a short made-up generation.
 *
 * A body that parses must keep the promises of completion_request.h, and what its choices print
 * must be JSON. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "frontend/choice.h"
#include "tests/support/paths.h"

#define CONTEXT 512
#define TOKENS 24

static tokenizer *tok;
static completion_limits limits;

static void
set_up(void)
{
    char path[512];
    errbuf eb = {""};
    if (tokenizer_load(&tok, test_path(path, sizeof path, "models/demo"), &eb) != MOE_OK) {
        fprintf(stderr, "%s\n", eb.text);
        exit(1);
    }
    limits = (completion_limits){
        .tok = tok, .model = "demo", .max_model_len = CONTEXT, .routing = {2, 2, 1}};
    completion_limits_measure(&limits);
}

static void
generate(const completion_request *r, const completion_prompt *prompt, uint32_t salt)
{
    choice c;
    token_logprobs lp = {.logprob = -1, .top_count = 3, .top_ids = {7, 400, 3}};
    choice_init(&c, r, prompt, tok, 0, 0, 1u << 20);
    const uint8_t routed[CONTEXT * 4] = {0};
    choice_push(&c, &(gen_event){.kind = GEN_ROUTED,
                                 .routed = routed,
                                 .routed_count = prompt->count + salt % 9});
    for (uint32_t i = 0; i < TOKENS; i++) {
        const gen_event event = {.kind = GEN_TOKEN,
                                 .token = (salt * 31 + i * 97) % (i % 2 ? 259 : 4100),
                                 .logprobs = i % 5 ? &lp : NULL,
                                 .finish = i + 1 == TOKENS ? FINISH_LENGTH : FINISH_NONE};
        if (choice_push(&c, &event)) break;
    }
    assert(c.finish != FINISH_NONE);
    strbuf out;
    strbuf_init(&out, 16u << 20);
    choice_take(&c, &out);
    /* Not json_parse(): it refuses U+0000, which a byte token may well be. */
    cJSON *root = cJSON_ParseWithLength(strbuf_text(&out), out.len);
    assert(root != NULL && !out.failed);
    cJSON_Delete(root);
    strbuf_fini(&out);
    choice_fini(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (tok == NULL) set_up();
    completion_request r;
    api_error error;
    if (!completion_request_parse(&r, &limits, (const char *)data, size, &error)) {
        assert(error.status >= 400 && error.message[0] != '\0');
        return 0;
    }
    assert(r.prompt_count >= 1 && r.n >= 1 && r.prompt_count * r.n <= COMPLETION_SEQUENCES_MAX);
    for (uint32_t i = 0; i < r.prompt_count; i++) {
        const completion_prompt *p = &r.prompts[i];
        assert(p->count >= 1 && p->max_tokens >= 1 && p->count + p->max_tokens <= CONTEXT);
        if (i < 2) generate(&r, p, p->ids[p->count - 1]);
    }
    completion_request_fini(&r);
    return 0;
}
