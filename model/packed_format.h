/* packed_format: the head of a packed-weights file, and what it promises.
 *
 * A file holds packed weights of one model in equal slots, for one dtype and one slice.  Everything
 * is little-endian:
 *
 *   0             header, PACKED_HEADER_BYTES: the fields below, then zeros
 *   table_offset  slot_count entries of 16 bytes: { u64 hash, u64 seal }
 *   data_offset   slot_count slots of slot_bytes, each slot_stride after the one before
 *
 *   at  size
 *    0   8  magic "CNCLPACK"
 *    8   4  version             PACKED_VERSION: of this description
 *   12   4  pack_version        PACKED_PACK_VERSION: of what packing makes of the same weights
 *   16   4  role                packed_role
 *   20   4  dtype               moe_dtype
 *   24   8  fingerprint         checkpoint_fingerprint()
 *   32   8  stamp               checkpoint_stamp()
 *   40   4  num_layers
 *   44   4  num_experts         of a layer
 *   48   4  width_begin         slice of the intermediate dimension; 0, 0 for PACKED_ROUTER
 *   52   4  width_end
 *   56   4  slot_count
 *   60   4  block_bytes         PACKED_BLOCK_BYTES: what one step of a slot's hash covers
 *   64   8  slot_bytes
 *   72   8  slot_stride         slot_bytes rounded up to PACKED_ALIGN, so that any slot can be
 * mapped 80   8  table_offset        PACKED_HEADER_BYTES 88   8  data_offset         a multiple of
 * PACKED_ALIGN behind the table 96   8  file_bytes          data_offset + slot_count * slot_stride
 *  104   8  header_hash         hash_bytes(0, the 104 bytes before)
 *
 * A slot's hash is packed_slot_hash() of its bytes.  Its seal is packed_seal(header, slot, hash):
 * an entry whose seal is something else says that the slot was never written whole.  So a file may
 * be incomplete at any moment and in any way; a zero entry and a torn one are both just "not
 * there".
 *
 * Slots of PACKED_EXPERTS: slot = layer * num_experts + expert, its bytes an expert_layout slot.
 * Slots of PACKED_ROUTER: the router's memory in pieces (router/weights.c), all of them or none.
 *
 * Threads: pure.
 */
#ifndef MOE_MODEL_PACKED_FORMAT_H
#define MOE_MODEL_PACKED_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "kernels/packed.h"

#define PACKED_VERSION 1u
/* Raise it when packing writes other bytes than before for the same weights and sizes: a changed
 * tile layout, scale or rounding in pack.c, another order in router/weights.c.  Files of the old
 * kind are then left alone. */
#define PACKED_PACK_VERSION 2u
#define PACKED_HEADER_BYTES 4096u
#define PACKED_HEADER_FIELDS_BYTES 112u
#define PACKED_ENTRY_BYTES 16u
#define PACKED_ALIGN 4096u
#define PACKED_BLOCK_BYTES (256u << 10)
#define PACKED_SLOT_COUNT_MAX (1u << 20)
#define PACKED_SLOT_BYTES_MAX ((uint64_t)1 << 40)

typedef enum packed_role { PACKED_EXPERTS = 1, PACKED_ROUTER = 2 } packed_role;

/* What a file is for; two files of equal keys hold the same bytes. */
typedef struct packed_key {
    packed_role role;
    moe_dtype dtype;
    uint64_t fingerprint, stamp;
    uint32_t num_layers, num_experts;
    uint32_t width_begin, width_end;
    uint32_t slot_count; /* PACKED_EXPERTS: num_layers * num_experts */
    uint64_t slot_bytes;
} packed_key;

typedef struct packed_header {
    packed_key key;
    uint64_t slot_stride, table_offset, data_offset, file_bytes;
    uint64_t header_hash;
} packed_header;

/* Fill in the rest of a header from its key.
 *   MOE_ERANGE  no slots, or sizes outside the limits above  */
moe_err packed_header_init(packed_header *out, const packed_key *key, errbuf *eb);

/* bytes [PACKED_HEADER_FIELDS_BYTES]. */
void packed_header_encode(const packed_header *header, unsigned char *bytes);

/* Read a header out of the first bytes [len] of a file of file_bytes.  On MOE_OK everything that
 * this page says about the fields holds, the dtype and role are known ones, and all offsets lie
 * inside the file.
 *   MOE_EINVAL     truncated, no such file, or fields that contradict each other
 *   MOE_EMISMATCH  another version  */
moe_err packed_header_decode(packed_header *out, const void *bytes, size_t len, uint64_t file_bytes,
                             errbuf *eb);

/* MOE_EMISMATCH names the first field that differs and both values. */
moe_err packed_key_compare(const packed_key *have, const packed_key *want, errbuf *eb);

/* Of a block that begins at a multiple of PACKED_BLOCK_BYTES of its slot; the last may be shorter.
 */
uint64_t packed_block_hash(const void *block, size_t bytes);
/* Chain the hashes of a slot's blocks, in order, into the slot's. */
uint64_t packed_slot_hash_of_blocks(const uint64_t *hashes, size_t count);
uint64_t packed_slot_hash(const void *slot, size_t bytes);

/* Never 0. */
uint64_t packed_seal(const packed_header *header, uint32_t slot, uint64_t hash);

#endif
