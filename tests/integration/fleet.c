#include "tests/integration/fleet.h"

#include <criterion/criterion.h>
#include <curl/curl.h>
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/run_dir.h"
#include "tests/support/paths.h"

#define PATIENCE_NS (90 * NS_PER_S) /* longer than anything takes, shorter than a test's limit */
#define PAUSE_MS 5
#define LOG_BYTES_MAX ((size_t)64 << 20)
#define ARGS_MAX 40
#define FLEETS_MAX 4

static fleet *live[FLEETS_MAX];

bool
fleet_asked_quick(void)
{
    const char *quick = getenv("CONCLAVE_TEST_QUICK");
    return quick != NULL && strcmp(quick, "1") == 0;
}

void
fleet_pause(uint64_t *since, const char *what)
{
    const uint64_t now = clock_now_ns();
    if (*since == 0) *since = now;
    cr_assert(now - *since < PATIENCE_NS, "waited too long for %s", what);
    poll(NULL, 0, PAUSE_MS);
}

/* ---- processes ---- */

/* Split flags at spaces, in place, and append them. */
static uint32_t
add_flags(char **args, uint32_t count, char *flags)
{
    for (char *save, *word = strtok_r(flags, " ", &save); word != NULL;
         word = strtok_r(NULL, " ", &save)) {
        cr_assert(count < ARGS_MAX - 1);
        args[count++] = word;
    }
    return count;
}

/* This process's environment with CONCLAVE_CPU_MASK set to mask (NULL: not set); free() it. */
static char **
environment_with(const char *mask, char *variable, size_t size)
{
    size_t n = 0, kept = 0;
    while (environ[n] != NULL)
        n++;
    char **all = calloc(n + 2, sizeof *all);
    cr_assert_not_null(all);
    for (size_t i = 0; i < n; i++)
        if (strncmp(environ[i], "CONCLAVE_CPU_MASK=", 18) != 0) all[kept++] = environ[i];
    snprintf(variable, size, "CONCLAVE_CPU_MASK=%s", mask == NULL ? "" : mask);
    if (mask != NULL) all[kept] = variable;
    return all;
}

/* In the child: only what is safe between fork and exec. */
static void
become(char **args, char **env, int output, pid_t parent, int netns)
{
    if (netns != 0 && setns(netns, CLONE_NEWNET) != 0) _exit(127);
    /* A test that is killed must not leave a fleet behind. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
    dup2(output, STDOUT_FILENO);
    dup2(output, STDERR_FILENO);
    close_range(STDERR_FILENO + 1, ~0U, 0); /* clients of this test have sockets open */
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(args[0], args, env);
    _exit(127);
}

static pid_t
spawn(const char *program, const char *flags, int output, const char *mask, int netns)
{
    char path[512], variable[64], *words = strdup(flags), *args[ARGS_MAX] = {path};
    const char *folder = getenv("CONCLAVE_BIN_DIR");
    snprintf(path, sizeof path, "%s/conclave-%s", folder == NULL ? "build/bin" : folder, program);
    add_flags(args, 1, words);
    char **env = environment_with(mask, variable, sizeof variable);
    const pid_t parent = getpid(), pid = fork();
    if (pid == 0) become(args, env, output, parent, netns);
    cr_assert(pid > 0);
    free(env);
    free(words);
    return pid;
}

/* The slot of a name: its old one, when a process is started again. */
static fleet_process *
process_slot(fleet *f, const char *name)
{
    fleet_process *p = fleet_find(f, name);
    if (p == NULL) {
        cr_assert(f->process_count < FLEET_PROCESSES_MAX);
        p = &f->processes[f->process_count++];
    }
    cr_assert_eq(p->pid, 0, "%s runs already", name);
    snprintf(p->name, sizeof p->name, "%s", name);
    return p;
}

static fleet_process *
start(fleet *f, const char *program, const char *name, const char *own, const char *cell,
      const char *more, const char *mask, int netns)
{
    char flags[2048], log[128];
    snprintf(flags, sizeof flags, "--run-dir=%s --model=%s %s %s %s", f->dir, f->model, own,
             cell == NULL ? "" : cell, more == NULL ? "" : more);
    snprintf(log, sizeof log, "%s/%s.log", f->dir, name);
    const int output = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    cr_assert(output >= 0, "%s", log);
    fleet_process *p = process_slot(f, name);
    p->pid = spawn(program, flags, output, mask, netns);
    close(output);
    return p;
}

