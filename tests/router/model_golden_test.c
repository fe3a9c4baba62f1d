/* The whole model against Hugging Face transformers: every golden checkpoint, all positions'
 * logits, gates, residuals, greedy text. */
#include <criterion/criterion.h>

#include <dirent.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/golden_json.h"
#include "tests/support/mini_fleet.h"
#include "tests/support/paths.h"

/* Bounds for an f32 path, from the golden set's description. */
#define LOGITS_TOLERANCE 1e-4f
#define HIDDEN_TOLERANCE 1e-4f
#define GATE_TOLERANCE 2e-5f
#define GREEDY_GAP_MIN 1e-3

TestSuite(model_golden, .timeout = 300);

static float
max_diff(const float *a, const float *b, size_t n)
{
    float worst = 0;
    for (size_t i = 0; i < n; i++) {
        const float d = fabsf(a[i] - b[i]);
        if (!(d <= worst)) worst = d;
    }
    return worst;
}

static void
check_probe(const char *name, const char *dir, const cJSON *c, const model_config *config,
            const uint32_t *gate_ids, const float *gate_weights, const float *hidden, uint32_t t)
{
    size_t n;
    int32_t *want_ids = golden_tensor(dir, golden_member(c, "gate_ids"), &n);
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) {
        wrong += (uint32_t)want_ids[i] != gate_ids[i];
    }
    cr_expect_eq(wrong, 0, "%s T=%u: %zu of %zu gate ids differ", name, t, wrong, n);
    free(want_ids);

    float *want = golden_tensor(dir, golden_member(c, "gate_weights"), &n);
    float diff = max_diff(want, gate_weights, n);
    cr_expect_leq(diff, GATE_TOLERANCE, "%s T=%u: gate weights differ by %g", name, t,
                  (double)diff);
    free(want);

    want = golden_tensor(dir, golden_member(c, "hidden"), &n);
    for (uint32_t l = 0; l < config->num_layers; l++) {
        const size_t h = config->hidden_size;
        diff = max_diff(want + l * h, hidden + ((size_t)l * t + t - 1) * h, h);
        cr_expect_leq(diff, HIDDEN_TOLERANCE, "%s T=%u: residual after layer %u differs by %g",
                      name, t, l, (double)diff);
    }
    free(want);
}

static void
ignore_logits(void *user, uint32_t seq, uint32_t token_index, const float *logits)
{
    (void)user, (void)seq, (void)token_index, (void)logits;
}

static void
check_greedy(mini_fleet *m, const char *name, const uint32_t *prompt, uint32_t t,
             const cJSON *greedy)
{
    const cJSON *tokens = golden_member(greedy, "tokens"), *gaps = golden_member(greedy, "gaps");
    uint32_t count, *want = golden_ids(tokens, &count), *got = malloc(count * sizeof *got);
    mini_greedy(m, 0, prompt, t, count, got);
    for (uint32_t i = 0; i < count; i++) {
        if (cJSON_GetArrayItem(gaps, (int)i)->valuedouble < GREEDY_GAP_MIN) break;
        cr_expect_eq(got[i], want[i], "%s T=%u: greedy token %u is %u, not %u", name, t, i, got[i],
                     want[i]);
    }
    free(want);
    free(got);
}

static float
check_case(mini_fleet *m, const char *name, const char *dir, const cJSON *c)
{
    const model_config *config = m->config;
    uint32_t t, *prompt = golden_ids(golden_member(c, "prompt"), &t);
    const size_t rows = (size_t)config->num_layers * t;
    uint32_t *gate_ids = malloc(rows * config->top_k * sizeof *gate_ids);
    float *gate_weights = malloc(rows * config->top_k * sizeof *gate_weights);
    float *hidden = malloc(rows * config->hidden_size * sizeof *hidden);
    float *logits = malloc((size_t)t * config->vocab_size * sizeof *logits);

    const transformer_probe probe = {gate_ids, gate_weights, hidden};
    const step_seq seq = mini_seq(m, 1, prompt, 0, t);
    mini_step(m, &seq, 1, ignore_logits, NULL, &probe);
    check_probe(name, dir, c, config, gate_ids, gate_weights, hidden, t);

    size_t n;
    float *want = golden_tensor(dir, golden_member(c, "logits"), &n);
    cr_assert_eq(n, (size_t)t * config->vocab_size);
    mini_logits(m, 0, prompt, t, 0, logits);
    const float diff = max_diff(want, logits, n);
    cr_expect_leq(diff, LOGITS_TOLERANCE, "%s T=%u: logits differ by %g", name, t, (double)diff);
    check_greedy(m, name, prompt, t, golden_member(c, "greedy"));

    free(want);
    free(prompt);
    free(gate_ids);
    free(gate_weights);
    free(hidden);
    free(logits);
    return diff;
}

Test(model_golden, f32_path_agrees_with_transformers_on_every_checkpoint)
{
    char models[512], dir[1024];
    golden_path(models, sizeof models, "models");
    DIR *d = opendir(models);
    cr_assert_not_null(d, "%s", models);
    unsigned model_count = 0, case_count = 0;
    for (struct dirent *entry; (entry = readdir(d)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        snprintf(dir, sizeof dir, "%s/%s", models, entry->d_name);
        cJSON *root = golden_json_load(dir, "cases.json");
        mini_fleet m;
        mini_fleet_start(
            &m, &(mini_options){
                    .model_dir = dir, .workers = 2, .max_model_len = 256, .cpu_flags = UINT_MAX});
        float worst = 0;
        const cJSON *c;
        cJSON_ArrayForEach(c, golden_member(root, "cases"))
        {
            const float diff = check_case(&m, entry->d_name, dir, c);
            if (diff > worst) worst = diff;
            case_count++;
        }
        printf("%-10s largest logit difference %.2g\n", entry->d_name, (double)worst);
        mini_fleet_stop(&m);
        cJSON_Delete(root);
        model_count++;
    }
    closedir(d);
    printf("%u checkpoints, %u cases\n", model_count, case_count);
    cr_expect_gt(case_count, 0);
}
