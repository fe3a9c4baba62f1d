#include "model/packed_format.h"

#include <inttypes.h>
#include <string.h>

#include "common/hash.h"
#include "model/config.h"

static const char magic[8] = {'C', 'N', 'C', 'L', 'P', 'A', 'C', 'K'};

/* Where the fields lie; the header file says what they are. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_PACK_VERSION = 12,
    AT_ROLE = 16,
    AT_DTYPE = 20,
    AT_FINGERPRINT = 24,
    AT_STAMP = 32,
    AT_NUM_LAYERS = 40,
    AT_NUM_EXPERTS = 44,
    AT_WIDTH_BEGIN = 48,
    AT_WIDTH_END = 52,
    AT_SLOT_COUNT = 56,
    AT_BLOCK_BYTES = 60,
    AT_SLOT_BYTES = 64,
    AT_SLOT_STRIDE = 72,
    AT_TABLE_OFFSET = 80,
    AT_DATA_OFFSET = 88,
    AT_FILE_BYTES = 96,
    AT_HEADER_HASH = 104,
};

static void
put(unsigned char *p, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) {
        p[i] = (unsigned char)(v >> 8 * i);
    }
}

static uint64_t
get(const unsigned char *p, int bytes)
{
    uint64_t v = 0;
    for (int i = bytes; i-- > 0;) {
        v = v << 8 | p[i];
    }
    return v;
}

static uint64_t
round_up_u64(uint64_t v, uint64_t to)
{
    return (v + to - 1) / to * to;
}

static moe_err
check_key(const packed_key *key, errbuf *eb)
{
    if (key->role != PACKED_EXPERTS && key->role != PACKED_ROUTER)
        return err_set(eb, MOE_ERANGE, "role %u", (unsigned)key->role);
    if ((unsigned)key->dtype >= DTYPE_COUNT)
        return err_set(eb, MOE_ERANGE, "dtype %u", (unsigned)key->dtype);
    if (key->num_layers == 0 || key->num_layers > MODEL_LAYER_MAX || key->num_experts == 0 ||
        key->num_experts > MODEL_EXPERT_MAX)
        return err_set(eb, MOE_ERANGE, "%u layers of %u experts", key->num_layers,
                       key->num_experts);
    if (key->width_begin > key->width_end || key->width_end > MODEL_DIM_MAX)
        return err_set(eb, MOE_ERANGE, "slice %u..%u", key->width_begin, key->width_end);
    if (key->slot_count == 0 || key->slot_count > PACKED_SLOT_COUNT_MAX ||
        (key->role == PACKED_EXPERTS && key->slot_count != key->num_layers * key->num_experts))
        return err_set(eb, MOE_ERANGE, "%u slots", key->slot_count);
    if (key->slot_bytes == 0 || key->slot_bytes > PACKED_SLOT_BYTES_MAX)
        return err_set(eb, MOE_ERANGE, "slots of %" PRIu64 " bytes", key->slot_bytes);
    return MOE_OK;
}

static void
encode_fields(const packed_header *h, unsigned char *b)
{
    memcpy(b + AT_MAGIC, magic, sizeof magic);
    put(b + AT_VERSION, PACKED_VERSION, 4);
    put(b + AT_PACK_VERSION, PACKED_PACK_VERSION, 4);
    put(b + AT_ROLE, (uint64_t)h->key.role, 4);
    put(b + AT_DTYPE, (uint64_t)h->key.dtype, 4);
    put(b + AT_FINGERPRINT, h->key.fingerprint, 8);
    put(b + AT_STAMP, h->key.stamp, 8);
    put(b + AT_NUM_LAYERS, h->key.num_layers, 4);
    put(b + AT_NUM_EXPERTS, h->key.num_experts, 4);
    put(b + AT_WIDTH_BEGIN, h->key.width_begin, 4);
    put(b + AT_WIDTH_END, h->key.width_end, 4);
    put(b + AT_SLOT_COUNT, h->key.slot_count, 4);
    put(b + AT_BLOCK_BYTES, PACKED_BLOCK_BYTES, 4);
    put(b + AT_SLOT_BYTES, h->key.slot_bytes, 8);
    put(b + AT_SLOT_STRIDE, h->slot_stride, 8);
    put(b + AT_TABLE_OFFSET, h->table_offset, 8);
    put(b + AT_DATA_OFFSET, h->data_offset, 8);
    put(b + AT_FILE_BYTES, h->file_bytes, 8);
}

moe_err
packed_header_init(packed_header *out, const packed_key *key, errbuf *eb)
{
    *out = (packed_header){0};
    const moe_err err = check_key(key, eb);
    if (err) return err;
    /* The limits keep all of this far below 2^64. */
    packed_header h = {.key = *key, .table_offset = PACKED_HEADER_BYTES};
    h.slot_stride = round_up_u64(key->slot_bytes, PACKED_ALIGN);
    h.data_offset = round_up_u64(
        PACKED_HEADER_BYTES + (uint64_t)key->slot_count * PACKED_ENTRY_BYTES, PACKED_ALIGN);
    h.file_bytes = h.data_offset + key->slot_count * h.slot_stride;

    unsigned char fields[PACKED_HEADER_FIELDS_BYTES];
    encode_fields(&h, fields);
    h.header_hash = hash_bytes(0, fields, AT_HEADER_HASH);
    *out = h;
    return MOE_OK;
}