fleet_process *
fleet_start_router(fleet *f)
{
    return fleet_start_router_id(f, 0);
}

fleet_process *
fleet_start_router_id(fleet *f, uint32_t id)
{
    char own[64], name[16];
    snprintf(own, sizeof own, "--workers=%u --routers=%u --router-id=%u", f->options.workers,
             f->options.routers, id);
    snprintf(name, sizeof name, "router-%u", id);
    return start(f, "router", name, own, f->options.cell_flags, f->options.router_flags,
                 f->options.router_mask, 0);
}

fleet_process *
fleet_start_worker(fleet *f, uint32_t id)
{
    char own[32], name[16];
    snprintf(own, sizeof own, "--worker-id=%u", id);
    snprintf(name, sizeof name, "worker-%u", id);
    const fleet_options *o = &f->options;
    const bool far = o->far_netns != 0 && id >= o->far_from;
    return start(f, "worker", name, own, o->cell_flags, far ? o->far_worker_flags : o->worker_flags,
                 o->worker_masks[id], far ? o->far_netns : 0);
}

fleet_process *
fleet_start_frontend(fleet *f)
{
    char own[64];
    snprintf(own, sizeof own, "--port=0 --routers=%u", f->options.routers);
    fleet_process *p =
        start(f, "frontend", "frontend", own, NULL, f->options.frontend_flags, NULL, 0);
    fleet_wait_log(f, "frontend", " model=");
    char *log = fleet_log(f, "frontend");
    const char *url = strstr(log, "url=http://");
    cr_assert_not_null(url, "%s", log);
    cr_assert_eq(sscanf(url, "url=%63s", f->url), 1);
    free(log);
    return p;
}

