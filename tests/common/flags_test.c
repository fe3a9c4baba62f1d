/* flags: where a value comes from, what each kind accepts, and what --help prints. */
#include <criterion/criterion.h>

#include <math.h>
#include <unistd.h>

#include "common/flags.h"
#include "tests/common/temp_dir.h"

typedef struct options {
    const char *model, *mode;
    int64_t seqs, port;
    double rate;
    bool cache;
} options;

static options o;

static const flag_spec specs[] = {
    {"t-model", NULL, FLAG_STRING, &o.model, NULL, 0, 0, NULL, NULL, "a folder"},
    {"t-mode", "parallel", FLAG_CHOICE, &o.mode, "ep", 0, 0, "ep|tp", NULL, "how"},
    {"t-max-seqs", NULL, FLAG_INT, &o.seqs, "32", 1, 64, NULL, "sequences", "most"},
    {"t-port", NULL, FLAG_INT, &o.port, "0", 0, 0, NULL, NULL, "where"},
    {"t-rate", NULL, FLAG_NUMBER, &o.rate, "inf", 0, 0, NULL, NULL, "speed"},
    {"t-cache", NULL, FLAG_BOOL, &o.cache, "true", 0, 0, NULL, NULL, "share"},
};
#define SPECS (sizeof specs / sizeof specs[0])

static flags f;
static errbuf eb;

static void
clear(void)
{
    flags_fini(&f);
    o = (options){0};
    eb.text[0] = '\0';
    unsetenv("CONCLAVE_T_MAX_SEQS");
    unsetenv("CONCLAVE_T_CACHE");
    unsetenv("CONCLAVE_CONFIG");
}

TestSuite(flags, .init = clear, .fini = clear, .timeout = 20);

/* Parses up to four words after the program's name. */
static moe_err
parse(const char *a, const char *b, const char *c, const char *d)
{
    char *argv[] = {(char *)"prog", (char *)a, (char *)b, (char *)c, (char *)d, NULL};
    int argc = 0;
    while (argv[argc] != NULL)
        argc++;
    flags_fini(&f);
    o = (options){0};
    eb.text[0] = '\0';
    return flags_parse(&f, specs, SPECS, argc, argv, &eb);
}

Test(flags, without_words_the_defaults_hold)
{
    cr_assert_eq(parse(NULL, NULL, NULL, NULL), MOE_OK);
    cr_expect_null(o.model);
    cr_expect_str_eq(o.mode, "ep");
    cr_expect_eq(o.seqs, 32);
    cr_expect(isinf(o.rate));
    cr_expect(o.cache);
    cr_expect_not(f.help);
    cr_expect_eq(f.word_count, 0);
}

Test(flags, takes_both_ways_of_writing_a_value)
{
    cr_assert_eq(parse("--t-max-seqs", "7", "--t-mode=tp", "--t-model="), MOE_OK);
    cr_expect_eq(o.seqs, 7);
    cr_expect_str_eq(o.mode, "tp");
    cr_expect_str_eq(o.model, "");
    cr_assert_eq(parse("--t_max_seqs=8", "--parallel", "tp", "--t-port=-5"), MOE_OK);
    cr_expect_eq(o.seqs, 8);
    cr_expect_str_eq(o.mode, "tp");
    cr_expect_eq(o.port, -5);
    cr_assert_eq(parse("--t-max-seqs=1", "word", "--t-max-seqs=2", "-x"), MOE_OK);
    cr_expect_eq(o.seqs, 2); /* the last one counts */
    cr_assert_eq(f.word_count, 2);
    cr_expect_str_eq(f.words[0], "word");
    cr_expect_str_eq(f.words[1], "-x");
}

