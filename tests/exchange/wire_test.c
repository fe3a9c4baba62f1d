/* wire: what the checks of headers, lists and limits let through and what not. */
#include <criterion/criterion.h>

#include <string.h>

#include "exchange/wire.h"

static const exchange_limits limits = {.micro_batch_max = 2,
                                       .token_max = 8,
                                       .num_layers = 3,
                                       .num_experts = 6,
                                       .top_k = 2,
                                       .hidden = 64,
                                       .dtype = DTYPE_F32};
static errbuf eb;

TestSuite(wire, .timeout = 10);

/* Three tokens, of which the four rows go to this worker. */
static wire_hdr
header(enum wire_kind kind, enum wire_mode mode)
{
    wire_hdr h = {.magic = WIRE_MAGIC,
                  .version = WIRE_VERSION,
                  .kind = kind,
                  .layer = 2,
                  .micro_batch = 1,
                  .mode = mode,
                  .token_count = 3,
                  .row_count = 4,
                  .expert_count = kind == WIRE_DISPATCH ? 2 : 0};
    if (mode == WIRE_TP) h.row_count = kind == WIRE_DISPATCH ? 6 : 3;
    return h;
}

Test(wire, a_header_lies_as_the_format_says)
{
    const wire_hdr h = {.magic = WIRE_MAGIC,
                        .version = 1,
                        .kind = 2,
                        .incarnation = 3,
                        .router_id = 4,
                        .row_count = 5,
                        .seq = 6,
                        .busy_ns = 7};
    unsigned char bytes[112];
    memcpy(bytes, &h, sizeof bytes);
    const unsigned char start[] = {'C', 'L', 'V', 'C', 1, 0, 2, 0, 3};
    cr_expect_eq(memcmp(bytes, start, sizeof start), 0);
    cr_expect_eq(bytes[40], 4);
    cr_expect_eq(bytes[68], 5);
    cr_expect_eq(bytes[76], 6);
    cr_expect_eq(bytes[80], 7);
}

Test(wire, good_headers_pass)
{
    const enum wire_kind kinds[] = {WIRE_DISPATCH, WIRE_RESULT};
    const enum wire_mode modes[] = {WIRE_EP, WIRE_TP};
    for (int k = 0; k < 2; k++) {
        for (int m = 0; m < 2; m++) {
            const wire_hdr h = header(kinds[k], modes[m]);
            cr_expect_eq(wire_hdr_check(&h, kinds[k], &limits, &eb), MOE_OK, "%s", eb.text);
        }
    }
    wire_hdr full = header(WIRE_DISPATCH, WIRE_EP); /* every count at its limit */
    full.token_count = 8;
    full.row_count = 16;
    full.expert_count = 6;
    full.router_id = ROUTER_MAX - 1;
    cr_expect_eq(wire_hdr_check(&full, WIRE_DISPATCH, &limits, &eb), MOE_OK, "%s", eb.text);
    wire_hdr refusal = {.magic = WIRE_MAGIC,
                        .version = WIRE_VERSION,
                        .kind = WIRE_RESULT,
                        .status = WIRE_STATUS_REFUSED};
    cr_expect_eq(wire_hdr_check(&refusal, WIRE_RESULT, &limits, &eb), MOE_OK, "%s", eb.text);
}

/* One field of a good header is set to a value; the check must name it. */
typedef struct bad_field {
    const char *name;
    size_t offset, bytes;
    uint64_t value;
    moe_err err;
} bad_field;

#define BAD(field, val, err)                                                                       \
    {                                                                                              \
#field, offsetof(wire_hdr, field), sizeof((wire_hdr *)0)->field, val, err                  \
    }

static void
expect_refused(enum wire_kind kind, enum wire_mode mode, const bad_field *bad, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        wire_hdr h = header(kind, mode);
        memcpy((char *)&h + bad[i].offset, &bad[i].value, bad[i].bytes < 8 ? bad[i].bytes : 8);
        eb.text[0] = '\0';
        cr_expect_eq(wire_hdr_check(&h, kind, &limits, &eb), bad[i].err, "%s = %llu", bad[i].name,
                     (unsigned long long)bad[i].value);
        cr_expect(strstr(eb.text, bad[i].name) != NULL, "%s: %s", bad[i].name, eb.text);
    }
}

