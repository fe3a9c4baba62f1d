/* http: every route, every error a client can cause, and who is let in. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frontend/parking.h"
#include "tests/frontend/http_fixture.h"
#include "tests/support/npy.h"
#include "tests/support/paths.h"

#define COMPLETIONS "/v1/completions"

TestSuite(http, .timeout = 60);

static void
report(const char *what, const char *why)
{
    cr_expect(false, "%s: %s", what, why);
}

static openai_counts
run_golden(const fixture *f, openai_target target)
{
    char path[512];
    target.base_url = f->url;
    target.model = FIXTURE_MODEL;
    target.max_model_len = 4096;
    target.report = report;
    return openai_run_cases(golden_path(path, sizeof path, "openai/cases.json"), &target);
}

Test(http, answers_every_golden_case_of_its_routes)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){0}, (http_config){0});
    const openai_counts plain = run_golden(&f, (openai_target){0});
    cr_expect_geq(plain.passed, 12);
    cr_expect_eq(plain.failed, 0);
    fixture_stop(&f);
}

Test(http, answers_the_faults_of_chat_requests_when_put_to_completions)
{
    const char *const keys[] = {"first-key", "second-key"};
    fixture f;
    fixture_start(&f, (fake_engine_options){0},
                  (http_config){.api_keys = keys, .api_key_count = 2});
    const openai_counts c =
        run_golden(&f, (openai_target){.transpose = true, .api_key = "second-key"});
    cr_expect_geq(c.passed, 24, "%u", c.passed);
    cr_expect_eq(c.failed, 0);
    fixture_stop(&f);
}

Test(http, says_429_and_when_to_retry_if_the_queue_is_full)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){.queue_max = 2, .held = true}, (http_config){0});
    const int fd = fixture_post(&f, "{\"prompt\":\"a\",\"n\":2}");
    cr_assert(fake_engine_wait_submitted(f.engine, 2));
    const openai_counts c = run_golden(&f, (openai_target){.transpose = true, .overloaded = true});
    cr_expect_eq(c.passed, 1);
    cr_expect_eq(fake_engine_reserved(f.engine), 0);
    fake_engine_unhold(f.engine);
    char buf[8192] = "";
    cr_expect(fixture_read_until(fd, buf, sizeof buf, "\"usage\""));
    close(fd);
    fixture_stop(&f);
}

static void
expect_error(const fixture *f, const char *body, long status, const char *param,
             const char *const words[3])
{
    cJSON *root = fixture_json(f, COMPLETIONS, body, status);
    const cJSON *error = cJSON_GetObjectItem(root, "error");
    const char *got = cJSON_GetStringValue(cJSON_GetObjectItem(error, "param"));
    const char *message = cJSON_GetStringValue(cJSON_GetObjectItem(error, "message"));
    cr_assert_not_null(message, "%s", body);
    cr_expect(param == NULL ? got == NULL : got != NULL && strcmp(got, param) == 0,
              "%s: param is %s", body, got ? got : "null");
    for (int i = 0; i < 3 && words[i] != NULL; i++)
        cr_expect(strstr(message, words[i]) != NULL, "%s: no %s in: %s", body, words[i], message);
    cJSON_Delete(root);
}

Test(http, names_the_field_the_value_and_the_limit)
{
    static const struct {
        const char *body, *param, *words[3];
        long status;
    } cases[] = {
        {"{\"prompt\":\"a\",\"temperature\":-0.1}", "temperature", {"-0.1", "0", "2"}, 400},
        {"{\"prompt\":\"a\",\"temperature\":2.5}", "temperature", {"2.5", "2"}, 400},
        {"{\"prompt\":\"a\",\"temperature\":\"hot\"}", "temperature", {"\"hot\""}, 400},
        {"{\"prompt\":\"a\",\"temperature\":1e999}", "temperature", {"inf"}, 400},
        {"{\"prompt\":\"a\",\"top_p\":0}", "top_p", {"above 0", "not 0"}, 400},
        {"{\"prompt\":\"a\",\"top_p\":1.5}", "top_p", {"1.5", "1"}, 400},
        {"{\"prompt\":\"a\",\"min_p\":2}", "min_p", {"2", "1"}, 400},
        {"{\"prompt\":\"a\",\"top_k\":-2}", "top_k", {"-2", "-1"}, 400},
        {"{\"prompt\":\"a\",\"top_k\":1.5}", "top_k", {"1.5", "integer"}, 400},
        {"{\"prompt\":\"a\",\"presence_penalty\":3}", "presence_penalty", {"3", "2"}, 400},
        {"{\"prompt\":\"a\",\"frequency_penalty\":-3}", "frequency_penalty", {"-3", "-2"}, 400},
        {"{\"prompt\":\"a\",\"repetition_penalty\":0}", "repetition_penalty", {"above 0"}, 400},
        {"{\"prompt\":\"a\",\"seed\":\"x\"}", "seed", {"\"x\""}, 400},
        {"{\"prompt\":\"a\",\"max_tokens\":0}", "max_tokens", {"from 1", "not 0"}, 400},
        {"{\"prompt\":\"a\",\"max_tokens\":4096}", "max_tokens", {"4096", "4098"}, 400},
        {"{\"prompt\":\"a\",\"min_tokens\":17}", "min_tokens", {"17", "16"}, 400},
        {"{\"prompt\":\"a\",\"n\":0}", "n", {"from 1 to 128", "not 0"}, 400},
        {"{\"prompt\":\"a\",\"n\":129}", "n", {"129", "128"}, 400},
        {"{\"prompt\":\"a\",\"best_of\":2}", "best_of", {"2", "1"}, 400},
        {"{\"prompt\":\"a\",\"logprobs\":21}", "logprobs", {"21", "20"}, 400},
        {"{\"prompt\":\"a\",\"logprobs\":true}", "logprobs", {"true"}, 400},
        {"{\"prompt\":\"a\",\"echo\":1}", "echo", {"not 1"}, 400},
        {"{\"prompt\":\"a\",\"stream\":\"yes\"}", "stream", {"\"yes\""}, 400},
        {"{\"prompt\":\"a\",\"stream_options\":{}}", "stream_options", {"stream is true"}, 400},
        {"{\"prompt\":\"a\",\"stream\":true,\"stream_options\":[]}",
         "stream_options",
         {"an array"},
         400},
        {"{\"prompt\":\"a\",\"stream\":true,\"stream_options\":{\"include_usage\":2}}",
         "stream_options",
         {"include_usage"},
         400},
        {"{\"prompt\":\"a\",\"suffix\":\"x\"}", "suffix", {"not supported"}, 400},
        {"{\"prompt\":\"a\",\"stop\":\"\"}", "stop", {"1 to 256", "not 0"}, 400},
        {"{\"prompt\":\"a\",\"stop\":[1]}", "stop", {"not 1"}, 400},
        {"{\"prompt\":\"a\",\"stop\":[\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\","
         "\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\"]}",
         "stop",
         {"16"},
         400},
        {"{\"prompt\":\"a\",\"stop_token_ids\":[4096]}", "stop_token_ids", {"4096", "4095"}, 400},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"x\":1}}", "logit_bias", {"\"x\""}, 400},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"4096\":1}}", "logit_bias", {"4096", "4095"}, 400},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"7\":101}}", "logit_bias", {"101", "100"}, 400},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"7\":1,\"07\":2}}", "logit_bias", {"7 twice"}, 400},
        {"{\"prompt\":\"a\",\"logit_bias\":[]}", "logit_bias", {"an array"}, 400},
        {"{}", "prompt", {"missing"}, 400},
        {"{\"prompt\":null}", "prompt", {"missing"}, 400},
        {"{\"prompt\":[]}", "prompt", {"empty"}, 400},
        {"{\"prompt\":[[]]}", "prompt", {"no tokens"}, 400},
        {"{\"prompt\":{}}", "prompt", {"an object"}, 400},
        {"{\"prompt\":[\"a\",1]}", "prompt", {"not 1"}, 400},
        {"{\"prompt\":[1,\"a\"]}", "prompt", {"\"a\""}, 400},
        {"{\"prompt\":[\"a\",[1]]}", "prompt", {"an array"}, 400},
        {"{\"prompt\":[[1],\"a\"]}", "prompt", {"\"a\""}, 400},
        {"{\"prompt\":[1,4096]}", "prompt", {"4096", "4095"}, 400},
        {"{\"prompt\":[1,-1]}", "prompt", {"-1"}, 400},
        {"{\"prompt\":[1,1.5]}", "prompt", {"1.5"}, 400},
        {"{\"prompt\":[\"a\",\"b\",\"c\",\"d\",\"e\"],\"n\":128}", "prompt", {"640", "512"}, 400},
        {"{\"model\":\"gpt\",\"prompt\":\"a\"}", "model", {"\"gpt\"", "\"demo\""}, 404},
        {"{\"model\":1,\"prompt\":\"a\"}", "model", {"not 1"}, 400},
        {"{\"model\": ", NULL, {"JSON"}, 400},
        {"[1]", NULL, {"object"}, 400},
        {"", NULL, {"JSON"}, 400},
        {"{\"prompt\":\"\xff\"}", NULL, {"UTF-8", "offset 11"}, 400},
    };
    fixture f;
    fixture_start(&f, (fake_engine_options){0}, (http_config){0});
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect_error(&f, cases[i].body, cases[i].status, cases[i].param, cases[i].words);
    fixture_stop(&f);
}

Test(http, takes_limits_themselves_and_null_for_absent)
{
    static const char *const bodies[] = {
        "{\"prompt\":\"a\",\"temperature\":2,\"top_p\":1,\"min_p\":1,\"top_k\":0,\"n\":1,"
        "\"best_of\":1,\"logprobs\":0,\"seed\":-5,\"user\":\"u\",\"x\":1}",
        "{\"prompt\":\"a\",\"temperature\":null,\"max_tokens\":null,\"stop\":null,\"seed\":null,"
        "\"logit_bias\":null,\"stream_options\":null,\"suffix\":null,\"model\":null,\"n\":null}",
        "{\"prompt\":\"\",\"max_tokens\":1}",
        "{\"prompt\":\"a\",\"logit_bias\":{\"0\":-100,\"4095\":100},\"stop_token_ids\":[]}",
        "{\"prompt\":\"a\",\"n\":128,\"max_tokens\":1,\"seed\":9223372036854774000}",
        "{\"prompt\":[[1,2],[3]],\"stop\":[],\"max_tokens\":2}",
    };
    fixture f;
    fixture_start(&f, (fake_engine_options){0}, (http_config){0});
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++)
        cJSON_Delete(fixture_json(&f, COMPLETIONS, bodies[i], 200));
    fixture_stop(&f);
}

Test(http, lets_nobody_in_without_a_key_but_to_health)
{
    static const struct {
        const char *method, *path;
    } routes[] = {{"GET", "/v1/models"},       {"GET", "/version"},       {"GET", "/metrics"},
                  {"POST", "/v1/completions"}, {"POST", "/tokenize"},     {"POST", "/detokenize"},
                  {"GET", "/nothing"},         {"GET", "/v1/completions"}};
    static const char *const wrong[] = {NULL, "", "k", "key-onf", "key-one ", "key-one2"};
    const char *const keys[] = {"key-one", "key-two"};
    fixture f;
    fixture_start(&f, (fake_engine_options){0},
                  (http_config){.api_keys = keys, .api_key_count = 2});
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        const char *body = routes[i].method[0] == 'P' ? "{}" : NULL;
        for (size_t k = 0; k < sizeof wrong / sizeof wrong[0]; k++) {
            http_reply r = http_call(f.url, routes[i].method, routes[i].path, body, wrong[k]);
            cr_expect_eq(r.status, 401, "%s: %ld", routes[i].path, r.status);
            cr_expect(strstr(r.body, "\"error\"") != NULL);
            http_reply_fini(&r);
        }
        http_reply r = http_call(f.url, routes[i].method, routes[i].path, body, "key-two");
        cr_expect_neq(r.status, 401, "%s", routes[i].path);
        http_reply_fini(&r);
    }
    cJSON_Delete(fixture_json(&f, "/health", NULL, 200));
    fixture_stop(&f);
}

Test(http, refuses_unusable_configurations)
{
    const char *const empty[] = {""};
    errbuf eb = {""};
    http_server *s;
    fixture f;
    fixture_start(&f, (fake_engine_options){0}, (http_config){0});
    http_config bad = {.model = "m", .api_keys = empty, .api_key_count = 1};
    cr_expect_eq(http_start(&s, &bad, f.engine, f.tok, &eb), MOE_EINVAL);
    bad = (http_config){.model = "m", .tls_cert = "x"};
    cr_expect_eq(http_start(&s, &bad, f.engine, f.tok, &eb), MOE_EINVAL);
    bad = (http_config){.model = "m", .port = http_port(f.server)};
    cr_expect_eq(http_start(&s, &bad, f.engine, f.tok, &eb), MOE_EIO);
    cr_expect_null(s);
    fixture_stop(&f);
}

Test(http, is_unhealthy_until_the_engine_is_ready)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){.unready = "2 of 3 workers are missing"},
                  (http_config){0});
    http_reply r = http_call(f.url, "GET", "/health", NULL, NULL);
    cr_expect_eq(r.status, 503);
    cr_expect(strstr(r.body, "2 of 3 workers") != NULL, "%s", r.body);
    http_reply_fini(&r);
    r = http_call(f.url, "POST", COMPLETIONS, "{\"prompt\":\"a\"}", NULL);
    cr_expect_eq(r.status, 503);
    cr_expect_str_not_empty(r.retry_after);
    http_reply_fini(&r);
    fake_engine_set_ready(f.engine, true);
    cJSON_Delete(fixture_json(&f, "/health", NULL, 200));
    cJSON_Delete(fixture_json(&f, COMPLETIONS, "{\"prompt\":\"a\"}", 200));
    fixture_stop(&f);
}

Test(http, turns_text_to_ids_and_back)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){0}, (http_config){0});
    cJSON *with = fixture_json(&f, "/tokenize", "{\"prompt\":\"Once upon a time\"}", 200);
    cJSON *without = fixture_json(
        &f, "/tokenize", "{\"prompt\":\"Once upon a time\",\"add_special_tokens\":false}", 200);
    const int count = cJSON_GetObjectItem(with, "count")->valueint;
    cr_expect_eq(cJSON_GetObjectItem(without, "count")->valueint, count - 1);
    cr_expect_eq(cJSON_GetArraySize(cJSON_GetObjectItem(with, "tokens")), count);
    cr_expect_eq(cJSON_GetObjectItem(with, "max_model_len")->valueint, 4096);
    char *body = cJSON_PrintUnformatted(without);
    cJSON *back = fixture_json(&f, "/detokenize", body, 200);
    cr_expect_str_eq(cJSON_GetObjectItem(back, "prompt")->valuestring, "Once upon a time");
    free(body);
    cJSON_Delete(with);
    cJSON_Delete(without);
    cJSON_Delete(back);

    static const char *const bad[][2] = {
        {"/tokenize", "{}"},
        {"/tokenize", "{\"prompt\":[1]}"},
        {"/tokenize", "{\"prompt\":\"a\",\"add_special_tokens\":1}"},
        {"/tokenize", "no"},
        {"/detokenize", "{}"},
        {"/detokenize", "{\"tokens\":\"a\"}"},
        {"/detokenize", "{\"tokens\":[4096]}"}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cJSON_Delete(fixture_json(&f, bad[i][0], bad[i][1], 400));
    fixture_stop(&f);
}

static void
print_more(void *user, strbuf *out)
{
    strbuf_printf(out, "conclave:more{of=\"%s\"} 42\n", (const char *)user);
}

Test(http, prints_metrics_and_what_others_have_to_add)
{
    fixture f;
    static char mine[] = "mine";
    fixture_start(&f, (fake_engine_options){0},
                  (http_config){.more_metrics = print_more, .more_user = mine});
    cJSON_Delete(fixture_json(&f, COMPLETIONS, "{\"prompt\":[1,5],\"max_tokens\":3}", 200));
    cJSON_Delete(fixture_json(&f, COMPLETIONS, "{}", 400));
    http_reply r = http_call(f.url, "GET", "/metrics", NULL, NULL);
    cr_expect_str_eq(r.content_type, "text/plain; version=0.0.4");
    static const char *const lines[] = {
        "vllm:prompt_tokens_total 2\n",
        "vllm:generation_tokens_total 3\n",
        "vllm:request_success_total{finished_reason=\"length\"} 1\n",
        "vllm:time_to_first_token_seconds_count 1\n",
        "vllm:inter_token_latency_seconds_count 2\n",
        "vllm:time_per_output_token_seconds_count 2\n",
        "vllm:e2e_request_latency_seconds_count 1\n",
        "conclave:http_responses_total{code=\"200\"} 1\n",
        "conclave:http_responses_total{code=\"400\"} 1\n",
        "\nconclave:more{of=\"mine\"} 42\n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
        cr_expect(strstr(r.body, lines[i]) != NULL, "no %s in %s", lines[i], r.body);
    http_reply_fini(&r);
    fixture_stop(&f);
}

Test(http, refuses_bodies_beyond_the_limit_and_drops_what_it_refuses)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){0}, (http_config){.body_bytes_max = 1000});
    char *big = malloc(40u << 20);
    for (size_t bytes = 1000; bytes <= (32u << 20); bytes = bytes * 4 + 1) {
        snprintf(big, 64, "{\"prompt\":\"a\",\"max_tokens\":1,\"x\":\"");
        const size_t head = strlen(big);
        memset(big + head, 'x', bytes - head - 2);
        memcpy(big + bytes - 2, "\"}", 3);
        http_reply r = http_call(f.url, "POST", COMPLETIONS, big, NULL);
        cr_expect_eq(r.status, bytes <= 1000 ? 200 : 413, "%zu bytes: %ld", bytes, r.status);
        http_reply_fini(&r);
        r = http_call(f.url, "POST", "/nothing", big, NULL);
        cr_expect_eq(r.status, 404, "%zu bytes: %ld", bytes, r.status);
        http_reply_fini(&r);
    }
    free(big);
    fixture_stop(&f);
}

Test(http, gives_an_exact_text_for_a_known_reply)
{
    fixture f;
    uint32_t count;
    tokenizer *tok = fixture_tokenizer();
    uint32_t *ids = fixture_encode(tok, "Hello wörld 🙂, bye", &count);
    fixture_start(&f, (fake_engine_options){.reply = ids, .reply_count = count, .cached_tokens = 2},
                  (http_config){0});
    cJSON *root = fixture_json(&f, COMPLETIONS, "{\"prompt\":\"Say\",\"max_tokens\":64}", 200);
    const cJSON *choice = cJSON_GetObjectItem(root, "choices")->child;
    cr_expect_str_eq(cJSON_GetObjectItem(choice, "text")->valuestring, " Hello wörld 🙂, bye");
    cr_expect_str_eq(cJSON_GetObjectItem(choice, "finish_reason")->valuestring, "stop");
    cr_expect(cJSON_IsNull(cJSON_GetObjectItem(choice, "stop_reason")));
    const cJSON *usage = cJSON_GetObjectItem(root, "usage");
    cr_expect_eq(cJSON_GetObjectItem(usage, "completion_tokens")->valueint, (int)count + 1);
    const cJSON *details = cJSON_GetObjectItem(usage, "prompt_tokens_details");
    cr_expect_eq(cJSON_GetObjectItem(details, "cached_tokens")->valueint, 2);
    cJSON_Delete(root);

    char *text =
        fixture_text(&f, "{\"prompt\":\"Say\",\"max_tokens\":64,\"stop\":[\"zz\",\"d 🙂\"]}");
    cr_expect_str_eq(text, " Hello wörl");
    free(text);
    text = fixture_text(&f, "{\"prompt\":\"Say\",\"max_tokens\":64,\"echo\":true,\"stop\":\"w\","
                            "\"include_stop_str_in_output\":true}");
    cr_expect_str_eq(text, "Say Hello w");
    free(text);
    fixture_stop(&f);
    tokenizer_free(tok);
    free(ids);
}

Test(http, keeps_a_seed_and_draws_another_otherwise)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){0}, (http_config){0});
    const char *seeded = "{\"prompt\":\"a\",\"seed\":7,\"max_tokens\":5}",
               *unseeded = "{\"prompt\":\"a\",\"max_tokens\":5}";
    char *a = fixture_text(&f, seeded), *b = fixture_text(&f, seeded);
    cr_expect_str_eq(a, b);
    cr_expect_eq(fake_engine_last_params(f.engine).seed, 7);
    free(a);
    free(b);
    a = fixture_text(&f, unseeded);
    const uint64_t first = fake_engine_last_params(f.engine).seed;
    b = fixture_text(&f, unseeded);
    cr_expect_neq(first, fake_engine_last_params(f.engine).seed);
    free(a);
    free(b);
    cJSON_Delete(fixture_json(&f, COMPLETIONS, "{\"prompt\":[\"a\",\"b\"],\"n\":3}", 200));
    cr_expect_eq(fake_engine_last_params(f.engine).choice, 2);
    fixture_stop(&f);
}

Test(http, queues_a_request_whole_or_not_at_all)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){.refuse_from = 3, .held = true}, (http_config){0});
    http_reply r = http_call(f.url, "POST", COMPLETIONS, "{\"prompt\":\"a\",\"n\":4}", NULL);
    cr_expect_eq(r.status, 503);
    http_reply_fini(&r);
    cr_expect(fake_engine_wait_running(f.engine, 0));
    cr_expect_eq(fake_engine_reserved(f.engine), 0);
    fixture_stop(&f);
}

Test(http, remembers_a_wake_up_that_comes_before_the_wait)
{
    parking p;
    parking_init(&p, (struct MHD_Connection *)&p); /* never reached */
    parking_wake(&p);
    cr_expect_not(parking_park(&p));
    parking_close(&p);
    cr_expect_not(parking_park(&p));
    parking_fini(&p);
}

