/* eplb: equal to the reference on every golden case; a case worked by hand; each refusal. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "router/eplb.h"
#include "tests/support/golden_json.h"
#include "tests/support/paths.h"

TestSuite(eplb, .timeout = 60);

static uint32_t
member_u32(const cJSON *object, const char *key)
{
    return (uint32_t)golden_member(object, key)->valuedouble;
}

static void
expect_row(const cJSON *row, const uint32_t *got, uint32_t n, const char *what, int id,
           uint32_t layer)
{
    cr_assert_eq(cJSON_GetArraySize(row), (int)n);
    const cJSON *item = row->child;
    for (uint32_t i = 0; i < n; i++, item = item->next) {
        if ((uint32_t)item->valuedouble != got[i])
            cr_assert_fail("case %d layer %u %s[%u]: %u, expected %g", id, layer, what, i, got[i],
                           item->valuedouble);
    }
}

static void
check_log2phy(const cJSON *rows, const eplb_shape *s, const uint32_t *phy2log,
              const uint32_t *phyrank, const uint32_t *logcnt, int id, uint32_t layer)
{
    uint32_t stride = 0;
    for (uint32_t e = 0; e < s->num_experts; e++)
        if (logcnt[e] > stride) stride = logcnt[e];
    uint32_t *log2phy = malloc((size_t)s->num_experts * stride * sizeof *log2phy);
    cr_assert_not_null(log2phy);
    eplb_log2phy(s, phy2log, phyrank, stride, log2phy);
    const cJSON *row = rows->child;
    for (uint32_t e = 0; e < s->num_experts; e++, row = row->next) {
        expect_row(row, log2phy + (size_t)e * stride, logcnt[e], "log2phy", id, layer);
        for (uint32_t r = logcnt[e]; r < stride; r++)
            cr_assert_eq(log2phy[(size_t)e * stride + r], EPLB_NONE);
    }
    free(log2phy);
}

static void
check_case(const cJSON *c)
{
    const int id = (int)member_u32(c, "id");
    const eplb_shape s = {.num_layers = member_u32(c, "num_layers"),
                          .num_experts = member_u32(c, "num_logical_experts"),
                          .num_replicas = member_u32(c, "num_replicas"),
                          .num_groups = member_u32(c, "num_groups"),
                          .num_nodes = member_u32(c, "num_nodes"),
                          .num_gpus = member_u32(c, "num_gpus")};
    const size_t experts = (size_t)s.num_layers * s.num_experts;
    const size_t slots = (size_t)s.num_layers * s.num_replicas;
    float *weights = malloc(experts * sizeof *weights);
    uint32_t *words = malloc((experts + 2 * slots) * sizeof *words);
    cr_assert(weights != NULL && words != NULL);
    uint32_t *logcnt = words, *phy2log = words + experts, *phyrank = words + experts + slots;
    size_t i = 0;
    for (const cJSON *row = golden_member(c, "weights")->child; row != NULL; row = row->next) {
        for (const cJSON *item = row->child; item != NULL; item = item->next)
            weights[i++] = (float)item->valuedouble;
    }
    cr_assert_eq(i, experts);

    errbuf eb;
    cr_assert_eq(eplb_rebalance_experts(&s, weights, phy2log, phyrank, logcnt, &eb), MOE_OK,
                 "case %d: %s", id, eb.text);
    for (uint32_t l = 0; l < s.num_layers; l++) {
        const uint32_t *p = phy2log + (size_t)l * s.num_replicas;
        const uint32_t *n = logcnt + (size_t)l * s.num_experts;
        expect_row(cJSON_GetArrayItem(golden_member(c, "phy2log"), (int)l), p, s.num_replicas,
                   "phy2log", id, l);
        expect_row(cJSON_GetArrayItem(golden_member(c, "logcnt"), (int)l), n, s.num_experts,
                   "logcnt", id, l);
        check_log2phy(cJSON_GetArrayItem(golden_member(c, "log2phy"), (int)l), &s, p,
                      phyrank + (size_t)l * s.num_replicas, n, id, l);
    }
    free(words);
    free(weights);
}

Test(eplb, equals_the_reference_on_every_golden_case)
{
    char dir[512];
    golden_path(dir, sizeof dir, "eplb");
    cJSON *root = golden_json_load(dir, "cases.json");
    const cJSON *cases = golden_member(root, "cases");
    cr_assert_gt(cJSON_GetArraySize(cases), 0);
    for (const cJSON *c = cases->child; c != NULL; c = c->next)
        check_case(c);
    cJSON_Delete(root);
}

/* Loads 8 4 2 2, six slots, two devices. Expert 0 is split (4 4), then expert 0 or 1 at 4: the
 * first maximum is 0 (3 replicas of 8/3). Packing: 4 | 2.67 2.67 2.67 2 2 by weight. */
Test(eplb, replicates_the_heaviest_and_packs_to_the_lightest)
{
    const float weights[] = {8, 4, 2, 2};
    const eplb_shape s = {1, 4, 6, 1, 1, 2};
    uint32_t phy2log[6], phyrank[6], logcnt[4];
    cr_assert_eq(eplb_rebalance_experts(&s, weights, phy2log, phyrank, logcnt, NULL), MOE_OK);
    const uint32_t want_counts[] = {3, 1, 1, 1}, want_slots[] = {1, 0, 3, 0, 0, 2};
    const uint32_t want_ranks[] = {0, 2, 0, 0, 1, 0};
    cr_expect_arr_eq(logcnt, want_counts, sizeof want_counts);
    cr_expect_arr_eq(phy2log, want_slots, sizeof want_slots);
    cr_expect_arr_eq(phyrank, want_ranks, sizeof want_ranks);
}

Test(eplb, refuses_sizes_that_do_not_divide_and_loads_that_are_none)
{
    float weights[] = {1, 2, 3, 4};
    uint32_t phy2log[8], phyrank[8], logcnt[4];
    const struct {
        eplb_shape shape;
        moe_err err;
    } cases[] = {
        {{1, 4, 4, 1, 1, 2}, MOE_OK},
        {{0, 4, 4, 1, 1, 2}, MOE_ERANGE},
        {{EPLB_LAYER_MAX + 1, 4, 4, 1, 1, 2}, MOE_ERANGE},
        {{1, 0, 4, 1, 1, 2}, MOE_ERANGE},
        {{1, 4, 4, 0, 1, 2}, MOE_ERANGE},
        {{1, 4, 4, 1, 0, 2}, MOE_ERANGE},
        {{1, 4, 4, 1, 1, 0}, MOE_ERANGE},
        {{1, 4, 3, 1, 1, 3}, MOE_ERANGE},
        {{1, 4, 5, 1, 1, 2}, MOE_EINVAL},
        {{1, 4, 6, 2, 2, 3}, MOE_EINVAL},
        {{1, 4, 6, 3, 3, 3}, MOE_EINVAL},
        {{1, 4, 6, 3, 2, 3}, MOE_OK}, /* falls back to one group on one node */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        cr_expect_eq(
            eplb_rebalance_experts(&cases[i].shape, weights, phy2log, phyrank, logcnt, NULL),
            cases[i].err, "case %zu", i);
    const float bad[] = {-1, NAN, INFINITY};
    for (size_t i = 0; i < 3; i++) {
        weights[2] = bad[i];
        cr_expect_eq(
            eplb_rebalance_experts(&cases[0].shape, weights, phy2log, phyrank, logcnt, NULL),
            MOE_EINVAL);
    }
}
