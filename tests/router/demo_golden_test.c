/* The demo model on held-out text against transformers' fp32 results: an f32 path to the golden
 * set's bounds; bf16, int8 and int4 by KL divergence and perplexity. The figures are printed, so
 * that a regression shows as a number. */
#include <criterion/criterion.h>

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/golden_json.h"
#include "tests/support/mini_fleet.h"
#include "tests/support/paths.h"

#define WINDOWS 4
#define WINDOW_TOKENS 512

TestSuite(demo_golden, .timeout = 600);

typedef struct domain {
    int32_t *ids, *top1;
    float *nll, *logits;
    uint32_t (*positions)[2]; /* window, position */
    uint32_t position_count;
    double mean_nll, perplexity;
} domain;

typedef struct figures {
    double nll_sum, kl_sum;
    size_t nll_count, kl_count, top1_equal, top1_count;
    float worst_nll;
    double want_nll_sum;
} figures;

static void
load_domain(domain *d, const char *dir, const cJSON *item)
{
    size_t n;
    d->ids = golden_tensor(dir, golden_member(item, "ids"), &n);
    cr_assert_eq(n, WINDOWS * WINDOW_TOKENS);
    d->top1 = golden_tensor(dir, golden_member(item, "top1"), &n);
    d->nll = golden_tensor(dir, golden_member(item, "nll"), &n);
    d->logits = golden_tensor(dir, golden_member(item, "logits"), &n);
    const cJSON *positions = golden_member(item, "logit_positions");
    d->position_count = (uint32_t)cJSON_GetArraySize(positions);
    d->positions = malloc(d->position_count * sizeof *d->positions);
    for (uint32_t i = 0; i < d->position_count; i++) {
        const cJSON *pair = cJSON_GetArrayItem(positions, (int)i);
        d->positions[i][0] = (uint32_t)cJSON_GetArrayItem(pair, 0)->valuedouble;
        d->positions[i][1] = (uint32_t)cJSON_GetArrayItem(pair, 1)->valuedouble;
    }
}

static void
free_domain(domain *d)
{
    free(d->ids);
    free(d->top1);
    free(d->nll);
    free(d->logits);
    free(d->positions);
}

static double
log_sum_exp(const float *x, uint32_t n)
{
    double max = (double)x[0], sum = 0;
    for (uint32_t i = 1; i < n; i++) {
        if ((double)x[i] > max) max = (double)x[i];
    }
    for (uint32_t i = 0; i < n; i++) {
        sum += exp((double)x[i] - max);
    }
    return max + log(sum);
}

static double
kl_divergence(const float *want, const float *got, uint32_t n)
{
    const double a = log_sum_exp(want, n), b = log_sum_exp(got, n);
    double kl = 0;
    for (uint32_t i = 0; i < n; i++) {
        const double lp = (double)want[i] - a;
        kl += exp(lp) * (lp - ((double)got[i] - b));
    }
    return kl;
}

typedef struct window_sink {
    const domain *d;
    figures *f;
    uint32_t window, vocab;
    size_t golden_row; /* next of d->logits' rows */
} window_sink;

