/* log: the shape of a line, levels, and that no text makes two lines of one. */
#include <criterion/criterion.h>

#include <regex.h>
#include <string.h>

#include "common/log.h"
#include "tests/common/capture.h"

static void
restore(void)
{
    log_init("conclave", LOG_LEVEL_INFO);
}

TestSuite(log, .timeout = 10, .fini = restore);

static bool
matches(const char *pattern, const char *text)
{
    regex_t re;
    cr_assert_eq(regcomp(&re, pattern, REG_EXTENDED | REG_NOSUB), 0);
    const bool yes = regexec(&re, text, 0, NULL, 0) == 0;
    regfree(&re);
    return yes;
}

Test(log, writes_time_level_role_subsystem_and_text)
{
    char text[2048];
    log_init("router-0", LOG_LEVEL_DEBUG);
    const capture c = capture_start();
    LOG_ERROR("exchange", "lost worker=%d", 2);
    LOG_WARN("a", "%s", "");
    LOG_INFO("a", "x");
    LOG_DEBUG("a", "x");
    capture_stop(c, text, sizeof text);
    const char *time = "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z";
    char pattern[512];
    snprintf(pattern, sizeof pattern,
             "^%s E router-0 exchange: lost worker=2\n%s W router-0 a: \n%s I router-0 a: x\n"
             "%s D router-0 a: x\n$",
             time, time, time, time);
    cr_expect(matches(pattern, text), "%s", text);
}

Test(log, leaves_out_what_is_above_its_level)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    log_level level;
    for (int i = 0; i < 4; i++) {
        cr_assert_eq(log_level_parse(names[i], &level), MOE_OK);
        cr_expect_eq(level, i);
        log_init("x", level);
        for (int at = 0; at < 4; at++) {
            char text[256];
            cr_expect_eq(log_enabled((log_level)at), at <= i);
            const capture c = capture_start();
            LOG_AT((log_level)at, "s", "text");
            cr_expect_eq(capture_stop(c, text, sizeof text) != 0, at <= i);
        }
    }
    cr_expect_eq(log_level_parse("", &level), MOE_EINVAL);
    cr_expect_eq(log_level_parse("Info", &level), MOE_EINVAL);
    cr_expect_eq(log_level_parse("information", &level), MOE_EINVAL);
}

Test(log, keeps_text_from_outside_on_one_line)
{
    char text[512];
    const capture c = capture_start();
    LOG_INFO("http", "%s", "a\nb\rc\r\nd\x1b[31me\tf\x7fg\xc3\xa9");
    LOG_INFO("http\n2026", "x");
    capture_stop(c, text, sizeof text);
    cr_expect_not_null(strstr(text, ": a b c  d [31me f g\xc3\xa9\n"));
    cr_expect_not_null(strstr(text, "http 2026: x\n"));
}

Test(log, cuts_long_lines_roles_and_subsystems)
{
    static char text[8192], lengthy[5000];
    memset(lengthy, 'x', sizeof lengthy - 1);
    log_init("0123456789012345678901234567890123456789", LOG_LEVEL_INFO);
    for (size_t len = 900; len < 1100; len++) {
        const capture c = capture_start();
        LOG_INFO("s", "%.*s", (int)len, lengthy);
        const size_t n = capture_stop(c, text, sizeof text);
        cr_expect_leq(n, 1024);
        cr_expect_eq(strchr(text, '\n'), text + n - 1);
        cr_expect_not_null(strstr(text, " I 0123456789012345678901234567890 s: x"));
    }
    const capture c = capture_start();
    LOG_INFO(lengthy, "text");
    const size_t n = capture_stop(c, text, sizeof text);
    cr_expect_leq(n, 1024);
    cr_expect_eq(strchr(text, '\n'), text + n - 1);
}
