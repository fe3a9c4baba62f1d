/* checkpoint: a Hugging Face folder, mapped: config.json and the tensors of its safetensors files.
 *
 * Opening maps every file and checks every header: offsets inside the file, not overlapping, sizes
 * equal to the product of the shape, every tensor that the config asks for present with the right
 * shape and a dtype that can be read.  Tensor bytes are not touched, so a worker that packs only
 * its own experts reads only their bytes.
 *
 * Source: the safetensors format (8-byte little-endian header length, JSON header, data), and
 * model.safetensors.index.json for shards.
 *
 * Threads: immutable after open; any thread may read.
 */
#ifndef MOE_MODEL_CHECKPOINT_H
#define MOE_MODEL_CHECKPOINT_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "model/config.h"

typedef enum tensor_dtype { TENSOR_F32, TENSOR_F16, TENSOR_BF16 } tensor_dtype;

#define TENSOR_RANK_MAX 4

/* A tensor in a mapped file; borrowed from the checkpoint. */
typedef struct tensor_view {
    const char *name;
    const char *file; /* path, for messages */
    tensor_dtype dtype;
    uint32_t rank;
    uint64_t shape[TENSOR_RANK_MAX]; /* row-major, last fastest */
    const void *data;                /* alignment of the element is not promised */
    size_t bytes;
} tensor_view;

/* Which tensor of the model; those of a layer take the layer, those of an expert the expert too. */
typedef enum tensor_kind {
    TENSOR_EMBED,      /* [V, H] */
    TENSOR_FINAL_NORM, /* [H] */
    TENSOR_HEAD,       /* [V, H]; the embedding when tied */
    TENSOR_ATTN_NORM,  /* [H] input_layernorm */
    TENSOR_FFN_NORM,   /* [H] post_attention_layernorm */
    TENSOR_Q,          /* [heads * head_dim, H] */
    TENSOR_K,          /* [kv_heads * head_dim, H] */
    TENSOR_V,          /* [kv_heads * head_dim, H] */
    TENSOR_O,          /* [H, heads * head_dim] */
    TENSOR_GATE,       /* [E, H] */
    TENSOR_W1,         /* [I, H] gate projection of an expert */
    TENSOR_W2,         /* [H, I] down projection */
    TENSOR_W3,         /* [I, H] up projection */
    TENSOR_KIND_COUNT
} tensor_kind;

typedef struct checkpoint checkpoint;

/* On MOE_OK *out is owned by the caller: checkpoint_close().  On error *out is NULL and the text
 * names file, tensor and reason.  The files must not shrink while the checkpoint is open.
 *   MOE_ENOTFOUND     no config.json, no weights, or a shard or tensor is missing
 *   MOE_EINVAL        a header lies, is truncated or contradicts the config
 *   MOE_EUNSUPPORTED  another model than this system computes, or a dtype it doesn't read
 *   MOE_ERANGE        a JSON file is too large
 *   MOE_EIO, MOE_ENOMEM  */
moe_err checkpoint_open(checkpoint **out, const char *dir, errbuf *eb);
void checkpoint_close(checkpoint *c); /* accepts NULL */

const model_config *checkpoint_config(const checkpoint *c);

/* Never NULL for a layer and expert within the config (asserted): open() checked it.  Layer and
 * expert are ignored where the kind has none. */
const tensor_view *checkpoint_tensor(const checkpoint *c, tensor_kind kind, uint32_t layer,
                                     uint32_t expert);

/* The same for the same weights wherever they lie and however they are sharded: config sizes, and
 * every tensor's name, dtype, shape and a sample of its bytes (512, from 8 places: it tells models
 * apart, it is no proof that every byte is equal).  Processes that disagree are refused at
 * registration.  Touches 8 pages a tensor: call it once. */
uint64_t checkpoint_fingerprint(const checkpoint *c);

/* Changes when a weight file is replaced or written to: the names, sizes and modification times of
 * all of them.  Together with the fingerprint it says that what was derived from the weights at an
 * earlier time still holds.
 *   MOE_EIO  a file is gone  */
moe_err checkpoint_stamp(const checkpoint *c, uint64_t *out, errbuf *eb);

/* Tell the kernel that rows [begin, end) of a tensor will be read soon, or not again: its file is
 * read ahead, or its pages leave this process (they stay in the page cache, and come back when they
 * are touched).  Hints: they never fail.  Only for views of an open checkpoint, since other memory
 * would lose its contents. */
void tensor_will_read(const tensor_view *t, uint64_t begin, uint64_t end);
void tensor_was_read(const tensor_view *t, uint64_t begin, uint64_t end);

/* Parse the header of one safetensors file already in memory, without a config: what the fuzz
 * target calls. Same checks as open(), short of the model's shapes. */
moe_err safetensors_check(const char *name, const void *bytes, size_t len, errbuf *eb);

#endif