Test(http, reports_an_engine_error_as_500)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){.fail_at = 3}, (http_config){0});
    http_reply r = http_call(f.url, "POST", COMPLETIONS, "{\"prompt\":\"a\",\"n\":2}", NULL);
    cr_expect_eq(r.status, 500);
    cr_expect(strstr(r.body, "told to fail") != NULL, "%s", r.body);
    http_reply_fini(&r);
    fixture_stop(&f);
}

static void
expect_routed(const cJSON *choice, unsigned first, unsigned tokens)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(choice, "routed_experts"));
    cr_assert_not_null(text);
    npy a = npy_read(text);
    cr_expect_eq(a.tokens, tokens);
    cr_expect_eq(a.layers, 3);
    cr_expect_eq(a.top_k, 2);
    for (unsigned t = 0; t < a.tokens; t++)
        for (unsigned i = 0; i < 6; i++)
            cr_expect_eq(npy_id(&a, t, i), fake_engine_expert(first + t, i), "token %u, %u", t, i);
    free(a.file);
}

Test(http, gives_the_experts_of_each_token_to_those_who_ask)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){.routing = {3, 2, 1}}, (http_config){0});
    cJSON *root = fixture_json(&f, COMPLETIONS,
                               "{\"prompt\":[1,5,9],\"max_tokens\":4,\"n\":2,\"ignore_eos\":true,"
                               "\"return_routed_experts\":true}",
                               200);
    const cJSON *choice, *choices = cJSON_GetObjectItem(root, "choices");
    cr_expect_eq(cJSON_GetArraySize(choices), 2);
    cJSON_ArrayForEach(choice, choices)
    {
        expect_routed(choice, 0, 6); /* all but the last, which was only sampled */
    }
    cJSON_Delete(root);
    root = fixture_json(&f, COMPLETIONS,
                        "{\"prompt\":[1,5,9],\"max_tokens\":1,\"return_routed_experts\":true,"
                        "\"routed_experts_prompt_start\":2}",
                        200);
    expect_routed(cJSON_GetObjectItem(root, "choices")->child, 2, 1);
    cJSON_Delete(root);
    root = fixture_json(&f, COMPLETIONS, "{\"prompt\":[1,5,9],\"max_tokens\":4}", 200);
    cr_expect_null(
        cJSON_GetObjectItem(cJSON_GetObjectItem(root, "choices")->child, "routed_experts"));
    cJSON_Delete(root);
    fixture_stop(&f);
}

