/* load: clients that ask without a pause, compare every answer with what it must be, and note when
 * parts of streams came.
 *
 * Each client draws its next request from the set, by a seed.  A failed request is counted, and the
 * first one kept; no function here fails a test.
 *
 * Threads: start, end and free from one; one thread for each client.
 */
#ifndef MOE_TESTS_INTEGRATION_LOAD_H
#define MOE_TESTS_INTEGRATION_LOAD_H

#include "tests/integration/requests.h"

#define LOAD_CLIENTS_MAX 16

typedef struct load load;

/* All but the seed are borrowed until load_free(). */
load *load_start(const request_set *requests, const answer_set *want, const char *url,
                 uint32_t clients, uint64_t seed);
/* Ask nothing more, and wait for what was asked. */
void load_end(load *l);
void load_free(load *l); /* accepts NULL; after load_end() */

/* ---- after load_end() ---- */

typedef struct load_report {
    uint64_t answers, failures;
    char first_failure[512];
} load_report;
void load_get_report(const load *l, load_report *out);

/* Of the streams that had begun and not ended at since_ns (clock_now_ns() time), the one whose next
 * part took longest from then on: how long, in ns.  0: there were none. */
uint64_t load_longest_wait(const load *l, uint64_t since_ns);

#endif
