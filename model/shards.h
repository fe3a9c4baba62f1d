/* shards: the safetensors files of one folder, mapped, and which of them holds which tensor.
 *
 * A folder holds model.safetensors alone, or several files and model.safetensors.index.json, whose
 * weight_map names the file of every tensor.  With both, the single file is used, as transformers
 * does.  An index may only name plain files of its own folder.
 *
 * Threads: immutable after open; any thread may read.
 */
#ifndef MOE_MODEL_SHARDS_H
#define MOE_MODEL_SHARDS_H

#include <stddef.h>

#include "common/err.h"
#include "model/safetensors.h"

typedef struct shard {
    char *path;      /* owned */
    const void *map; /* owned */
    size_t bytes;
    safetensors table;
} shard;

typedef struct weight_ref weight_ref;

typedef struct shard_set {
    shard *shards; /* [count], in order of their names */
    size_t count;
    char *source;     /* owned: the path that lists every tensor: the index or the single file */
    weight_ref *refs; /* [ref_count], sorted by name; NULL without an index */
    size_t ref_count;
    char *ref_text; /* what the refs' strings point into */
} shard_set;

/* On MOE_OK release with shards_close(); on error *out is empty.
 *   MOE_ENOTFOUND  no weights, a file that the index names, or a tensor in it
 *   MOE_EINVAL     a header or the index breaks a rule; the text names file, tensor and reason
 *   MOE_ERANGE     an index of more than 100 MB
 *   MOE_EIO, MOE_ENOMEM  */
moe_err shards_open(shard_set *out, const char *dir, errbuf *eb);
void shards_close(shard_set *set);

/* Find a tensor and the file it is in.  Both outputs are borrowed from the set; NULL when there is
 * no such tensor. */
const safetensors_entry *shards_find(const shard_set *set, const char *name, const shard **where);

#endif
