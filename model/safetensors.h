/* safetensors: the table of contents of one file, checked before anything trusts it.
 *
 * A file is an 8-byte little-endian header length, a JSON header and the data.  The header maps
 * each tensor's name to its dtype, shape and [begin, end) in the data.  A parsed table promises:
 * names are unique, every range lies inside the file and overlaps no other, and its size is what
 * shape and dtype ask for.  Bytes that no tensor claims are tolerated.  Data is never touched.
 *
 * Source: the format's description in the README of huggingface/safetensors.
 *
 * Threads: immutable after the parse; any thread may read.
 */
#ifndef MOE_MODEL_SAFETENSORS_H
#define MOE_MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "model/checkpoint.h"

#define SAFETENSORS_HEADER_MAX 100000000u /* bytes, the format's own limit */
#define SAFETENSORS_VALUE_MAX (1u << 22)  /* JSON values: about 500,000 tensors */

typedef struct safetensors_entry {
    const char *name;  /* owned by the table */
    const char *dtype; /* as spelled in the file ("BF16"); static */
    uint32_t rank;
    uint64_t shape[TENSOR_RANK_MAX]; /* the first ones, when rank is larger */
    uint64_t begin, end;             /* bytes from the start of the file */
} safetensors_entry;

typedef struct safetensors {
    safetensors_entry *entries; /* [count], sorted by name */
    size_t count;
    char *names; /* what the entries' names point into */
} safetensors;

/* Parse the header of a file in memory: bytes [len], borrowed for the call.  `path` is for
 * messages.  On MOE_OK release with safetensors_fini(); on error *out is empty.
 *   MOE_EINVAL  one of the promises above does not hold; the text names file, tensor and reason
 *   MOE_ENOMEM  */
moe_err safetensors_parse(safetensors *out, const char *path, const void *bytes, size_t len,
                          errbuf *eb);
void safetensors_fini(safetensors *st);

/* NULL when the file has no such tensor. */
const safetensors_entry *safetensors_find(const safetensors *st, const char *name);

#endif