void
packed_header_encode(const packed_header *header, unsigned char *bytes)
{
    encode_fields(header, bytes);
    put(bytes + AT_HEADER_HASH, header->header_hash, 8);
}

moe_err
packed_header_decode(packed_header *out, const void *bytes, size_t len, uint64_t file_bytes,
                     errbuf *eb)
{
    const unsigned char *b = bytes;
    *out = (packed_header){0};
    if (len < PACKED_HEADER_FIELDS_BYTES)
        return err_set(eb, MOE_EINVAL, "truncated: the header has %u bytes, the file %zu",
                       PACKED_HEADER_FIELDS_BYTES, len);
    if (memcmp(b + AT_MAGIC, magic, sizeof magic) != 0)
        return err_set(eb, MOE_EINVAL, "not a packed-weights file");
    const uint32_t version = (uint32_t)get(b + AT_VERSION, 4),
                   pack_version = (uint32_t)get(b + AT_PACK_VERSION, 4);
    if (version != PACKED_VERSION || pack_version != PACKED_PACK_VERSION)
        return err_set(eb, MOE_EMISMATCH, "version %u.%u, this program reads %u.%u", version,
                       pack_version, PACKED_VERSION, PACKED_PACK_VERSION);

    const packed_key key = {.role = (packed_role)get(b + AT_ROLE, 4),
                            .dtype = (moe_dtype)get(b + AT_DTYPE, 4),
                            .fingerprint = get(b + AT_FINGERPRINT, 8),
                            .stamp = get(b + AT_STAMP, 8),
                            .num_layers = (uint32_t)get(b + AT_NUM_LAYERS, 4),
                            .num_experts = (uint32_t)get(b + AT_NUM_EXPERTS, 4),
                            .width_begin = (uint32_t)get(b + AT_WIDTH_BEGIN, 4),
                            .width_end = (uint32_t)get(b + AT_WIDTH_END, 4),
                            .slot_count = (uint32_t)get(b + AT_SLOT_COUNT, 4),
                            .slot_bytes = get(b + AT_SLOT_BYTES, 8)};
    packed_header want;
    const moe_err err = packed_header_init(&want, &key, eb);
    if (err) return err_wrap(eb, MOE_EINVAL, "the header is damaged");
    /* All other fields follow from the key: so does their hash, and nothing needs to be believed.
     */
    unsigned char fields[PACKED_HEADER_FIELDS_BYTES];
    packed_header_encode(&want, fields);
    if (memcmp(fields, b, sizeof fields) != 0)
        return err_set(eb, MOE_EINVAL, "the header is damaged: its fields contradict each other");
    if (file_bytes != want.file_bytes)
        return err_set(eb, MOE_EINVAL, "the file has %" PRIu64 " bytes, its header says %" PRIu64,
                       file_bytes, want.file_bytes);
    *out = want;
    return MOE_OK;
}

moe_err
packed_key_compare(const packed_key *have, const packed_key *want, errbuf *eb)
{
    const struct {
        const char *name;
        uint64_t have, want;
    } fields[] = {
        {"role", have->role, want->role},
        {"dtype", have->dtype, want->dtype},
        {"fingerprint", have->fingerprint, want->fingerprint},
        {"stamp", have->stamp, want->stamp},
        {"num_layers", have->num_layers, want->num_layers},
        {"num_experts", have->num_experts, want->num_experts},
        {"width_begin", have->width_begin, want->width_begin},
        {"width_end", have->width_end, want->width_end},
        {"slot_count", have->slot_count, want->slot_count},
        {"slot_bytes", have->slot_bytes, want->slot_bytes},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        if (fields[i].have != fields[i].want)
            return err_set(eb, MOE_EMISMATCH,
                           "of other weights: its %s is %#" PRIx64 ", wanted %#" PRIx64,
                           fields[i].name, fields[i].have, fields[i].want);
    }
    return MOE_OK;
}

uint64_t
packed_block_hash(const void *block, size_t bytes)
{
    return hash_lanes(0, block, bytes);
}

uint64_t
packed_slot_hash_of_blocks(const uint64_t *hashes, size_t count)
{
    uint64_t hash = count;
    for (size_t i = 0; i < count; i++) {
        hash = hash_combine(hash, hashes[i]);
    }
    return hash;
}

uint64_t
packed_slot_hash(const void *slot, size_t bytes)
{
    const size_t count = (bytes + PACKED_BLOCK_BYTES - 1) / PACKED_BLOCK_BYTES;
    uint64_t hash = count;
    for (size_t i = 0; i < count; i++) {
        const size_t at = i * PACKED_BLOCK_BYTES, left = bytes - at;
        hash = hash_combine(
            hash, packed_block_hash((const char *)slot + at,
                                    left < PACKED_BLOCK_BYTES ? left : PACKED_BLOCK_BYTES));
    }
    return hash;
}

uint64_t
packed_seal(const packed_header *header, uint32_t slot, uint64_t hash)
{
    const uint64_t seal = hash_combine(hash_combine(header->header_hash, slot), hash);
    return seal != 0 ? seal : 1;
}
