/* Runs Criterion tests in this process, one after the other, for ThreadSanitizer: there Criterion's
 * process-per-test start-up aborts before main() (2.4.1).
 *
 * It walks the section that Test() fills, and replaces the six functions through which a test talks
 * to the runner.  Tests that expect a signal or an exit code need a process of their own and are
 * left out.
 *
 * usage: PROGRAM [part of suite/name]
 */
#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

extern struct criterion_test *__start_cr_tst[], *__stop_cr_tst[];
extern struct criterion_suite *__start_cr_sts[] __attribute__((weak));
extern struct criterion_suite *__stop_cr_sts[] __attribute__((weak));

static struct criterion_test *current;
static void *current_param;
static jmp_buf abort_point;
static bool failed, skipped;

/* The current test's TestSuite(), or NULL. */
static const struct criterion_test_extra_data *
suite_data(void)
{
    for (struct criterion_suite **s = __start_cr_sts; s < __stop_cr_sts; s++) {
        if (*s != NULL && (*s)->data != NULL && strcmp((*s)->name, current->category) == 0)
            return (*s)->data;
    }
    return NULL;
}

void
criterion_internal_test_setup(void)
{
    const struct criterion_test_extra_data *suite = suite_data();
    if (suite != NULL && suite->init) suite->init();
    if (current->data->init) current->data->init();
}

void
criterion_internal_test_main(void (*fn)(void))
{
    if (current->data->kind_ == CR_TEST_PARAMETERIZED)
        ((void (*)(void *))fn)(current_param);
    else
        fn();
}

void
criterion_internal_test_teardown(void)
{
    if (current->data->fini) current->data->fini();
    const struct criterion_test_extra_data *suite = suite_data();
    if (suite != NULL && suite->fini) suite->fini();
}

void
criterion_send_assert(struct criterion_assert_stats *s)
{
    if (s->passed) return;
    failed = true;
    fprintf(stderr, "%s:%u: assertion failed: %s\n", s->file, s->line,
            s->message ? s->message : "");
}

void
criterion_abort_test(void)
{
    longjmp(abort_point, 1);
}

void
criterion_continue_test(void)
{
}

void
criterion_skip_test(const char *format, ...)
{
    (void)format;
    skipped = true;
    longjmp(abort_point, 1);
}

static void
run(unsigned counts[3])
{
    failed = skipped = false;
    if (setjmp(abort_point) == 0) current->test();
    counts[skipped ? 2 : failed ? 1 : 0]++;
}

int
main(int argc, char **argv)
{
    unsigned counts[3] = {0}; /* passed, failed, skipped */
    for (struct criterion_test **t = __start_cr_tst; t < __stop_cr_tst; t++) {
        current = *t;
        if (current == NULL) continue;
        char id[256];
        snprintf(id, sizeof id, "%s/%s", current->category, current->name);
        if (argc > 1 && strstr(id, argv[1]) == NULL) continue;
        if (current->data->disabled || current->data->signal || current->data->exit_code) continue;
        if (current->data->kind_ == CR_TEST_PARAMETERIZED) {
            struct criterion_test_params params = current->data->param_();
            for (size_t i = 0; i < params.length; i++) {
                current_param = (char *)params.params + i * params.size;
                run(counts);
            }
        } else {
            run(counts);
        }
    }
    const unsigned tested = counts[0] + counts[1];
    printf("Synthesis: Tested: %u | Passing: %u | Failing: %u | Crashing: 0 | Skipped: %u\n",
           tested, counts[0], counts[1], counts[2]);
    return counts[1] != 0 || tested + counts[2] == 0;
}