bool
fleet_is_running(const fleet_process *p)
{
    siginfo_t info = {0};
    return p->pid != 0 && waitid(P_PID, (id_t)p->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
}

int
fleet_wait_exit(fleet_process *p)
{
    uint64_t since = 0;
    int status = 0;
    cr_assert_neq(p->pid, 0, "%s was not started", p->name);
    while (waitpid(p->pid, &status, WNOHANG) == 0)
        fleet_pause(&since, p->name);
    p->pid = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

fleet_process *
fleet_find(fleet *f, const char *name)
{
    for (uint32_t i = 0; i < f->process_count; i++)
        if (strcmp(f->processes[i].name, name) == 0) return &f->processes[i];
    return NULL;
}

int
fleet_run(fleet *f, const char *program, const char *flags, char *out, size_t size)
{
    int ends[2];
    char all[2048];
    size_t len = 0;
    snprintf(all, sizeof all, "--run-dir=%s %s", f->dir, flags);
    cr_assert_eq(pipe2(ends, O_CLOEXEC), 0);
    fleet_process p = {.pid = spawn(program, all, ends[1], NULL, 0)};
    snprintf(p.name, sizeof p.name, "%s", program);
    close(ends[1]);
    for (ssize_t n; (n = read(ends[0], out + len, size - 1 - len)) > 0;)
        len += (size_t)n;
    out[len] = '\0';
    close(ends[0]);
    return fleet_wait_exit(&p);
}

/* ---- what they say ---- */

char *
fleet_log(const fleet *f, const char *name)
{
    char path[128], *text = NULL;
    size_t len = 0;
    snprintf(path, sizeof path, "%s/%s.log", f->dir, name);
    return file_read(path, LOG_BYTES_MAX, &text, &len, NULL) == MOE_OK ? text : strdup("");
}

void
fleet_wait_log(fleet *f, const char *name, const char *text)
{
    uint64_t since = 0;
    for (bool found = false; !found;) {
        const bool running = fleet_is_running(fleet_find(f, name));
        char *log = fleet_log(f, name);
        found = strstr(log, text) != NULL;
        cr_assert(found || running, "%s ended before it said \"%s\": %s", name, text, log);
        free(log);
        if (!found) fleet_pause(&since, text);
    }
}

uint32_t
fleet_count_log(const fleet *f, const char *name, const char *text)
{
    char *log = fleet_log(f, name);
    uint32_t count = 0;
    for (const char *at = log; (at = strstr(at, text)) != NULL; at++)
        count++;
    free(log);
    return count;
}

uint32_t
fleet_count_fds(fleet *f, const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd", (int)fleet_find(f, name)->pid);
    DIR *dir = opendir(path);
    cr_assert_not_null(dir);
    uint32_t count = 0;
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

static double
labelled_metric(const fleet *f, const char *name, const char *label)
{
    const size_t n = strlen(name);
    double value = NAN;
    http_reply r = http_call(f->url, "GET", "/metrics", NULL, NULL);
    for (const char *line = r.body; line != NULL && *line != '\0';) {
        const char *end = strchr(line, '\n'), *brace = strchr(line, '}');
        const bool named = strncmp(line, name, n) == 0 && (line[n] == ' ' || line[n] == '{');
        const char *at = label == NULL ? line : strstr(line, label);
        if (named && at != NULL && (end == NULL || at < end))
            value = strtod(line[n] == ' ' ? line + n : brace + 1, NULL);
        line = end == NULL ? NULL : end + 1;
    }
    http_reply_fini(&r);
    return value;
}

double
fleet_metric(const fleet *f, const char *name)
{
    return labelled_metric(f, name, NULL);
}

double
fleet_router_metric(const fleet *f, const char *name, uint32_t router)
{
    char label[32];
    snprintf(label, sizeof label, "router=\"%u\"", router);
    return labelled_metric(f, name, label);
}

void
fleet_wait_metric(const fleet *f, const char *name, double value)
{
    uint64_t since = 0;
    while (fleet_metric(f, name) != value)
        fleet_pause(&since, name);
}

/* ---- whole fleets ---- */

void
fleet_open(fleet *f, const fleet_options *options)
{
    curl_global_init(CURL_GLOBAL_DEFAULT); /* before any thread is started */
    *f = (fleet){.options = *options};
    if (f->options.workers == 0) f->options.workers = 2;
    if (f->options.routers == 0) f->options.routers = 1;
    cr_assert(f->options.workers <= FLEET_WORKERS_MAX);
    cr_assert(f->options.routers <= FLEET_ROUTERS_MAX);
    if (options->model != NULL)
        snprintf(f->model, sizeof f->model, "%s", options->model);
    else
        test_path(f->model, sizeof f->model, "models/" FLEET_MODEL);
    run_dir run;
    snprintf(f->dir, sizeof f->dir, "/tmp/conclave-test-XXXXXX");
    cr_assert_not_null(mkdtemp(f->dir));
    cr_assert_eq(run_dir_open(&run, f->dir, NULL), MOE_OK);
    snprintf(f->run_id, sizeof f->run_id, "%s", run.id);
    uint32_t i = 0;
    while (i < FLEETS_MAX && live[i] != NULL)
        i++;
    cr_assert(i < FLEETS_MAX);
    live[i] = f;
}

void
fleet_wait_ready(fleet *f)
{
    uint64_t since = 0;
    for (long status = 0; status != 200;) {
        http_reply r = http_call(f->url, "GET", "/health", NULL, NULL);
        status = r.status;
        http_reply_fini(&r);
        for (uint32_t i = 0; i < f->process_count; i++)
            cr_assert(fleet_is_running(&f->processes[i]), "%s ended", f->processes[i].name);
        if (status != 200) fleet_pause(&since, "/health");
    }
    /* It serves with the first already.  (/metrics needs the key where there is one.) */
    for (uint32_t r = 0; f->options.routers > 1 && r < f->options.routers; r++)
        fleet_wait_router(f, r);
}

void
fleet_wait_router(const fleet *f, uint32_t id)
{
    for (uint64_t since = 0; fleet_router_metric(f, "conclave:router_ready", id) != 1;)
        fleet_pause(&since, "a router");
}

void
fleet_start(fleet *f, const fleet_options *options)
{
    fleet_open(f, options);
    for (uint32_t id = 0; id < f->options.routers; id++)
        fleet_start_router_id(f, id);
    for (uint32_t id = 0; id < f->options.workers; id++)
        fleet_start_worker(f, id);
    fleet_start_frontend(f);
    fleet_wait_ready(f);
}

static void
check_logs(const fleet *f)
{
    static const char *const bad[] = {"Sanitizer", "runtime error:", "Assertion"};
    for (uint32_t i = 0; i < f->process_count; i++) {
        char *log = fleet_log(f, f->processes[i].name);
        for (size_t b = 0; b < sizeof bad / sizeof bad[0]; b++)
            cr_expect_null(strstr(log, bad[b]), "%s: %s", f->processes[i].name, log);
        if (!f->options.errors_expected)
            cr_expect_null(strstr(log, "Z E "), "%s: %s", f->processes[i].name, log);
        free(log);
    }
}

/* Call fn for every object in /dev/shm that carries the fleet's run id. */
static void
each_shm_object(const fleet *f, void (*fn)(const char *path))
{
    char prefix[64], path[512];
    snprintf(prefix, sizeof prefix, "conclave-%s-", f->run_id);
    DIR *dir = opendir("/dev/shm");
    cr_assert_not_null(dir);
    for (const struct dirent *d; (d = readdir(dir)) != NULL;) {
        if (strncmp(d->d_name, prefix, strlen(prefix)) != 0) continue;
        snprintf(path, sizeof path, "/dev/shm/%s", d->d_name);
        fn(path);
    }
    closedir(dir);
}

static uint32_t objects_counted;

static void
count_object(const char *path)
{
    (void)path;
    objects_counted++;
}

uint32_t
fleet_count_shm(const fleet *f)
{
    objects_counted = 0;
    each_shm_object(f, count_object);
    return objects_counted;
}

static void
expect_no_object(const char *path)
{
    cr_expect(false, "%s is left", path);
}

static void
remove_object(const char *path)
{
    unlink(path);
}

/* Only logs may be left in the run directory; they go with it. */
static void
remove_run_dir(const fleet *f, bool check)
{
    char path[512];
    DIR *dir = opendir(f->dir);
    cr_assert_not_null(dir);
    for (const struct dirent *d; (d = readdir(dir)) != NULL;) {
        if (d->d_name[0] == '.') continue;
        const char *dot = strrchr(d->d_name, '.');
        if (check)
            cr_expect(dot != NULL && strcmp(dot, ".log") == 0, "%s/%s is left", f->dir, d->d_name);
        snprintf(path, sizeof path, "%s/%s", f->dir, d->d_name);
        unlink(path);
    }
    closedir(dir);
    rmdir(f->dir);
}

static void
forget(const fleet *f)
{
    for (uint32_t i = 0; i < FLEETS_MAX; i++)
        if (live[i] == f) live[i] = NULL;
}

static void
stop_one(fleet_process *p)
{
    if (p->pid == 0) return;
    cr_expect(fleet_is_running(p), "%s ended before it was asked to", p->name);
    kill(p->pid, SIGTERM);
}

void
fleet_stop(fleet *f)
{
    fleet_process *frontend = fleet_find(f, "frontend");
    if (frontend != NULL && frontend->pid != 0) {
        stop_one(frontend);
        cr_expect_eq(fleet_wait_exit(frontend), 0, "frontend: its exit status is not 0");
    }
    for (uint32_t i = 0; i < f->process_count; i++)
        stop_one(&f->processes[i]);
    for (uint32_t i = 0; i < f->process_count; i++) {
        if (f->processes[i].pid == 0) continue;
        const int status = fleet_wait_exit(&f->processes[i]);
        cr_expect_eq(status, 0, "%s: exit status %d", f->processes[i].name, status);
    }
    check_logs(f);
    each_shm_object(f, expect_no_object);
    each_shm_object(f, remove_object);
    remove_run_dir(f, true);
    forget(f);
}

void
fleet_clean_up(void)
{
    for (uint32_t k = 0; k < FLEETS_MAX; k++) {
        fleet *f = live[k];
        if (f == NULL) continue;
        for (uint32_t i = 0; i < f->process_count; i++) {
            fleet_process *p = &f->processes[i];
            char *log = fleet_log(f, p->name);
            const size_t len = strlen(log);
            fprintf(stderr, "---- %s\n%s", p->name, len > 4000 ? log + len - 4000 : log);
            free(log);
            if (p->pid == 0) continue;
            kill(p->pid, SIGKILL);
            waitpid(p->pid, NULL, 0);
        }
        each_shm_object(f, remove_object);
        remove_run_dir(f, false);
        live[k] = NULL;
    }
}
