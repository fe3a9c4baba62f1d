/* entries: where the entries of a data set lie in its text, without parsing them.
 *
 * Data sets can be hundreds of megabytes while a run needs fifty prompts; so the text is only cut
 * here, and a caller parses the few entries that it uses.
 *
 * Threads: one at a time for each list.
 */
#ifndef MOE_LOADGEN_ENTRIES_H
#define MOE_LOADGEN_ENTRIES_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define ENTRIES_MAX (1u << 24)

typedef struct entry {
    const char *text; /* borrowed from the data set's text */
    size_t len;
    size_t number; /* from 1: the line in the file, or the element of the array */
} entry;

typedef struct entries {
    entry *at; /* [count], owned */
    size_t count, capacity;
} entries;

/* JSON Lines: every line that is not blank.
 *   MOE_ERANGE  more than ENTRIES_MAX lines
 *   MOE_ENOMEM  */
moe_err entries_from_lines(const char *text, size_t len, entries *out, errbuf *eb);

/* One JSON array: each element.  Only brackets and strings are understood here; what is inside an
 * element is checked by whoever parses it.
 *   MOE_EINVAL  no array, or its end is missing
 *   MOE_ERANGE, MOE_ENOMEM  as above */
moe_err entries_from_array(const char *text, size_t len, entries *out, errbuf *eb);

/* Put them into the order that this seed stands for. */
void entries_shuffle(entries *list, uint64_t seed);

void entries_fini(entries *list);

#endif
