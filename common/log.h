/* log: one line an event, to standard error: time, level, role, subsystem, text.
 *
 *   2026-01-02T03:04:05.678Z I router-0 exchange: worker joined worker=2 backend=shm
 *
 * Texts are sentences followed by key=value pairs; keys carry their unit (prefill_ms=).  Nothing is
 * logged per token above LOG_LEVEL_DEBUG.  The level is tested before anything is formatted.
 *
 * Control characters become spaces, and a line is cut at 1023 bytes.
 *
 * Threads: any thread may log; a line is written with one write(2).
 */
#ifndef MOE_COMMON_LOG_H
#define MOE_COMMON_LOG_H

#include <stdbool.h>

#include "common/err.h"

typedef enum log_level {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARN,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG
} log_level;

/* role: who this process is ("router-0"); copied, cut to 31 bytes. */
void log_init(const char *role, log_level level);

/* "error" | "warn" | "info" | "debug"; MOE_EINVAL for anything else. */
moe_err log_level_parse(const char *text, log_level *out);

bool log_enabled(log_level level);

void log_write(log_level level, const char *subsystem, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define LOG_AT(level, subsystem, ...)                                                              \
    do {                                                                                           \
        if (log_enabled(level)) log_write(level, subsystem, __VA_ARGS__);                          \
    } while (0)
#define LOG_ERROR(subsystem, ...) LOG_AT(LOG_LEVEL_ERROR, subsystem, __VA_ARGS__)
#define LOG_WARN(subsystem, ...) LOG_AT(LOG_LEVEL_WARN, subsystem, __VA_ARGS__)
#define LOG_INFO(subsystem, ...) LOG_AT(LOG_LEVEL_INFO, subsystem, __VA_ARGS__)
#define LOG_DEBUG(subsystem, ...) LOG_AT(LOG_LEVEL_DEBUG, subsystem, __VA_ARGS__)

#endif
