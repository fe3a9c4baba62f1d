/* client: sends a schedule of requests and records what comes back.
 *
 * One thread drives every connection (libcurl's multi interface).  A request is started at its
 * scheduled time, or as soon after it as concurrency_max allows; the record keeps both times.
 * Times of chunks are taken when their bytes reach this process, before they are parsed.
 *
 * A closed loop is a schedule in which all is due at 0, and concurrency_max: a request is sent when
 * another one ends.  A later turn of a session is due when the turn before it has ended, plus
 * think_ns; its prompt is the session so far (every turn's prompt and its answer) and its own text.
 * When a turn fails, the turns after it fail with it, unsent.
 *
 * The client watches itself.  Its lag on a request is send_ns - ready_ns: how long after the time
 * at which the request was due and allowed it was really sent.  client_stats tells the rest.
 *
 * A load that is held for a time (hold_ns) ends with the requests that are then under way; records
 * of those that were not sent by then stay empty.
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

/* What driving the run took.  A thread that is busy nearly all the time is a bottleneck: it reads
 * chunks late, and the latencies are its own. */
typedef struct client_stats {
    uint64_t wall_ns, cpu_ns; /* of the whole run; cpu of the driving thread */
    uint64_t round_max_ns;    /* the longest time between two looks at the network */
    uint64_t rounds;
    size_t sent; /* requests that were started; the first ones, where hold_ns ended the run */
} client_stats;

typedef struct client_config {
    const char *url;     /* of the completions endpoint */
    const char *model;   /* what the body names */
    const char *api_key; /* NULL = none */
    double temperature;
    bool ignore_eos;
    uint64_t seed;            /* request i samples with seed + i */
    uint32_t concurrency_max; /* requests in flight; 0 = no limit */
    uint32_t timeout_ms;      /* of one request, from its sending; 0 = none */
    uint64_t hold_ns; /* after it nothing more is sent; 0 = all is sent.  No sessions then */

    const volatile sig_atomic_t *stop; /* nonzero: fail what is unfinished and return; or NULL */
    void (*on_progress)(void *ctx, const client_progress *progress); /* several times a second */
    void *progress_ctx;
    client_stats *stats; /* filled at the end; or NULL */
} client_config;

/* Send prompts [count] at arrivals_ns [count] (ns from the start of the run, never decreasing) and
 * fill records [count], which the caller has initialised.  The arrivals of later turns are not
 * read.  A request's failure is in its record and no error of this call. MOE_ENOMEM, MOE_EINTERNAL
 * libcurl could not be set up; unsent requests' records are marked */
moe_err client_run(const client_config *config, const prompt *prompts, const uint64_t *arrivals_ns,
                   size_t count, request_record *records, errbuf *eb);

#endif
