/* routed_experts: which experts a sequence's tokens used, gathered step by step and printed as vLLM
 * prints it: a JSON string, base64 of a NumPy .npy file, ids of shape (tokens, layers, top_k),
 * uint8 or little-endian uint16.  The experts of a token and layer are in the gate's order, the
 * first weighs most.
 *
 * Threads: one at a time.
 */
#ifndef MOE_FRONTEND_ROUTED_EXPERTS_H
#define MOE_FRONTEND_ROUTED_EXPERTS_H

#include <stdbool.h>

#include "common/strbuf.h"
#include "frontend/gen_params.h"

typedef struct routed_experts {
    uint32_t first, end; /* positions that are kept: first .. end-1 */
    uint32_t token_bytes;
    routing_shape shape;
    uint32_t known;       /* positions before this one have come */
    unsigned char *bytes; /* [end - first][token_bytes], owned */
    bool failed;          /* out of memory, or positions came that leave a gap */
} routed_experts;

/* first <= end.  Out of memory sets `failed`. */
void routed_experts_init(routed_experts *r, const routing_shape *shape, uint32_t first,
                         uint32_t end);
void routed_experts_fini(routed_experts *r);

/* ids [count][num_layers][top_k] of the tokens from position on; what lies outside of first ..
 * end-1 is left out. */
void routed_experts_put(routed_experts *r, uint32_t position, const uint8_t *ids, uint32_t count);

/* Append the string for positions first .. total-1, or null if they did not all come. */
void routed_experts_print(const routed_experts *r, uint32_t total, strbuf *out);

#endif
