/* chaos: the grammar, and a process that is really stopped, continued and killed. */
#include <stddef.h>

#include <criterion/criterion.h>

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "loadgen/chaos.h"

TestSuite(chaos, .timeout = 30);

static chaos_plan plan;
static errbuf eb;

Test(chaos, a_plan_is_sorted_and_a_pause_has_an_end)
{
    cr_assert_eq(chaos_parse("kill worker 2 at 10s; stop router 0 at 1.5s for 500ms;"
                             "run echo at home at 250ms",
                             &plan, &eb),
                 MOE_OK, "%s", eb.text);
    cr_assert_eq(plan.count, 4);
    const chaos_step *s = plan.steps;
    cr_expect(s[0].action == CHAOS_RUN && s[0].at_ns == 250 * NS_PER_MS);
    cr_expect_str_eq(s[0].text, "run echo at home");
    cr_expect(s[1].action == CHAOS_STOP && s[1].role == CHAOS_ROUTER && s[1].id == 0);
    cr_expect(s[2].action == CHAOS_CONT && s[2].at_ns == 2 * NS_PER_S);
    cr_expect_str_eq(s[2].text, "cont router 0");
    cr_expect(s[3].action == CHAOS_KILL && s[3].role == CHAOS_WORKER && s[3].id == 2);
    cr_assert_eq(chaos_parse("term frontend at 0s; cont pid 77 at 1s", &plan, &eb), MOE_OK);
    cr_expect(plan.steps[0].role == CHAOS_FRONTEND && plan.steps[1].id == 77);
}

Test(chaos, what_breaks_the_grammar_is_refused)
{
    static const char *const bad[] = {"",
                                      " ; ",
                                      "kill worker 2",
                                      "kill worker 2 at",
                                      "kill worker 2 at ten",
                                      "kill worker 2 at 10",
                                      "kill worker 2 at -1s",
                                      "kill worker 2 at 1s then",
                                      "kill worker at 1s",
                                      "kill worker two at 1s",
                                      "kill worker 2x at 1s",
                                      "kill workers 2 at 1s",
                                      "kill pid 0 at 1s",
                                      "kill pid 1 at 1s",
                                      "kill pid -5 at 1s",
                                      "kill pid 99999999999999999999 at 1s",
                                      "kill worker 2 at 1s for 2s",
                                      "maim worker 2 at 1s",
                                      "run at 1s",
                                      "kill frontend 1 at 1s"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_expect_eq(chaos_parse(bad[i], &plan, &eb), MOE_EINVAL, "\"%s\"", bad[i]);
    }
    static char many[4000];
    for (int i = 0; i <= CHAOS_STEPS_MAX; i++) {
        strcat(many, "kill worker 1 at 1s;");
    }
    cr_expect_eq(chaos_parse(many, &plan, &eb), MOE_ERANGE);
}

Test(chaos, the_process_that_the_status_names_gets_the_signals)
{
    const pid_t child = fork();
    if (child == 0) {
        for (;;)
            pause();
    }
    char status[200];
    snprintf(
        status, sizeof status,
        "echo "
        "'{\"frontend\":{\"pid\":null},\"workers\":[{\"id\":1,\"pid\":1},{\"id\":3,\"pid\":%ld}]}'",
        (long)child);
    cr_assert_eq(
        chaos_parse("stop worker 3 at 0s; kill worker 3 at 1ms; kill frontend at 2ms", &plan, &eb),
        MOE_OK);
    chaos *c;
    cr_assert_eq(chaos_start(&c, &plan, status, &eb), MOE_OK);
    int how = 0;
    cr_expect_eq(waitpid(child, &how, WUNTRACED), child);
    cr_expect(WIFSTOPPED(how) || WIFSIGNALED(how));
    if (WIFSTOPPED(how)) cr_expect_eq(waitpid(child, &how, 0), child);
    cr_expect(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
    chaos_stop(c);
    cr_expect_eq(plan.steps[0].pid, child);
    cr_expect_str_eq(plan.steps[0].outcome, "");
    cr_expect_str_eq(plan.steps[1].outcome, "");
    /* The run may be over before the third step is due; but if it was done, it failed. */
    if (plan.steps[2].done_ns != 0) cr_expect_str_eq(plan.steps[2].outcome, "it does not run");
}

Test(chaos, a_run_that_ends_leaves_no_process_stopped_and_waits_for_nothing_else)
{
    const pid_t child = fork();
    if (child == 0) {
        for (;;)
            pause();
    }
    char text[200];
    snprintf(text, sizeof text, "stop pid %ld at 0s for 1000s; kill pid %ld at 2000s", (long)child,
             (long)child);
    cr_assert_eq(chaos_parse(text, &plan, &eb), MOE_OK);
    chaos *c;
    int how = 0;
    cr_assert_eq(chaos_start(&c, &plan, NULL, &eb), MOE_OK);
    cr_expect_eq(waitpid(child, &how, WUNTRACED), child);
    cr_expect(WIFSTOPPED(how));
    chaos_stop(c);
    cr_expect_eq(waitpid(child, &how, WCONTINUED), child);
    cr_expect(WIFCONTINUED(how));
    cr_expect_eq(plan.steps[2].done_ns, 0);
    kill(child, SIGKILL);
    waitpid(child, &how, 0);
}
