/* err: names, explanations, and where they are cut. */
#include <criterion/criterion.h>

#include <string.h>

#include "common/err.h"

TestSuite(err, .timeout = 10);

Test(err, names_every_code_and_no_other_value)
{
    cr_expect_str_eq(moe_err_name(MOE_OK), "OK");
    cr_expect_str_eq(moe_err_name(MOE_EINVAL), "EINVAL");
    cr_expect_str_eq(moe_err_name(MOE_EINTERNAL), "EINTERNAL");
    for (int a = 0; a < MOE_ERR_COUNT; a++) {
        cr_expect_str_neq(moe_err_name((moe_err)a), "E?");
        for (int b = 0; b < a; b++)
            cr_expect_str_neq(moe_err_name((moe_err)a), moe_err_name((moe_err)b));
    }
    cr_expect_str_eq(moe_err_name(MOE_ERR_COUNT), "E?");
    cr_expect_str_eq(moe_err_name((moe_err)-1), "E?");
}

Test(err, writes_the_explanation_and_returns_the_code)
{
    errbuf eb = {""};
    cr_expect_eq(err_set(&eb, MOE_ERANGE, "%s: %d", "rows", 7), MOE_ERANGE);
    cr_expect_str_eq(eb.text, "rows: 7");
    cr_expect_eq(err_wrap(&eb, MOE_EINVAL, "layer %d", 3), MOE_EINVAL);
    cr_expect_str_eq(eb.text, "layer 3: rows: 7");
    cr_expect_eq(err_set(NULL, MOE_EIO, "x"), MOE_EIO);
    cr_expect_eq(err_wrap(NULL, MOE_EIO, "x"), MOE_EIO);
}

/* The text before, at and past the end of the buffer; bytes behind it stay as they are. */
Test(err, cuts_long_explanations_inside_the_buffer)
{
    struct {
        errbuf eb;
        char after[16];
    } guarded;
    char text[MOE_ERR_TEXT_MAX + 2];
    for (size_t len = MOE_ERR_TEXT_MAX - 4; len <= MOE_ERR_TEXT_MAX + 1; len++) {
        memset(&guarded, 'z', sizeof guarded);
        memset(text, 'a', len);
        text[len] = '\0';
        err_set(&guarded.eb, MOE_EIO, "%s", text);
        const size_t want = len < MOE_ERR_TEXT_MAX ? len : MOE_ERR_TEXT_MAX - 1;
        cr_expect_eq(strlen(guarded.eb.text), want);

        err_wrap(&guarded.eb, MOE_EIO, "in front");
        cr_expect_eq(strlen(guarded.eb.text), MOE_ERR_TEXT_MAX - 1u);
        cr_expect_eq(strncmp(guarded.eb.text, "in front: aaaa", 14), 0);

        err_wrap(&guarded.eb, MOE_EIO, "%s", text);
        cr_expect_eq(strncmp(guarded.eb.text, text, want), 0);
        cr_expect_leq(strlen(guarded.eb.text), MOE_ERR_TEXT_MAX - 1u);
        for (size_t i = 0; i < sizeof guarded.after; i++)
            cr_expect_eq(guarded.after[i], 'z');
    }
}