Test(http, gives_them_with_the_last_event_of_a_stream)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){.routing = {3, 2, 1}}, (http_config){0});
    http_reply r = http_call(f.url, "POST", COMPLETIONS,
                             "{\"prompt\":[1,5,9],\"max_tokens\":3,\"ignore_eos\":true,"
                             "\"stream\":true,\"return_routed_experts\":true}",
                             NULL);
    cr_expect_eq(r.status, 200);
    unsigned events = 0, with = 0;
    for (const char *at = r.body; (at = strstr(at, "data: {")) != NULL; events++) {
        at += 6;
        cJSON *event = cJSON_ParseWithLength(at, strcspn(at, "\n"));
        const cJSON *choice = cJSON_GetObjectItem(event, "choices")->child;
        const bool last = !cJSON_IsNull(cJSON_GetObjectItem(choice, "finish_reason"));
        if (last)
            expect_routed(choice, 0, 5);
        else
            cr_expect_null(cJSON_GetObjectItem(choice, "routed_experts"));
        with += last;
        cJSON_Delete(event);
    }
    cr_expect_eq(events, 3);
    cr_expect_eq(with, 1);
    http_reply_fini(&r);
    fixture_stop(&f);
}

Test(http, tells_what_the_engine_says_when_it_is_well)
{
    fixture f;
    fixture_start(&f, (fake_engine_options){0}, (http_config){0});
    cJSON *root = fixture_json(&f, "/health", NULL, 200);
    cr_expect_str_eq(cJSON_GetStringValue(cJSON_GetObjectItem(root, "status")), "ok");
    cr_expect(cJSON_IsString(cJSON_GetObjectItem(root, "detail")));
    cJSON_Delete(root);
    fixture_stop(&f);
}
