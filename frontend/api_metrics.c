#include "frontend/api_metrics.h"

#define COUNT_OF(array) (sizeof(array) / sizeof(array)[0])

static const double first_token_bounds[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                                            0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10,
                                            20,    40,    80,   160,  640,  2560};
static const double token_bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1,
                                      0.15,  0.2,    0.3,   0.4,  0.5,   0.75, 1,     2.5,
                                      5,     7.5,    10,    20,   40,    80};
static const double request_bounds[] = {0.05, 0.1, 0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,
                                        15,   20,  30,  40,  50,  60, 120, 240, 480, 960, 1920};

/* The last one stands for every other status. */
static const struct {
    int status;
    const char *labels;
} codes[API_METRICS_CODES] = {
    {200, "code=\"200\""}, {400, "code=\"400\""}, {401, "code=\"401\""}, {404, "code=\"404\""},
    {405, "code=\"405\""}, {411, "code=\"411\""}, {413, "code=\"413\""}, {429, "code=\"429\""},
    {499, "code=\"499\""}, {500, "code=\"500\""}, {503, "code=\"503\""}, {0, "code=\"other\""},
};

void
api_metrics_init(api_metrics *m, metrics *set)
{
    *m = (api_metrics){0};
    if (set == NULL) return;
    m->time_to_first_token = metrics_histogram(
        set, "vllm:time_to_first_token_seconds", NULL,
        "From the arrival of a request to the first token of a sequence, in seconds.",
        first_token_bounds, COUNT_OF(first_token_bounds));
    m->inter_token_latency = metrics_histogram(set, "vllm:inter_token_latency_seconds", NULL,
                                               "Between two tokens of a sequence, in seconds.",
                                               token_bounds, COUNT_OF(token_bounds));
    m->time_per_output_token =
        metrics_histogram(set, "vllm:time_per_output_token_seconds", NULL,
                          "The older name of vllm:inter_token_latency_seconds.", token_bounds,
                          COUNT_OF(token_bounds));
    m->e2e_latency = metrics_histogram(
        set, "vllm:e2e_request_latency_seconds", NULL,
        "From the arrival of a request to the last token of a sequence, in seconds.",
        request_bounds, COUNT_OF(request_bounds));
    static const struct {
        finish_reason finish;
        const char *labels;
    } reasons[] = {{FINISH_STOP, "finished_reason=\"stop\""},
                   {FINISH_LENGTH, "finished_reason=\"length\""},
                   {FINISH_ABORT, "finished_reason=\"abort\""},
                   {FINISH_ERROR, "finished_reason=\"error\""}};
    for (size_t i = 0; i < COUNT_OF(reasons); i++)
        m->success[reasons[i].finish] =
            metrics_counter(set, "vllm:request_success_total", reasons[i].labels,
                            "Sequences that ended, by why they ended.");
    m->prompt_tokens =
        metrics_counter(set, "vllm:prompt_tokens_total", NULL, "Tokens of all prompts taken in.");
    m->generation_tokens = metrics_counter(set, "vllm:generation_tokens_total", NULL,
                                           "Tokens generated for all sequences.");
    for (size_t i = 0; i < API_METRICS_CODES; i++)
        m->responses[i] = metrics_counter(set, "conclave:http_responses_total", codes[i].labels,
                                          "HTTP answers, by status; 499: the client had gone.");
}

void
api_metrics_response(api_metrics *m, int status)
{
    size_t i = 0;
    while (i + 1 < API_METRICS_CODES && codes[i].status != status)
        i++;
    metric_add(m->responses[i], 1);
}
