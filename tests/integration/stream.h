/* stream: clients that read completions as they come, on threads of their own, and may leave early.
 *
 * Threads: stream_start() starts one thread for each stream, stream_join() joins it; text and
 * counts are read after that, `events` at any time.
 */
#ifndef MOE_TESTS_INTEGRATION_STREAM_H
#define MOE_TESTS_INTEGRATION_STREAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "common/strbuf.h"

typedef struct stream {
    /* In. */
    char url[96];
    char body[512];       /* of POST /v1/completions; with "stream":true */
    unsigned leave_after; /* events; 0 = stay to the end */

    /* Out. */
    _Atomic unsigned events;
    long status;
    bool left, done; /* done: [DONE] was seen */
    strbuf text;     /* the choices' texts */
    char error[160];

    pthread_t thread;
    strbuf line;
} stream;

void stream_start(stream *s);
void stream_join(stream *s); /* text stays until stream_fini() */
void stream_fini(stream *s);

#endif
