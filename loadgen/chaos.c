#include "loadgen/chaos.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "common/clock.h"
#include "common/json.h"

#define STATUS_BYTES_MAX 65536
#define TIME_S_MAX 1e7
#define LOOK_AHEAD_NS (500 * NS_PER_MS)

struct chaos {
    chaos_plan *plan;
    const char *status_command;
    pthread_t thread;
    uint64_t start_ns;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stopping; /* guarded by lock */
};

/* ---- the grammar ---- */

/* "10s", "1.5s", "250ms"; the rest of the text is returned in *end. */
static bool
parse_time(const char *text, uint64_t *out_ns, const char **end)
{
    char *unit;
    const double number = strtod(text, &unit);
    double ns = number * (double)NS_PER_S;
    if (unit == text || !(number >= 0 && number <= TIME_S_MAX)) return false;
    if (strncmp(unit, "ms", 2) == 0) {
        ns = number * (double)NS_PER_MS;
        unit += 2;
    } else if (*unit == 's') {
        unit += 1;
    } else {
        return false;
    }
    *out_ns = (uint64_t)ns;
    *end = unit + strspn(unit, " ");
    return true;
}

/* The last " at " of a step is its time's: a command may hold the word too. */
static char *
find_last_at(char *text)
{
    char *found = NULL;
    for (char *at = strstr(text, " at "); at != NULL; at = strstr(at + 1, " at ")) {
        found = at;
    }
    return found;
}

static bool
parse_target(const char *text, chaos_step *out)
{
    static const char *const roles[] = {"frontend", "router", "worker", "pid"};
    for (int role = CHAOS_FRONTEND; role <= CHAOS_PID; role++) {
        const size_t len = strlen(roles[role]);
        if (strncmp(text, roles[role], len) != 0) continue;
        out->role = (chaos_role)role;
        text += len;
        if (role == CHAOS_FRONTEND) return *text == '\0';
        char *end;
        errno = 0;
        out->id = strtoll(text, &end, 10);
        return end != text && *end == '\0' && errno == 0 &&
               out->id >= (role == CHAOS_PID ? 2 : 0) && out->id <= INT32_MAX && *text == ' ';
    }
    return false;
}

static bool
parse_step(char *text, chaos_step *out)
{
    static const char *const actions[] = {"kill ", "term ", "stop ", "cont ", "run "};
    const char *end;
    *out = (chaos_step){0};
    char *at = find_last_at(text);
    if (at == NULL || !parse_time(at + 4, &out->at_ns, &end)) return false;
    if (strncmp(end, "for ", 4) == 0 && !parse_time(end + 4, &out->for_ns, &end)) return false;
    if (*end != '\0') return false;
    while (at > text && at[-1] == ' ')
        at--;
    *at = '\0';
    if (strlen(text) >= sizeof out->text) return false;
    strcpy(out->text, text);
    for (int action = CHAOS_KILL; action <= CHAOS_RUN; action++) {
        const size_t len = strlen(actions[action]);
        if (strncmp(text, actions[action], len) != 0) continue;
        out->action = (chaos_action)action;
        if (out->for_ns != 0 && action != CHAOS_STOP) return false;
        return action == CHAOS_RUN ? text[len] != '\0' : parse_target(text + len, out);
    }
    return false;
}

static moe_err
add_step(chaos_plan *plan, const chaos_step *step, errbuf *eb)
{
    if (plan->count == CHAOS_STEPS_MAX)
        return err_set(eb, MOE_ERANGE, "chaos: more than %d steps", CHAOS_STEPS_MAX);
    size_t at = plan->count++;
    for (; at > 0 && plan->steps[at - 1].at_ns > step->at_ns; at--) {
        plan->steps[at] = plan->steps[at - 1];
    }
    plan->steps[at] = *step;
    return MOE_OK;
}

/* A stop with a "for" is two steps. */
static moe_err
add_steps(chaos_plan *plan, chaos_step *step, errbuf *eb)
{
    const uint64_t for_ns = step->for_ns;
    const moe_err err = add_step(plan, step, eb);
    if (err || for_ns == 0) return err;
    step->action = CHAOS_CONT;
    step->at_ns += for_ns;
    memcpy(step->text, "cont", 4); /* as long as "stop" */
    return add_step(plan, step, eb);
}

moe_err
chaos_parse(const char *text, chaos_plan *out, errbuf *eb)
{
    *out = (chaos_plan){0};
    moe_err err = MOE_OK;
    char *copy = strdup(text), *save = NULL;
    if (copy == NULL) return err_set(eb, MOE_ENOMEM, "chaos: out of memory");
    for (char *word = strtok_r(copy, ";", &save); word && !err; word = strtok_r(NULL, ";", &save)) {
        chaos_step step;
        char original[128];
        word += strspn(word, " ");
        size_t len = strlen(word);
        while (len > 0 && word[len - 1] == ' ')
            word[--len] = '\0';
        snprintf(original, sizeof original, "%s", word);
        if (!parse_step(word, &step))
            err = err_set(
                eb, MOE_EINVAL,
                "chaos: \"%s\" must be like \"kill worker 2 at 10s\", \"stop router 0 at 5s "
                "for 2s\" or \"run COMMAND at 3s\"",
                original);
        else
            err = add_steps(out, &step, eb);
    }
    if (!err && out->count == 0) err = err_set(eb, MOE_EINVAL, "chaos: no step in \"%s\"", text);
    free(copy);
    return err;
}

/* ---- doing it ---- */

/* The command's output into out [size], cut there.  Its exit status is not looked at: a fleet with
 * a dead worker is what this is for. */
