/* strbuf: appending, the cap, and JSON strings. */
#include <criterion/criterion.h>

#include <cjson/cJSON.h>
#include <stdint.h>
#include <string.h>

#include "common/hash.h"
#include "common/strbuf.h"

TestSuite(strbuf, .timeout = 10);

Test(strbuf, appends_bytes_texts_and_formats)
{
    strbuf sb;
    strbuf_init(&sb, 1000);
    cr_expect_str_eq(strbuf_text(&sb), "");
    strbuf_append(&sb, NULL, 0);
    strbuf_append(&sb, "abc", 2);
    strbuf_puts(&sb, "-");
    strbuf_printf(&sb, "%d %s", 42, "x");
    strbuf_printf(&sb, "%s", "");
    cr_expect_str_eq(strbuf_text(&sb), "ab-42 x");
    cr_expect_eq(sb.len, 7);
    strbuf_append(&sb, "\0z", 2);
    cr_expect_eq(sb.len, 9);
    cr_expect_arr_eq(strbuf_text(&sb), "ab-42 x\0z", 10);
    strbuf_reset(&sb);
    cr_expect_str_eq(strbuf_text(&sb), "");
    cr_expect_eq(sb.len, 0);
    strbuf_fini(&sb);
    cr_expect_str_eq(strbuf_text(&sb), "");
    strbuf_fini(&sb);
}

/* For each cap: exactly the cap fits, one more fails, and nothing is appended from then on. */
Test(strbuf, stops_at_its_cap_until_reset)
{
    static const size_t caps[] = {0, 1, 255, 256, 257, 5000};
    for (size_t i = 0; i < sizeof caps / sizeof caps[0]; i++) {
        strbuf sb;
        strbuf_init(&sb, caps[i]);
        for (size_t n = 0; n < caps[i]; n++)
            strbuf_append(&sb, "q", 1);
        cr_expect(!sb.failed);
        cr_expect_eq(sb.len, caps[i]);
        cr_expect_eq(strlen(strbuf_text(&sb)), caps[i]);
        strbuf_append(&sb, "", 0);
        cr_expect(!sb.failed);
        if (i % 2)
            strbuf_append(&sb, "r", 1);
        else
            strbuf_printf(&sb, "%c", 'r');
        cr_expect(sb.failed);
        strbuf_append(&sb, "", 0);
        strbuf_puts(&sb, "");
        cr_expect_eq(sb.len, caps[i]);
        cr_expect_null(strchr(strbuf_text(&sb), 'r'));

        strbuf_reset(&sb);
        cr_expect(!sb.failed);
        strbuf_printf(&sb, "%*s", (int)caps[i], "");
        cr_expect(!sb.failed);
        cr_expect_eq(sb.len, caps[i]);
        strbuf_reset(&sb);
        strbuf_append(&sb, "", SIZE_MAX); /* refused before a byte is read */
        cr_expect(sb.failed);
        strbuf_fini(&sb);
    }
}

Test(strbuf, escapes_what_json_wants_escaped)
{
    strbuf sb;
    strbuf_init(&sb, 1000);
    const char bytes[] = "a\"b\\c\n\r\t\b\x1f\x7f/\xc3\xa9\0z";
    strbuf_json_string(&sb, bytes, sizeof bytes - 1);
    cr_expect_str_eq(strbuf_text(&sb),
                     "\"a\\\"b\\\\c\\n\\r\\t\\u0008\\u001f\x7f/\xc3\xa9\\u0000z\"");
    strbuf_reset(&sb);
    strbuf_json_string(&sb, NULL, 0);
    cr_expect_str_eq(strbuf_text(&sb), "\"\"");
    strbuf_fini(&sb);
}

/* Any ASCII text without NUL comes back from a JSON parser as it was. */
Test(strbuf, json_strings_parse_back)
{
    strbuf sb;
    strbuf_init(&sb, 10000);
    for (uint64_t seed = 0; seed < 200; seed++) {
        char text[64];
        const size_t len = hash_mix(seed) % (sizeof text - 1);
        for (size_t i = 0; i < len; i++)
            text[i] = (char)(1 + hash_combine(seed, i) % 127);
        text[len] = '\0';
        strbuf_reset(&sb);
        strbuf_json_string(&sb, text, len);
        cJSON *back = cJSON_Parse(strbuf_text(&sb));
        cr_assert(cJSON_IsString(back));
        cr_expect_str_eq(back->valuestring, text);
        cJSON_Delete(back);
    }
    strbuf_fini(&sb);
}