static void
measure_position(void *user, uint32_t seq, uint32_t t, const float *logits)
{
    (void)seq;
    window_sink *s = user;
    const int32_t *ids = s->d->ids + s->window * WINDOW_TOKENS;
    uint32_t best = 0;
    for (uint32_t i = 1; i < s->vocab; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    s->f->top1_equal += best == (uint32_t)s->d->top1[s->window * WINDOW_TOKENS + t];
    s->f->top1_count++;
    if (t + 1 < WINDOW_TOKENS) {
        const float want = s->d->nll[s->window * (WINDOW_TOKENS - 1) + t];
        const double nll = log_sum_exp(logits, s->vocab) - (double)logits[ids[t + 1]];
        s->f->nll_sum += nll;
        s->f->want_nll_sum += (double)want;
        s->f->nll_count++;
        const float diff = fabsf((float)nll - want);
        if (!(diff <= s->f->worst_nll)) s->f->worst_nll = diff;
    }
    for (uint32_t i = 0; i < s->d->position_count; i++) {
        if (s->d->positions[i][0] != s->window || s->d->positions[i][1] != t) continue;
        s->f->kl_sum += kl_divergence(s->d->logits + (size_t)i * s->vocab, logits, s->vocab);
        s->f->kl_count++;
    }
}

static figures
measure_dtype(const char *model_dir, moe_dtype dtype, moe_dtype kv_dtype)
{
    char dir[512];
    golden_path(dir, sizeof dir, "demo");
    cJSON *root = golden_json_load(dir, "windows.json");
    mini_fleet m;
    mini_fleet_start(&m, &(mini_options){.model_dir = model_dir,
                                         .expert_dtype = dtype,
                                         .attn_dtype = dtype,
                                         .kv_dtype = kv_dtype,
                                         .workers = 2,
                                         .threads = 2,
                                         .max_model_len = 512,
                                         .cpu_flags = UINT_MAX});
    figures total = {0};
    const cJSON *item;
    cJSON_ArrayForEach(item, golden_member(root, "domains"))
    {
        domain d;
        figures f = {0};
        load_domain(&d, dir, item);
        for (uint32_t w = 0; w < WINDOWS; w++) {
            window_sink sink = {&d, &f, w, m.config->vocab_size, 0};
            step_seq seq =
                mini_seq(&m, 0, (const uint32_t *)d.ids + w * WINDOW_TOKENS, 0, WINDOW_TOKENS);
            seq.want_all = true;
            mini_step(&m, &seq, 1, measure_position, &sink, NULL);
        }
        const double want = golden_member(item, "mean_nll")->valuedouble;
        printf("%s, cache %s %-12s mean NLL %.5f (golden %.5f), mean KL %.2e, top-1 agreement "
               "%.3f %%\n",
               dtype_name(dtype), dtype_name(kv_dtype), item->string,
               f.nll_sum / (double)f.nll_count, want, f.kl_sum / (double)f.kl_count,
               100.0 * (double)f.top1_equal / (double)f.top1_count);
        total.nll_sum += f.nll_sum;
        total.want_nll_sum += f.want_nll_sum;
        total.nll_count += f.nll_count;
        total.kl_sum += f.kl_sum;
        total.kl_count += f.kl_count;
        total.top1_equal += f.top1_equal;
        total.top1_count += f.top1_count;
        if (!(f.worst_nll <= total.worst_nll)) total.worst_nll = f.worst_nll;
        if (dtype == DTYPE_F32 && kv_dtype == DTYPE_F32)
            cr_expect_leq(fabs(f.nll_sum / (double)f.nll_count - want), 1e-4, "%s", item->string);
        free_domain(&d);
    }
    mini_fleet_stop(&m);
    cJSON_Delete(root);
    const double ratio = exp((total.nll_sum - total.want_nll_sum) / (double)total.nll_count) - 1;
    printf("%s, cache %s: mean KL %.3e, perplexity %+.4f %%, top-1 agreement %.3f %%, worst NLL "
           "difference %.2g\n",
           dtype_name(dtype), dtype_name(kv_dtype), total.kl_sum / (double)total.kl_count,
           100 * ratio, 100.0 * (double)total.top1_equal / (double)total.top1_count,
           (double)total.worst_nll);
    fflush(stdout);
    return total;
}

static double
perplexity_change(const figures *f)
{
    return fabs(exp((f->nll_sum - f->want_nll_sum) / (double)f->nll_count) - 1);
}

static const char *
demo_dir(char *buf, size_t size)
{
    return test_path(buf, size, "models/demo");
}

Test(demo_golden, f32_agrees_with_transformers_on_held_out_text)
{
    char dir[512];
    const figures f = measure_dtype(demo_dir(dir, sizeof dir), DTYPE_F32, DTYPE_F32);
    cr_expect_leq(f.worst_nll, 2e-3f);
    cr_expect_geq((double)f.top1_equal, 0.999 * (double)f.top1_count);
    cr_expect_leq(f.kl_sum / (double)f.kl_count, 1e-6);
}

Test(demo_golden, bf16_keeps_kl_below_2e_4_and_perplexity_within_a_thousandth)
{
    char dir[512];
    const figures f = measure_dtype(demo_dir(dir, sizeof dir), DTYPE_BF16, DTYPE_BF16);
    cr_expect_lt(f.kl_sum / (double)f.kl_count, 2e-4);
    cr_expect_lt(perplexity_change(&f), 0.001);
}

Test(demo_golden, int8_keeps_kl_below_2e_3_and_perplexity_within_half_a_percent)
{
    char dir[512];
    const figures f = measure_dtype(demo_dir(dir, sizeof dir), DTYPE_INT8, DTYPE_BF16);
    cr_expect_lt(f.kl_sum / (double)f.kl_count, 2e-3);
    cr_expect_lt(perplexity_change(&f), 0.005);
}

Test(demo_golden, an_int8_cache_alone_keeps_kl_below_1e_4_and_perplexity_within_a_thousandth)
{
    char dir[512];
    const figures f = measure_dtype(demo_dir(dir, sizeof dir), DTYPE_F32, DTYPE_INT8);
    cr_expect_lt(f.kl_sum / (double)f.kl_count, 1e-4);
    cr_expect_lt(perplexity_change(&f), 0.001);
}

Test(demo_golden, int4_keeps_kl_below_2e_2_and_perplexity_within_1_5_percent)
{
    char dir[512];
    const figures f = measure_dtype(demo_dir(dir, sizeof dir), DTYPE_INT4, DTYPE_BF16);
    cr_expect_lt(f.kl_sum / (double)f.kl_count, 2e-2);
    cr_expect_lt(perplexity_change(&f), 0.015);
}

typedef struct last_sink {
    float *logits;
    uint32_t vocab;
} last_sink;

static void
keep_last(void *user, uint32_t seq, uint32_t t, const float *logits)
{
    (void)seq, (void)t;
    const last_sink *s = user;
    memcpy(s->logits, logits, s->vocab * sizeof(float));
}

static void
check_prompt(mini_fleet *m, const char *dir, const cJSON *c)
{
    const model_config *config = m->config;
    uint32_t t, count, *ids = golden_ids(golden_member(c, "ids"), &t);
    const size_t rows = (size_t)config->num_layers * t * config->top_k;
    uint32_t *gate_ids = malloc(rows * sizeof *gate_ids);
    float *gate_weights = malloc(rows * sizeof *gate_weights);
    float *logits = malloc(config->vocab_size * sizeof *logits);
    last_sink sink = {logits, config->vocab_size};
    const transformer_probe probe = {gate_ids, gate_weights, NULL};
    step_seq seq = mini_seq(m, 0, ids, 0, t);
    seq.want_last = true;
    mini_step(m, &seq, 1, keep_last, &sink, &probe);

    size_t n;
    int32_t *want_ids = golden_tensor(dir, golden_member(c, "gate_ids"), &n);
    float *want_weights = golden_tensor(dir, golden_member(c, "gate_weights"), &n);
    for (size_t i = 0; i < n; i++) {
        cr_assert_eq(gate_ids[i], (uint32_t)want_ids[i], "gate id %zu", i);
        cr_assert_leq(fabsf(gate_weights[i] - want_weights[i]), 2e-5f, "gate weight %zu", i);
    }
    const double lse = log_sum_exp(logits, config->vocab_size);
    const cJSON *top;
    cJSON_ArrayForEach(top, golden_member(c, "top_logprobs"))
    {
        const uint32_t id = (uint32_t)golden_member(top, "id")->valuedouble;
        const double want = golden_member(top, "logprob")->valuedouble;
        cr_expect_leq(fabs((double)logits[id] - lse - want), 2e-3, "logprob of %u", id);
    }
    const cJSON *greedy = golden_member(c, "greedy"), *gaps = golden_member(greedy, "gaps");
    uint32_t *want = golden_ids(golden_member(greedy, "tokens"), &count);
    uint32_t *got = malloc(count * sizeof *got);
    mini_greedy(m, 1, ids, t, count, got);
    for (uint32_t i = 0; i < count; i++) {
        if (cJSON_GetArrayItem(gaps, (int)i)->valuedouble < 1e-3) break;
        cr_expect_eq(got[i], want[i], "greedy token %u", i);
    }
    free(got);
    free(want);
    free(want_ids);
    free(want_weights);
    free(ids);
    free(gate_ids);
    free(gate_weights);
    free(logits);
}

Test(demo_golden, prompts_route_and_continue_as_in_transformers)
{
    char dir[512], model[512];
    golden_path(dir, sizeof dir, "demo");
    cJSON *root = golden_json_load(dir, "prompts.json");
    mini_fleet m;
    mini_fleet_start(&m, &(mini_options){.model_dir = demo_dir(model, sizeof model),
                                         .workers = 3,
                                         .cpu_flags = UINT_MAX});
    const cJSON *c;
    unsigned count = 0;
    cJSON_ArrayForEach(
        c, golden_member(root, cJSON_HasObjectItem(root, "cases") ? "cases" : "prompts"))
    {
        check_prompt(&m, dir, c);
        count++;
    }
    cr_expect_gt(count, 0);
    mini_fleet_stop(&m);
    cJSON_Delete(root);
}
