/* json: what is accepted, and errors that say where or which key. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"

TestSuite(json, .timeout = 10);

/* From a heap copy of exactly len bytes, so that a read past the end is seen by the sanitizers. */
static moe_err
parse(const char *text, size_t len, cJSON **out, errbuf *eb)
{
    char *copy = malloc(len + (len == 0));
    memcpy(copy, text, len);
    const moe_err err = json_parse(copy, len, out, eb);
    free(copy);
    return err;
}

Test(json, parses_exactly_the_bytes_it_is_given)
{
    static const char *const good[] = {"0",    " {} ",       "[1,2]\n\t\r ", "\"\\\\u0000\"",
                                       "null", "{\"a\":[]}", "\"[[[\\\"{{\""};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        cJSON *root = NULL;
        cr_expect_eq(parse(good[i], strlen(good[i]), &root, NULL), MOE_OK, "%s", good[i]);
        cr_expect_not_null(root);
        cJSON_Delete(root);
    }
    cJSON *root;
    cr_assert_eq(parse("12345", 3, &root, NULL), MOE_OK);
    cr_expect_eq(root->valuedouble, 123);
    cJSON_Delete(root);
}

Test(json, refuses_what_is_no_json_and_names_the_offset)
{
#define TEXT(s) s, sizeof(s) - 1
    static const struct {
        const char *text;
        size_t len;
        const char *says;
    } bad[] = {
        {TEXT(""), "offset 0"},
        {TEXT(" "), "not JSON"},
        {TEXT("{"), "not JSON"},
        {TEXT("{\"a\":1"), "not JSON"},
        {TEXT("[1,]"), "not JSON"},
        {TEXT("[1 2]"), "offset 3"},
        {TEXT("\"a"), "not JSON"},
        {TEXT("\"a\\"), "not JSON"},
        {TEXT("\"\\u12"), "not JSON"},
        {TEXT("nul"), "not JSON"},
        {TEXT("NaN"), "not JSON"},
        {TEXT("{} x"), "offset 3"},
        {TEXT("1 1"), "offset 2"},
        {TEXT("]"), "not JSON"},
        {TEXT("[1]\0"), "NUL byte at offset 3"},
        {TEXT("\"a\0b\""), "NUL byte at offset 2"},
        {TEXT("[\"a\\u0000b\"]"), "offset 3"},
        {TEXT("{\"\\u0000\":1}"), "offset 2"},
        {TEXT("\"\\\\\\u0000\""), "offset 3"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cJSON *root = NULL;
        errbuf eb = {""};
        cr_expect_eq(parse(bad[i].text, bad[i].len, &root, &eb), MOE_EINVAL, "%s", bad[i].text);
        cr_expect_null(root);
        cr_expect_not_null(strstr(eb.text, bad[i].says), "%s: %s", bad[i].text, eb.text);
    }
}

Test(json, nests_up_to_its_limit)
{
    for (int depth = JSON_DEPTH_MAX - 1; depth <= JSON_DEPTH_MAX + 1; depth++) {
        char text[4 * JSON_DEPTH_MAX] = "", *at = text;
        for (int i = 0; i < depth; i++)
            *at++ = '[';
        for (int i = 0; i < depth; i++)
            *at++ = ']';
        cJSON *root;
        errbuf eb = {""};
        const moe_err want = depth <= JSON_DEPTH_MAX ? MOE_OK : MOE_EINVAL;
        cr_expect_eq(parse(text, strlen(text), &root, &eb), want);
        if (want) cr_expect_not_null(strstr(eb.text, "offset 64"), "%s", eb.text);
        cJSON_Delete(root);
    }
    /* Deep enough to overflow a stack, if anything recursed before it was refused. */
    char *many = malloc(4000000);
    memset(many, '[', 4000000);
    cJSON *root;
    cr_expect_eq(json_parse(many, 4000000, &root, NULL), MOE_EINVAL);
    free(many);
}

static cJSON *
object(const char *text)
{
    cJSON *root;
    cr_assert_eq(json_parse(text, strlen(text), &root, NULL), MOE_OK);
    return root;
}

Test(json, getters_read_their_type)
{
    cJSON *o = object("{\"u\":4294967295,\"i\":-9007199254740992,\"d\":0.5,\"b\":true,\"s\":\"x\","
                      "\"e\":2e3,\"U\":1}");
    uint32_t u = 0;
    int64_t i = 0;
    double d = 0;
    bool b = false;
    const char *s = NULL;
    cr_expect_eq(json_get_u32(o, "u", 0, UINT32_MAX, &u, NULL), MOE_OK);
    cr_expect_eq(u, UINT32_MAX);
    cr_expect_eq(json_get_u32(o, "e", 2000, 2000, &u, NULL), MOE_OK);
    cr_expect_eq(u, 2000);
    cr_expect_eq(json_get_i64(o, "i", -(1ll << 53), 0, &i, NULL), MOE_OK);
    cr_expect_eq(i, -(1ll << 53));
    cr_expect_eq(json_get_double(o, "d", 0.5, 0.5, &d, NULL), MOE_OK);
    cr_expect_eq(d, 0.5);
    cr_expect_eq(json_get_bool(o, "b", &b, NULL), MOE_OK);
    cr_expect(b);
    cr_expect_eq(json_get_string(o, "s", &s, NULL), MOE_OK);
    cr_expect_str_eq(s, "x");
    cJSON_Delete(o);
}

Test(json, an_absent_or_null_key_leaves_the_default)
{
    cJSON *o = object("{\"n\":null}");
    static const char *const keys[] = {"n", "absent", "N"};
    for (int k = 0; k < 3; k++) {
        uint32_t u = 7;
        int64_t i = -7;
        double d = 7.5;
        bool b = true;
        const char *s = "before";
        cr_expect_eq(json_get_u32(o, keys[k], 0, 1, &u, NULL), MOE_OK);
        cr_expect_eq(json_get_i64(o, keys[k], 0, 1, &i, NULL), MOE_OK);
        cr_expect_eq(json_get_double(o, keys[k], 0, 1, &d, NULL), MOE_OK);
        cr_expect_eq(json_get_bool(o, keys[k], &b, NULL), MOE_OK);
        cr_expect_eq(json_get_string(o, keys[k], &s, NULL), MOE_OK);
        cr_expect(u == 7 && i == -7 && d == 7.5 && b && strcmp(s, "before") == 0);
    }
    cJSON_Delete(o);
}

Test(json, another_type_or_a_value_outside_is_refused_with_the_key)
{
    cJSON *o = object("{\"num\":1.5,\"big\":1e999,\"text\":\"1\",\"list\":[],\"yes\":true,"
                      "\"two\":2,\"minus\":-1,\"huge\":1e300}");
    static const char *const no_u32[] = {"num", "big",   "text", "list",
                                         "yes", "minus", "two",  "huge"};
    static const char *const no_double[] = {"big", "text", "list", "yes", "minus", "two", "huge"};
    errbuf eb;
    uint32_t u = 1;
    int64_t i = 1;
    double d = 1;
    bool b = true;
    const char *s = "s";
    for (size_t k = 0; k < sizeof no_u32 / sizeof no_u32[0]; k++) {
        cr_expect_eq(json_get_u32(o, no_u32[k], 0, 1, &u, &eb), MOE_EINVAL, "%s", no_u32[k]);
        cr_expect_eq(strncmp(eb.text, no_u32[k], strlen(no_u32[k])), 0);
        cr_expect_eq(json_get_i64(o, no_u32[k], 0, 1, &i, &eb), MOE_EINVAL);
    }
    for (size_t k = 0; k < sizeof no_double / sizeof no_double[0]; k++)
        cr_expect_eq(json_get_double(o, no_double[k], 0, 1.75, &d, &eb), MOE_EINVAL);
    cr_expect_eq(json_get_bool(o, "two", &b, &eb), MOE_EINVAL);
    cr_expect_str_eq(eb.text, "two must be true or false");
    cr_expect_eq(json_get_string(o, "two", &s, &eb), MOE_EINVAL);
    cr_expect_str_eq(eb.text, "two must be a string");
    cr_expect(u == 1 && i == 1 && d == 1 && b && *s == 's');
    cJSON_Delete(o);
}

Test(json, tells_integers_from_other_numbers)
{
    const double top = 9007199254740992.0; /* 2^53 */
    const struct {
        double value;
        int64_t min, max;
        bool want;
    } cases[] = {{0, 0, 0, true},           {-0.0, 0, 5, true},
                 {0.5, 0, 1, false},        {5, 0, 5, true},
                 {6, 0, 5, false},          {-1, 0, 5, false},
                 {top, 0, 1ll << 53, true}, {top * 2, 0, 1ll << 53, false},
                 {INFINITY, 0, 5, false},   {NAN, 0, 5, false}};
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        cJSON *item = cJSON_CreateNumber(cases[k].value);
        cr_expect_eq(json_is_int(item, cases[k].min, cases[k].max), cases[k].want, "%g",
                     cases[k].value);
        cJSON_Delete(item);
    }
    cr_expect_not(json_is_int(NULL, 0, 1));
}
