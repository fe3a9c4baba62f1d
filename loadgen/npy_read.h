/* npy_read: an array of expert ids as a server returns it for "return_routed_experts": base64 of
 * NumPy's .npy format, version 1, of unsigned 8- or little-endian 16-bit numbers in C order, with
 * the shape (tokens, layers, top_k).
 *
 * Source: numpy.lib.format; vLLM's field `routed_experts`.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_NPY_READ_H
#define MOE_LOADGEN_NPY_READ_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define NPY_BYTES_MAX (64u << 20) /* of the array's file */
#define NPY_LAYERS_MAX 1024
#define NPY_TOPK_MAX 64
#define NPY_EXPERTS_MAX 4096 /* ids are below it */

typedef struct routed_ids {
    uint32_t tokens, layers, top_k;
    uint16_t *ids; /* [tokens, layers, top_k], owned; NULL when there are none */
} routed_ids;

/* text [len].  On MOE_OK release with routed_ids_fini(); on error *out is empty.
 *   MOE_EINVAL  no base64, no such file, or bytes are missing or left over
 *   MOE_ERANGE  a dimension or an id is outside its limit
 *   MOE_ENOMEM  */
moe_err routed_ids_read(const char *text, size_t len, routed_ids *out, errbuf *eb);
void routed_ids_fini(routed_ids *r);

#endif
