/* determinism: do two runs of the same requests give the same answers?
 *
 * Texts, finish reasons and token counts are compared, request by request.  A request that failed
 * in either run can't be compared; a later turn of a session is compared too, since equal answers
 * before it make equal prompts.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_DETERMINISM_H
#define MOE_LOADGEN_DETERMINISM_H

#include <stddef.h>

#include "loadgen/record.h"

typedef struct determinism {
    size_t compared, equal, different, skipped;
    size_t first_different; /* the request; when different > 0 */
    size_t first_byte;      /* where its texts part */
} determinism;

/* a and b [count], of the same prompts and seeds. */
determinism determinism_compare(const request_record *a, const request_record *b, size_t count);

#endif
