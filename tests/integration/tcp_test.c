/* A cell whose processes meet over TCP, as between hosts: it gives the answers of a cell in a run
 * directory, and listens to nobody who does not know its secret. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/integration/fleet.h"
#include "tests/integration/requests.h"

#define ROUTERS 2
#define ROOM "--max-model-len=672"

static fleet f;
static char secret[64], other_secret[64];
static char control[512]; /* the options of every process */

static void
write_secret(char path[64], const char *text)
{
    snprintf(path, 64, "/tmp/conclave-secret-XXXXXX");
    const int fd = mkstemp(path); /* mode 0600 */
    cr_assert(fd >= 0);
    cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

/* Ports that nobody listens at; kept apart by being held until all are known. */
static void
find_ports(uint16_t ports[ROUTERS])
{
    int fds[ROUTERS];
    for (int i = 0; i < ROUTERS; i++) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t len = sizeof at;
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        cr_assert_eq(bind(fds[i], (struct sockaddr *)&at, len), 0);
        cr_assert_eq(getsockname(fds[i], (struct sockaddr *)&at, &len), 0);
        ports[i] = ntohs(at.sin_port);
    }
    for (int i = 0; i < ROUTERS; i++)
        close(fds[i]);
}

static void
setup(void)
{
    uint16_t ports[ROUTERS];
    write_secret(secret, "the secret of this cell\n");
    write_secret(other_secret, "the secret of another cell\n");
    find_ports(ports);
    snprintf(control, sizeof control,
             "--router-urls=tcp://127.0.0.1:%u,tcp://127.0.0.1:%u --control-host=127.0.0.1 "
             "--cluster-secret-file=%s",
             ports[0], ports[1], secret);
}

static void
teardown(void)
{
    fleet_clean_up();
    unlink(secret);
    unlink(other_secret);
}

TestSuite(tcp, .init = setup, .fini = teardown, .timeout = 170);

static fleet_options
over_tcp(const char *router_flags)
{
    return (fleet_options){.routers = ROUTERS,
                           .cell_flags = control,
                           .router_flags = router_flags,
                           .frontend_flags = control};
}

/* conclave-ctl with the addresses of the cell and another secret's option. */
static int
ask_with(const char *secret_flag, char *said, size_t size)
{
    char flags[512];
    snprintf(flags, sizeof flags, "%.*s%s", (int)(strstr(control, "--cluster") - control), control,
             secret_flag);
    return fleet_run(&f, "ctl", flags, said, size);
}

Test(tcp, answers_are_those_of_a_cell_in_a_run_directory)
{
    request_set requests;
    answer_set want, got;
    requests_make(&requests, FLEET_QUICK ? 4 : 12, 3);
    fleet_start(&f, &(fleet_options){.router_flags = ROOM});
    requests_ask_alone(&requests, f.url, &want);
    fleet_stop(&f);

    fleet_options options = over_tcp(ROOM " --exchange=nng"); /* as if no memory were shared */
    fleet_start(&f, &options);
    requests_ask_together(&requests, f.url, &got);
    answers_expect_equal(&got, &want, "over TCP");
    answers_free(&got);
    cr_expect_gt(fleet_router_metric(&f, "conclave:router_seconds_total", 1), 0,
                 "router 1 has done nothing");

    /* A worker that dies comes back at another port. */
    fleet_process *worker = fleet_find(&f, "worker-1");
    kill(worker->pid, SIGKILL);
    fleet_wait_exit(worker);
    fleet_start_worker(&f, 1);
    requests_ask_together(&requests, f.url, &got);
    answers_expect_equal(&got, &want, "with a new worker");
    answers_free(&got);
    answers_free(&want);
    requests_free(&requests);
    fleet_stop(&f);
}

Test(tcp, who_does_not_know_the_secret_is_refused)
{
    char said[2048], flag[128];
    fleet_options options = over_tcp(NULL);
    options.errors_expected = true;
    fleet_start(&f, &options);
    cr_expect_eq(fleet_run(&f, "ctl", control, said, sizeof said), 0, "%s", said);
    cr_expect_not_null(strstr(said, "ready; epoch"), "%s", said);

    cr_expect_neq(ask_with("", said, sizeof said), 0);
    cr_expect_not_null(strstr(said, "--cluster-secret-file"), "%s", said);
    snprintf(flag, sizeof flag, "--cluster-secret-file=%s", other_secret);
    cr_expect_neq(ask_with(flag, said, sizeof said), 0);
    cr_expect_not_null(strstr(said, "does not know the secret"), "%s", said);

    /* A worker of another cell gives up and says why. */
    char flags[512];
    snprintf(flags, sizeof flags, "--model=%s --worker-id=7 %.*s%s", f.model,
             (int)(strstr(control, "--cluster") - control), control, flag);
    cr_expect_eq(fleet_run(&f, "worker", flags, said, sizeof said), 1);
    cr_expect_not_null(strstr(said, "secret"), "%s", said);
    fleet_stop(&f);
}
