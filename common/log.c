#include "common/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1024

static char role_name[32] = "conclave";
/* Relaxed: a level change may reach other threads a few lines late. */
static _Atomic int current_level = LOG_LEVEL_INFO;

void
log_init(const char *role, log_level level)
{
    snprintf(role_name, sizeof role_name, "%s", role);
    atomic_store_explicit(&current_level, (int)level, memory_order_relaxed);
}

moe_err
log_level_parse(const char *text, log_level *out)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(text, names[i]) == 0) {
            *out = (log_level)i;
            return MOE_OK;
        }
    }
    return MOE_EINVAL;
}

bool
log_enabled(log_level level)
{
    return (int)level <= atomic_load_explicit(&current_level, memory_order_relaxed);
}

void
log_write(log_level level, const char *subsystem, const char *fmt, ...)
{
    char line[LINE_MAX_BYTES];
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);

    size_t n = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &utc);
    n += (size_t)snprintf(line + n, sizeof line - n, ".%03ldZ %c %s %s: ", now.tv_nsec / 1000000,
                          "EWID"[level], role_name, subsystem);
    if (n > sizeof line - 1) n = sizeof line - 1; /* a subsystem's name without end */
    va_list ap;
    va_start(ap, fmt);
    int body = vsnprintf(line + n, sizeof line - n, fmt, ap);
    va_end(ap);
    if (body > 0) n += (size_t)body;
    if (n > sizeof line - 2) n = sizeof line - 2; /* keep room for the newline */
    /* One event, one line: text from outside must not forge a second one, nor steer a terminal. */
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)line[i];
        if (c < 0x20 || c == 0x7f) line[i] = ' ';
    }
    line[n++] = '\n';
    ssize_t unused = write(STDERR_FILENO, line, n);
    (void)unused; /* nowhere to report a failing log */
}