static moe_err
read_command(const char *command, char *out, size_t size, errbuf *eb)
{
    FILE *from = popen(command, "r");
    if (from == NULL) return err_set(eb, MOE_EIO, "%s: %s", command, strerror(errno));
    const size_t got = fread(out, 1, size - 1, from);
    out[got] = '\0';
    pclose(from);
    return MOE_OK;
}

static moe_err
pid_of(const cJSON *root, const chaos_step *step, pid_t *out, errbuf *eb)
{
    static const char *const lists[] = {"frontend", "routers", "workers"};
    const cJSON *at = cJSON_GetObjectItemCaseSensitive(root, lists[step->role]), *item = NULL;
    int64_t id = -1, pid = 0;
    if (step->role == CHAOS_FRONTEND) item = at;
    for (at = at && step->role != CHAOS_FRONTEND ? at->child : NULL; at; at = at->next) {
        if (json_get_i64(at, "id", 0, INT32_MAX, &id, NULL) == MOE_OK && id == step->id) item = at;
    }
    if (item == NULL) return err_set(eb, MOE_ENOTFOUND, "the status names no such process");
    const moe_err err = json_get_i64(item, "pid", 2, INT32_MAX, &pid, eb);
    if (err || pid == 0) return err_set(eb, MOE_ENOTFOUND, "it does not run");
    *out = (pid_t)pid;
    return MOE_OK;
}

static moe_err
find_pid(const chaos *c, const chaos_step *step, pid_t *out, errbuf *eb)
{
    char text[STATUS_BYTES_MAX];
    cJSON *root;
    if (step->role == CHAOS_PID) {
        *out = (pid_t)step->id;
        return MOE_OK;
    }
    if (c->status_command == NULL)
        return err_set(eb, MOE_EINVAL, "no status command was given to find it with");
    moe_err err = read_command(c->status_command, text, sizeof text, eb);
    if (!err) err = json_parse(text, strlen(text), &root, eb);
    if (err) return err_wrap(eb, err, "%s", c->status_command);
    err = pid_of(root, step, out, eb);
    cJSON_Delete(root);
    return err;
}

/* The process is looked up once more when it is gone, or was not there before: it may have been
 * replaced. */
static moe_err
send_signal(const chaos *c, chaos_step *step, errbuf *eb)
{
    static const int signals[] = {SIGKILL, SIGTERM, SIGSTOP, SIGCONT};
    if (step->pid != 0 && kill(step->pid, signals[step->action]) == 0) return MOE_OK;
    const moe_err err = find_pid(c, step, &step->pid, eb);
    if (err) return err;
    if (kill(step->pid, signals[step->action]) != 0)
        return err_set(eb, MOE_EIO, "pid %ld: %s", (long)step->pid, strerror(errno));
    return MOE_OK;
}

static void
do_step(const chaos *c, chaos_step *step)
{
    errbuf eb = {""};
    moe_err err = MOE_OK;
    if (step->action == CHAOS_RUN) {
        const int status = system(step->text + strlen("run "));
        if (status != 0)
            err = err_set(&eb, MOE_EIO, "its status is %d",
                          WIFEXITED(status) ? WEXITSTATUS(status) : status);
    } else {
        err = send_signal(c, step, &eb);
    }
    step->done_ns = clock_now_ns() - c->start_ns;
    if (err) snprintf(step->outcome, sizeof step->outcome, "%s", eb.text);
    fprintf(stderr, "chaos: %s at %.3f s%s%s\n", step->text, (double)step->done_ns / 1e9,
            err ? " failed: " : "", err ? eb.text : "");
}

/* Until it is due or the run is over; false then. */
static bool
wait_until(chaos *c, uint64_t at_ns)
{
    const uint64_t due = c->start_ns + at_ns;
    const struct timespec ts = {.tv_sec = (time_t)(due / NS_PER_S),
                                .tv_nsec = (long)(due % NS_PER_S)};
    pthread_mutex_lock(&c->lock);
    int timed_out = 0;
    while (!c->stopping && timed_out == 0)
        timed_out = pthread_cond_timedwait(&c->wake, &c->lock, &ts);
    const bool stopping = c->stopping;
    pthread_mutex_unlock(&c->lock);
    return !stopping;
}

static void *
run_steps(void *arg)
{
    chaos *c = arg;
    for (size_t i = 0; i < c->plan->count; i++) {
        chaos_step *step = &c->plan->steps[i];
        const bool is_end = step->for_ns != 0 && step->action == CHAOS_CONT;
        /* Asking takes a while, and the signal is to be in time. */
        if (step->action != CHAOS_RUN && step->at_ns > LOOK_AHEAD_NS &&
            wait_until(c, step->at_ns - LOOK_AHEAD_NS) && find_pid(c, step, &step->pid, NULL))
            step->pid = 0;
        if (wait_until(c, step->at_ns) || is_end) do_step(c, step);
    }
    return NULL;
}

moe_err
chaos_start(chaos **out, chaos_plan *plan, const char *status_command, errbuf *eb)
{
    *out = NULL;
    chaos *c = calloc(1, sizeof *c);
    if (c == NULL) return err_set(eb, MOE_ENOMEM, "chaos: out of memory");
    c->plan = plan;
    c->status_command = status_command;
    c->start_ns = clock_now_ns();
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&c->thread, NULL, run_steps, c) != 0) {
        pthread_mutex_destroy(&c->lock);
        pthread_cond_destroy(&c->wake);
        free(c);
        return err_set(eb, MOE_EIO, "chaos: no thread");
    }
    *out = c;
    return MOE_OK;
}

void
chaos_stop(chaos *c)
{
    if (c == NULL) return;
    pthread_mutex_lock(&c->lock);
    c->stopping = true;
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->lock);
    pthread_join(c->thread, NULL);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->wake);
    free(c);
}
