/* safetensors: a header is believed only when all of it adds up; each lie has its own sentence. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/strbuf.h"
#include "model/safetensors.h"
#include "tests/model/support.h"

TestSuite(safetensors, .timeout = 20);

static moe_err
parse(safetensors *st, const char *header, size_t data_bytes, errbuf *eb)
{
    size_t len;
    uint8_t *file = st_file(header, data_bytes, &len);
    eb->text[0] = '\0';
    const moe_err err = safetensors_parse(st, "f.safetensors", file, len, eb);
    free(file);
    return err;
}

Test(safetensors, reads_names_dtypes_shapes_and_ranges)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
        "\"many\":{\"dtype\":\"I64\",\"shape\":[1,1,1,1,1,2],\"data_offsets\":[24,40]},"
        "\"none\":{\"dtype\":\"U8\",\"shape\":[0,7],\"data_offsets\":[16,16]}}   ";
    safetensors st;
    errbuf eb;
    /* bytes 16..24 and 40..48 belong to nobody: tolerated */
    cr_assert_eq(parse(&st, header, 48, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(st.count, 4);

    const size_t data = 8 + strlen(header);
    const safetensors_entry *b = safetensors_find(&st, "b");
    cr_assert_not_null(b);
    cr_expect_str_eq(b->dtype, "BF16");
    cr_expect_eq(b->rank, 2);
    cr_expect_eq(b->shape[0], 2);
    cr_expect_eq(b->shape[1], 3);
    cr_expect_eq(b->begin, data + 4);
    cr_expect_eq(b->end, data + 16);
    cr_expect_eq(safetensors_find(&st, "a")->rank, 0);
    cr_expect_eq(safetensors_find(&st, "many")->rank, 6);
    cr_expect_null(safetensors_find(&st, "c"));
    cr_expect_null(safetensors_find(&st, "__metadata__"));
    safetensors_fini(&st);

    cr_assert_eq(parse(&st, "{}", 0, &eb), MOE_OK, "a file without tensors is a file");
    cr_expect_null(safetensors_find(&st, "a"));
    safetensors_fini(&st);
}

#define T(dtype, shape, offsets)                                                                   \
    "{\"x.y\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

Test(safetensors, a_lying_header_is_refused_with_file_tensor_and_reason)
{
    static const struct {
        const char *header, *text;
    } cases[] = {
        {T("\"BF17\"", "[2]", "[0,4]"), "f.safetensors: tensor x.y has unknown dtype BF17"},
        {T("3", "[2]", "[0,4]"), "tensor x.y has no dtype"},
        {T("\"BF16\"", "[2]", "[0,6]"), "tensor x.y has 6 bytes, BF16 and its shape ask for 4"},
        {T("\"BF16\"", "[2]", "[0,2]"), "tensor x.y has 2 bytes"},
        {T("\"BF16\"", "[]", "[0,0]"), "tensor x.y has 0 bytes"},
        {T("\"F4\"", "[3]", "[0,1]"), "tensor x.y has 1 bytes"},
        {T("\"BF16\"", "[2]", "[62,66]"), "tensor x.y ends at 66 of only 64 bytes"},
        {T("\"BF16\"", "[2]", "[9007199254740000,9007199254740004]"), "tensor x.y ends at"},
        {T("\"BF16\"", "[2]", "[8,4]"), "tensor x.y begins at 8, behind its end 4"},
        {T("\"BF16\"", "[2]", "[-4,0]"), "tensor x.y needs data_offsets"},
        {T("\"BF16\"", "[2]", "[0,4,8]"), "tensor x.y needs data_offsets"},
        {T("\"BF16\"", "[2]", "[4]"), "tensor x.y needs data_offsets"},
        {T("\"BF16\"", "[2]", "[]"), "tensor x.y needs data_offsets"},
        {T("\"BF16\"", "[2]", "[0,1e300]"), "tensor x.y needs data_offsets"},
        {T("\"BF16\"", "[2]", "{\"a\":0,\"b\":4}"), "tensor x.y needs data_offsets"},
        {T("\"BF16\"", "[2.5]", "[0,4]"), "tensor x.y has a shape that is not"},
        {T("\"BF16\"", "[-2]", "[0,4]"), "tensor x.y has a shape that is not"},
        {T("\"BF16\"", "[\"2\"]", "[0,4]"), "tensor x.y has a shape that is not"},
        {T("\"BF16\"", "2", "[0,4]"), "tensor x.y has no shape"},
        {T("\"BF16\"", "[4294967296,4294967296,4]", "[0,4]"), "tensor x.y has a shape whose prod"},
        {T("\"F64\"", "[4294967296,4294967295]", "[0,4]"), "tensor x.y has a shape whose size"},
        {"{\"x.y\":7}", "tensor x.y has no dtype"},
        {"{\"x.y\":{}}", "tensor x.y has no dtype"},
        {"{\"__metadata__\":3}", "__metadata__ must be an object"},
        {"{\"x\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},"
         "\"y\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[7,15]}}",
         "tensor y overlaps tensor x"},
        {"{\"x\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},"
         "\"y\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]}}",
         "tensor y overlaps tensor x"},
        {"{\"x\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},"
         "\"x\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[8,16]}}",
         "tensor x is there twice"},
        {"[]", "the header does not begin with {"},
        {" {}", "the header does not begin with {"},
        {"", "the header does not begin with {"},
        {"{", "f.safetensors: header: not JSON"},
        {"{} x", "f.safetensors: header: not JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        safetensors st;
        errbuf eb;
        cr_expect_eq(parse(&st, cases[i].header, 64, &eb), MOE_EINVAL, "%s", cases[i].header);
        cr_expect_not_null(strstr(eb.text, cases[i].text), "%s: %s", cases[i].header, eb.text);
        cr_expect_eq(strncmp(eb.text, "f.safetensors: ", 15), 0, "%s", eb.text);
        cr_expect_null(st.entries);
    }
}

Test(safetensors, a_lying_header_length_is_refused)
{
    static const uint64_t lengths[] = {
        3, 57, 100000001, UINT64_MAX, UINT64_MAX - 7, (uint64_t)INT64_MAX + 1};
    uint8_t file[64] = {0};
    errbuf eb;
    file[8] = '{';
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        for (int b = 0; b < 8; b++) {
            file[b] = (uint8_t)(lengths[i] >> 8 * b);
        }
        cr_expect_eq(safetensors_check("f", file, sizeof file, &eb), MOE_EINVAL);
        cr_expect_not_null(strstr(eb.text, "header"), "%s", eb.text);
    }
    /* One byte more than there is: read, it would be behind the end. */
    memcpy(file, &(uint64_t){sizeof file - 8 + 1}, 8);
    cr_expect_eq(safetensors_check("f", file, sizeof file, &eb), MOE_EINVAL);
    cr_expect_str_eq(eb.text, "f: truncated, header of 57 bytes in a file of 64");
    for (size_t len = 0; len < 8; len++) {
        cr_expect_eq(safetensors_check("f", file, len, &eb), MOE_EINVAL);
        cr_expect_not_null(strstr(eb.text, "truncated"), "%s", eb.text);
    }
}

Test(safetensors, a_thousand_tensors_are_found_by_name)
{
    strbuf header;
    errbuf eb;
    safetensors st;
    char name[32];
    strbuf_init(&header, 1 << 20);
    for (int i = 0; i < 1000; i++) {
        strbuf_printf(&header,
                      "%s\"t%d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                      i ? "," : "{", i * 7 % 1000, i, i + 1);
    }
    strbuf_puts(&header, "}");
    cr_assert_eq(parse(&st, strbuf_text(&header), 1000, &eb), MOE_OK, "%s", eb.text);
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "t%d", i * 7 % 1000);
        const safetensors_entry *e = safetensors_find(&st, name);
        cr_assert_not_null(e);
        cr_expect_eq(e->begin, 8 + header.len + (size_t)i);
    }
    safetensors_fini(&st);
    strbuf_fini(&header);
}

Test(safetensors, a_header_of_too_many_values_is_refused_before_it_is_parsed)
{
    const size_t n = (size_t)SAFETENSORS_VALUE_MAX + 2;
    char *header = malloc(n + 1);
    cr_assert_not_null(header);
    memset(header, ',', n);
    header[0] = '{';
    header[n] = '\0';
    safetensors st;
    errbuf eb;
    cr_expect_eq(parse(&st, header, 0, &eb), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "values"), "%s", eb.text);
    free(header);
}