Test(flags, a_bool_stands_alone_or_has_a_value)
{
    static const struct {
        const char *a, *b;
        bool want;
        size_t words;
    } cases[] = {{"--t-cache", NULL, true, 0},      {"--no-t-cache", NULL, false, 0},
                 {"--t-cache=off", NULL, false, 0}, {"--t-cache", "off", false, 0},
                 {"--t-cache", "0", false, 0},      {"--t-cache", "no", false, 0},
                 {"--t-cache=1", NULL, true, 0},    {"--t-cache", "on", true, 0},
                 {"--t-cache", "other", true, 1},   {"--t-cache=yes", NULL, true, 0},
                 {"--no_t_cache", NULL, false, 0},  {"--t-cache=false", NULL, false, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_expect_eq(parse(cases[i].a, cases[i].b, NULL, NULL), MOE_OK, "%s %s", cases[i].a,
                     eb.text);
        cr_expect_eq(o.cache, cases[i].want, "%s", cases[i].a);
        cr_expect_eq(f.word_count, cases[i].words);
    }
}

Test(flags, refuses_malformed_words_and_names_them)
{
    static const struct {
        const char *word, *says;
    } cases[] = {
        {"--unknown", "--unknown"},
        {"--", "unknown option --"},
        {"--t-port", "needs a value"},
        {"--t-port=", "whole number"},
        {"--t-port=1.5", "whole number"},
        {"--t-port=12x", "12x"},
        {"--t-port=inf", "whole number"},
        {"--t-port=nan", "whole number"},
        {"--t-port=1e30", "whole number"},
        {"--t-rate=x", "number"},
        {"--t-rate=nan", "number"},
        {"--t-max-seqs=0", "1..64"},
        {"--t-max-seqs=65", "1..64"},
        {"--t-max-seqs=-1", "1..64"},
        {"--t-mode=xp", "ep|tp"},
        {"--t-mode=", "ep|tp"},
        {"--t-mode=e", "ep|tp"},
        {"--t-mode=ep|tp", "ep|tp"},
        {"--t-mode=ep|", "ep|tp"},
        {"--t-mode=|tp", "ep|tp"},
        {"--t-cache=maybe", "true or false"},
        {"--no-t-port", "unknown option"},
        {"--no-t-cache=true", "unknown option"},
        {"--no-", "unknown option"},
        {"--config", "needs a value"},
        {"--config=/missing/file", "/missing/file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const moe_err want = strstr(cases[i].word, "/missing") ? MOE_ENOTFOUND : MOE_EINVAL;
        cr_expect_eq(parse(cases[i].word, NULL, NULL, NULL), want, "%s", cases[i].word);
        cr_expect_not_null(strstr(eb.text, cases[i].says), "%s: %s", cases[i].word, eb.text);
    }
    static const char *const good[] = {"--t-max-seqs=1", "--t-max-seqs=64", "--t-rate=inf",
                                       "--t-rate=-1e300"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        cr_expect_eq(parse(good[i], NULL, NULL, NULL), MOE_OK, "%s", good[i]);
}

Test(flags, the_command_line_beats_the_environment_beats_the_file_beats_the_default)
{
    const temp_dir dir = temp_dir_make();
    char path[128], config[160];
    const char *text = "{\"t-max-seqs\": 10, \"t_port\": 11, \"t-cache\": false, \"t-model\": null,"
                       " \"parallel\": \"tp\", \"t-mode\": null}";
    temp_file(&dir, path, "c.json", text, strlen(text));
    snprintf(config, sizeof config, "--config=%s", path);

    cr_assert_eq(parse(config, NULL, NULL, NULL), MOE_OK, "%s", eb.text);
    cr_expect_eq(o.seqs, 10);
    cr_expect_eq(o.port, 11);
    cr_expect_not(o.cache);
    cr_expect_null(o.model, "null is as good as absent");
    cr_expect_str_eq(o.mode, "tp");

    setenv("CONCLAVE_T_MAX_SEQS", "12", 1);
    cr_assert_eq(parse("--config", path, NULL, NULL), MOE_OK);
    cr_expect_eq(o.seqs, 12);
    cr_assert_eq(parse("--t-max-seqs=13", config, NULL, NULL), MOE_OK);
    cr_expect_eq(o.seqs, 13);
    cr_expect_eq(o.port, 11);

    setenv("CONCLAVE_CONFIG", path, 1);
    cr_assert_eq(parse(NULL, NULL, NULL, NULL), MOE_OK);
    cr_expect_eq(o.port, 11);

    setenv("CONCLAVE_T_MAX_SEQS", "many", 1);
    cr_expect_eq(parse(NULL, NULL, NULL, NULL), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "CONCLAVE_T_MAX_SEQS"));
    unlink(path);
    rmdir(dir.path);
}

Test(flags, refuses_a_config_file_that_is_not_options)
{
    static const struct {
        const char *text, *says;
    } cases[] = {{"", "not JSON"},
                 {"[]", "JSON object"},
                 {"{\"t-maximum\": 1}", "t-maximum"},
                 {"{\"t-max-seqs\": 65}", "1..64"},
                 {"{\"t-max-seqs\": true}", "true"},
                 {"{\"t-cache\": [1]}", "[1]"},
                 {"{\"t-port\": 1} x", "offset"}};
    const temp_dir dir = temp_dir_make();
    char path[128];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        temp_file(&dir, path, "c.json", cases[i].text, strlen(cases[i].text));
        cr_expect_eq(parse("--config", path, NULL, NULL), MOE_EINVAL, "%s", cases[i].text);
        cr_expect_not_null(strstr(eb.text, cases[i].says), "%s: %s", cases[i].text, eb.text);
        cr_expect_not_null(strstr(eb.text, path), "%s", eb.text);
    }
    unlink(path);
    rmdir(dir.path);
}

Test(flags, help_lists_every_option_with_its_limits_and_default)
{
    cr_assert_eq(parse("--help", NULL, NULL, NULL), MOE_OK);
    cr_expect(f.help);
    cr_assert_eq(parse("word", "-h", NULL, NULL), MOE_OK);
    cr_expect(f.help);
    cr_expect_eq(f.word_count, 1);

    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    flags_print_help(out, "prog [options]", "Does it.", specs, SPECS);
    fclose(out);
    cr_expect_eq(strncmp(text, "usage: prog [options]\nDoes it.\n", 31), 0);
    cr_expect_not_null(strstr(text, "  --t-model TEXT\n        a folder\n"));
    cr_expect_not_null(strstr(text, "  --t-mode ep|tp, --parallel\n        how (default ep)\n"));
    cr_expect_not_null(strstr(text, "  --t-max-seqs N\n        most (sequences, default 32)\n"));
    cr_expect_not_null(strstr(text, "  --t-rate X\n"));
    cr_expect_not_null(strstr(text, "  --t-cache\n"));
    cr_expect_not_null(strstr(text, "  --config FILE\n"));
    free(text);
}
