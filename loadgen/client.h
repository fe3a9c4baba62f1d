/* client: sends a schedule of requests and records what comes back.
 *
 * One thread drives every connection (libcurl's multi interface).  A request is started at its
 * scheduled time, or as soon after it as concurrency_max allows; the record keeps both times.
 * Times of chunks are taken when their bytes reach this process, before they are parsed.
 *
 * Environment proxies are ignored: a measurement must not go through one unnoticed.
 *
 * Threads: client_run() blocks its caller; `stop` may be set from a signal handler.
 */
#ifndef MOE_LOADGEN_CLIENT_H
#define MOE_LOADGEN_CLIENT_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "loadgen/dataset.h"
#include "loadgen/record.h"

typedef struct client_progress {
    size_t count, sent, active, completed, failed;
    uint64_t chunks; /* of finished requests */
    uint64_t elapsed_ns;
} client_progress;

typedef struct client_config {
    const char *url;     /* of the completions endpoint */
    const char *model;   /* what the body names */
    const char *api_key; /* NULL = none */
    double temperature;
    bool ignore_eos;
    uint64_t seed;            /* request i samples with seed + i */
    uint32_t concurrency_max; /* requests in flight; 0 = no limit */
    uint32_t timeout_ms;      /* of one request, from its sending; 0 = none */

    const volatile sig_atomic_t *stop; /* nonzero: fail what is unfinished and return; or NULL */
    void (*on_progress)(void *ctx, const client_progress *progress); /* several times a second */
    void *progress_ctx;
} client_config;

/* Send prompts [count] at arrivals_ns [count] (ns from the start of the run, never decreasing) and
 * fill records [count], which the caller has initialised.  A request's failure is in its record and
 * no error of this call.
 *   MOE_ENOMEM, MOE_EINTERNAL  libcurl could not be set up; unsent requests' records are marked */
moe_err client_run(const client_config *config, const prompt *prompts, const uint64_t *arrivals_ns,
                   size_t count, request_record *records, errbuf *eb);

#endif
