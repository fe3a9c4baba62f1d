/* stop_matcher: ends a text at the first stop string, without ever sending part of one.
 *
 * Text comes in pieces.  What could still be the beginning of a stop string is held back; all else
 * is let through at once.  The result does not depend on how the text was cut into pieces: the stop
 * string that ends first counts, and of several that end there, the longest.
 *
 * Threads: one at a time.
 */
#ifndef MOE_FRONTEND_STOP_MATCHER_H
#define MOE_FRONTEND_STOP_MATCHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/strbuf.h"

typedef struct stop_matcher {
    char *const *stops; /* [count], borrowed, none empty */
    const size_t *lens; /* [count], borrowed */
    uint32_t count;
    bool include; /* let the stop string itself through */
    int matched;  /* index of the stop string met, -1 = none yet */
    strbuf held;
} stop_matcher;

void stop_matcher_init(stop_matcher *m, char *const *stops, const size_t *lens, uint32_t count,
                       bool include);
void stop_matcher_fini(stop_matcher *m);

/* Take in text [len] and append to out what is certain.  True when a stop string was met: out then
 * has the text up to it, and nothing more may be pushed. */
bool stop_matcher_push(stop_matcher *m, const char *text, size_t len, strbuf *out);

/* The text ends here: append what was held back. */
void stop_matcher_flush(stop_matcher *m, strbuf *out);

#endif
