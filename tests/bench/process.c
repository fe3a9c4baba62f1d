#include "tests/bench/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORD_BYTES_MAX 4096
#define OUTPUT_BYTES_MAX ((size_t)16 << 20)
#define POLL_MS 5

static volatile sig_atomic_t interrupted;

static void
on_signal(int sig)
{
    (void)sig;
    interrupted = 1;
}

void
process_catch_signals(void)
{
    const struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART: reads end */
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
}

bool
process_interrupted(void)
{
    return interrupted != 0;
}

void
command_add(command *c, const char *fmt, ...)
{
    char word[WORD_BYTES_MAX];
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(word, sizeof word, fmt, args);
    va_end(args);
    if (c->count + 1 >= PROCESS_ARGS_MAX || n < 0 || n >= WORD_BYTES_MAX) {
        c->full = true;
        return;
    }
    c->words[c->count] = strdup(word);
    c->full = c->full || c->words[c->count] == NULL;
    if (c->words[c->count] != NULL) c->count++;
}

void
command_add_words(command *c, const char *text)
{
    while (text != NULL && *text != '\0') {
        const size_t n = strcspn(text, " ");
        if (n > 0) command_add(c, "%.*s", (int)n, text);
        text += n + strspn(text + n, " ");
    }
}

void
command_fini(command *c)
{
    for (uint32_t i = 0; i < c->count; i++)
        free(c->words[i]);
    *c = (command){0};
}

/* In the child: only what is safe between fork and exec. */
static void
become(const command *c, int out, int err, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(127);
    dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    if (err >= 0) dup2(err, STDERR_FILENO);
    execv(c->words[0], c->words);
    _exit(127);
}

static moe_err
check(const command *c, errbuf *eb)
{
    if (c->count == 0 || c->full)
        return err_set(eb, MOE_EINVAL, "a command line of too many or too long words");
    if (access(c->words[0], X_OK) != 0)
        return err_set(eb, MOE_EIO, "%s: no such program", c->words[0]);
    return MOE_OK;
}

moe_err
process_start(process *out, const char *name, const command *c, const char *log, errbuf *eb)
{
    *out = (process){0};
    snprintf(out->name, sizeof out->name, "%s", name);
    const moe_err err = check(c, eb);
    if (err) return err;
    const int to = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (to < 0) return err_set(eb, MOE_EIO, "%s: can't be written", log);
    const pid_t parent = getpid(), pid = fork();
    if (pid == 0) become(c, to, to, parent);
    close(to);
    if (pid < 0) return err_set(eb, MOE_EIO, "can't fork");
    out->pid = pid;
    return MOE_OK;
}

bool
process_running(process *p)
{
    if (p->pid != 0 && waitpid(p->pid, NULL, WNOHANG) != 0) p->pid = 0;
    return p->pid != 0;
}

void
process_wait(process *p)
{
    while (process_running(p))
        poll(NULL, 0, POLL_MS);
}

void
process_end(process *p, uint32_t patience_ms)
{
    if (!process_running(p)) return;
    kill(p->pid, SIGTERM);
    for (uint32_t waited = 0; process_running(p); waited += POLL_MS) {
        if (waited >= patience_ms) {
            kill(p->pid, SIGKILL);
            waitpid(p->pid, NULL, 0);
            p->pid = 0;
            return;
        }
        poll(NULL, 0, POLL_MS);
    }
}

static moe_err
collect(int from, char **out, errbuf *eb)
{
    size_t len = 0, room = 65536;
    char *text = malloc(room);
    for (ssize_t n; text != NULL && (n = read(from, text + len, room - 1 - len)) > 0;) {
        len += (size_t)n;
        if (room - 1 > len) continue;
        if (room >= OUTPUT_BYTES_MAX) break;
        char *grown = realloc(text, room *= 2);
        if (grown == NULL) free(text);
        text = grown;
    }
    *out = text;
    if (text == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    text[len] = '\0';
    return MOE_OK;
}

static void
wait_for(pid_t pid, int *status)
{
    bool told = false;
    for (;;) {
        if (interrupted && !told) kill(pid, SIGTERM);
        told = interrupted;
        if (waitpid(pid, status, 0) == pid || errno != EINTR) return;
    }
}

moe_err
process_run(const command *c, char **out, int *status, errbuf *eb)
{
    int ends[2] = {-1, -1}, got = 0;
    if (out != NULL) *out = NULL;
    *status = 127;
    moe_err err = check(c, eb);
    if (err) return err;
    if (out != NULL && pipe2(ends, O_CLOEXEC) != 0) return err_set(eb, MOE_EIO, "no pipe");
    fflush(NULL);
    const pid_t parent = getpid(), pid = fork();
    if (pid == 0) become(c, out != NULL ? ends[1] : STDERR_FILENO, -1, parent);
    if (out != NULL) close(ends[1]);
    if (pid < 0) err = err_set(eb, MOE_EIO, "can't fork");
    if (!err && out != NULL) err = collect(ends[0], out, eb);
    if (out != NULL) close(ends[0]);
    if (pid > 0) wait_for(pid, &got);
    if (!err && interrupted) err = err_set(eb, MOE_ECLOSED, "interrupted");
    if (err && out != NULL) {
        free(*out);
        *out = NULL;
    }
    *status = WIFEXITED(got) ? WEXITSTATUS(got) : 128 + WTERMSIG(got);
    return err;
}