Test(wire, each_bad_field_is_refused_by_name)
{
    const bad_field dispatch[] = {
        BAD(magic, 0, MOE_EMISMATCH),
        BAD(version, 2, MOE_EMISMATCH),
        BAD(kind, WIRE_RESULT, MOE_EINVAL),
        BAD(kind, 0, MOE_EINVAL),
        BAD(router_id, ROUTER_MAX, MOE_EINVAL),
        BAD(layer, 3, MOE_EINVAL),
        BAD(micro_batch, 2, MOE_EINVAL),
        BAD(micro_batch, UINT32_MAX, MOE_EINVAL),
        BAD(mode, 2, MOE_EINVAL),
        BAD(status, 1, MOE_EINVAL),
        BAD(token_count, 0, MOE_EINVAL),
        BAD(token_count, 9, MOE_EINVAL),
        BAD(token_count, UINT32_MAX, MOE_EINVAL),
        BAD(row_count, 0, MOE_EINVAL),
        BAD(row_count, 7, MOE_EINVAL), /* of 3 tokens * 2 */
        BAD(row_count, UINT32_MAX, MOE_EINVAL),
        BAD(expert_count, 0, MOE_EINVAL),
        BAD(expert_count, 5, MOE_EINVAL), /* of 4 rows */
        BAD(expert_count, UINT32_MAX, MOE_EINVAL),
        BAD(reserved, 1, MOE_EINVAL),
    };
    const bad_field result[] = {
        BAD(kind, WIRE_DISPATCH, MOE_EINVAL), BAD(status, WIRE_STATUS_REFUSED + 1, MOE_EINVAL),
        BAD(expert_count, 1, MOE_EINVAL),     BAD(row_count, 0, MOE_EINVAL),
        BAD(token_count, 0, MOE_EINVAL),
    };
    const bad_field tp_dispatch[] = {BAD(row_count, 5, MOE_EINVAL)};
    const bad_field tp_result[] = {BAD(row_count, 6, MOE_EINVAL), BAD(row_count, 2, MOE_EINVAL)};
    expect_refused(WIRE_DISPATCH, WIRE_EP, dispatch, sizeof dispatch / sizeof dispatch[0]);
    expect_refused(WIRE_RESULT, WIRE_EP, result, sizeof result / sizeof result[0]);
    expect_refused(WIRE_DISPATCH, WIRE_TP, tp_dispatch, 1);
    expect_refused(WIRE_RESULT, WIRE_TP, tp_result, 2);

    wire_hdr h = header(WIRE_RESULT, WIRE_EP); /* a refusal has no rows */
    h.status = WIRE_STATUS_REFUSED;
    cr_expect_eq(wire_hdr_check(&h, WIRE_RESULT, &limits, &eb), MOE_EINVAL);
}

static moe_err
check_lists(enum wire_mode mode, const wire_expert *experts, const uint32_t *slots)
{
    static uint64_t seen[1];
    wire_hdr h = header(WIRE_DISPATCH, mode);
    return wire_dispatch_check(&h, experts, slots, &limits, seen, &eb);
}

Test(wire, lists_that_break_a_rule_are_refused)
{
    static const struct {
        const char *what;
        wire_expert experts[2];
        uint32_t slots[4];
        moe_err err;
    } cases[] = {
        {"good", {{1, 2}, {5, 2}}, {0, 4, 2, 5}, MOE_OK},
        {"an expert too high", {{1, 2}, {6, 2}}, {0, 4, 2, 5}, MOE_EINVAL},
        {"experts that fall", {{5, 2}, {1, 2}}, {0, 4, 2, 5}, MOE_EINVAL},
        {"an expert twice", {{1, 2}, {1, 2}}, {0, 4, 2, 5}, MOE_EINVAL},
        {"an expert without rows", {{1, 0}, {5, 4}}, {0, 2, 4, 5}, MOE_EINVAL},
        {"too few rows", {{1, 2}, {5, 1}}, {0, 4, 2, 5}, MOE_EINVAL},
        {"too many rows", {{1, 2}, {5, 3}}, {0, 4, 2, 5}, MOE_EINVAL},
        {"rows that wrap around", {{1, UINT32_MAX}, {5, 5}}, {0, 4, 2, 5}, MOE_EINVAL},
        {"a slot too high", {{1, 2}, {5, 2}}, {0, 6, 2, 5}, MOE_EINVAL},
        {"slots of an expert that fall", {{1, 2}, {5, 2}}, {4, 0, 2, 5}, MOE_EINVAL},
        {"a slot twice for an expert", {{1, 2}, {5, 2}}, {0, 0, 2, 5}, MOE_EINVAL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_expect_eq(check_lists(WIRE_EP, cases[i].experts, cases[i].slots), cases[i].err, "%s",
                     cases[i].what);
    }
}

Test(wire, tp_lists_name_every_slot_once)
{
    const wire_expert experts[] = {{0, 3}, {2, 3}};
    const uint32_t all[] = {0, 3, 5, 1, 2, 4}, twice[] = {0, 3, 5, 1, 2, 3};
    cr_expect_eq(check_lists(WIRE_TP, experts, all), MOE_OK);
    cr_expect_eq(check_lists(WIRE_TP, experts, twice), MOE_EINVAL);
    cr_expect(strstr(eb.text, "repeats 3") != NULL, "%s", eb.text);
}

Test(wire, limits_have_limits)
{
    exchange_limits l = limits;
    cr_expect_eq(exchange_limits_check(&l, &eb), MOE_OK);
    uint32_t *const fields[] = {&l.micro_batch_max, &l.token_max, &l.num_layers,
                                &l.num_experts,     &l.top_k,     &l.hidden};
    const uint32_t max[] = {
        MICRO_BATCH_MAX,    EXCHANGE_TOKEN_MAX, EXCHANGE_LAYER_MAX, EXCHANGE_EXPERT_MAX, 6,
        EXCHANGE_HIDDEN_MAX};
    for (size_t i = 0; i < 6; i++) {
        const uint32_t values[] = {0, max[i] + 1, UINT32_MAX};
        for (size_t v = 0; v < 3; v++) {
            l = limits;
            *fields[i] = values[v];
            cr_expect_eq(exchange_limits_check(&l, &eb), MOE_ERANGE, "field %zu value %u", i,
                         values[v]);
        }
        l = limits;
        *fields[i] = max[i];
        cr_expect_eq(exchange_limits_check(&l, &eb), MOE_OK, "%s", eb.text);
    }
    l = limits;
    l.dtype = DTYPE_COUNT;
    cr_expect_eq(exchange_limits_check(&l, &eb), MOE_ERANGE);
}
