/* program: how a process begins: goes on with a run directory, or says what is wrong and with which
 * status it ends. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/program.h"
#include "tests/common/capture.h"
#include "tests/common/temp_dir.h"

static const char *model, *run_path, *log_level;
static bool optional;
static temp_dir dir;
static run_dir run;
static char said[2000];

static void
setup(void)
{
    dir = temp_dir_make();
}

static void
teardown(void)
{
    rmdir(dir.path);
}

TestSuite(program, .init = setup, .fini = teardown, .timeout = 30);

/* argv ends with NULL; what was written to standard error is in `said`. */
static int
begin(const char *const *args)
{
    const flag_spec specs[] = {
        {"model", NULL, FLAG_STRING, &model, NULL, 0, 0, NULL, NULL, "folder"},
        {"run-dir", NULL, FLAG_STRING, &run_path, dir.path, 0, 0, NULL, NULL, "folder"},
        {"no-model-needed", NULL, FLAG_BOOL, &optional, "false", 0, 0, NULL, NULL, "print"}};
    const program p = {.name = "conclave-test",
                       .usage = "conclave-test --model DIR",
                       .summary = "Does nothing.",
                       .specs = specs,
                       .spec_count = sizeof specs / sizeof specs[0],
                       .model = &model,
                       .model_optional = &optional,
                       .run_dir = &run_path,
                       .log_level = &log_level};
    char *argv[8] = {(char *)(uintptr_t) "conclave-test"};
    int argc = 1;
    for (; *args != NULL; args++) {
        argv[argc++] = (char *)(uintptr_t)*args;
    }
    flags f;
    memset(&run, 0, sizeof run);
    model = NULL;
    const capture c = capture_start();
    const int rc = program_begin(&p, &f, &run, argc, argv);
    capture_stop(c, said, sizeof said);
    flags_fini(&f);
    return rc;
}

Test(program, goes_on_with_an_open_run_directory)
{
    cr_expect_eq(begin((const char *const[]){"--model", dir.path, NULL}), PROGRAM_GO_ON);
    cr_expect_str_eq(run.path, dir.path);
    cr_expect_eq(strlen(run.id), 16);
    cr_expect_str_eq(said, "");
}

Test(program, needs_no_model_where_it_is_optional)
{
    cr_expect_eq(begin((const char *const[]){"--no-model-needed", NULL}), PROGRAM_GO_ON);
    cr_expect_str_eq(run.path, dir.path);
}

Test(program, ends_with_2_and_its_name_and_the_fault_on_standard_error)
{
    static const struct {
        const char *args[4];
        const char *text;
    } cases[] = {{{NULL}, "--model is missing"},
                 {{"--model", "/proc/nothing", NULL}, "/proc/nothing is no folder"},
                 {{"--model", "/proc/version", NULL}, "/proc/version is no folder"},
                 {{"--modle", "/", NULL}, "modle"},
                 {{"--model", "/", "word", NULL}, "\"word\" is no option"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_expect_eq(begin(cases[i].args), 2, "%s", cases[i].text);
        cr_expect_not_null(strstr(said, cases[i].text), "\"%s\" is not said: %s", cases[i].text,
                           said);
        cr_expect_eq(strncmp(said, "conclave-test: ", 15), 0, "%s", said);
        cr_expect_str_eq(run.path, "", "a run directory was opened all the same");
    }
    cr_expect_eq(begin((const char *const[]){"--model", "/", "--run-dir", "/proc/version/x", NULL}),
                 2);
    cr_expect_not_null(strstr(said, "/proc/version/x"), "%s", said);
}

Test(program, ends_with_0_after_help_whatever_else_is_missing)
{
    fflush(stdout);
    const int out = dup(STDOUT_FILENO); /* the help is not this test's output */
    cr_assert_not_null(freopen("/dev/null", "w", stdout));
    const int rc = begin((const char *const[]){"--help", NULL});
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    close(out);
    cr_expect_eq(rc, 0);
    cr_expect_str_eq(said, "");
    cr_expect_str_eq(run.path, "");
}
