/* packed_fuzz: whatever the bytes, a header is refused or keeps its promises. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "model/packed_format.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t
claimed_size(const uint8_t *b)
{
    uint64_t v = 0;
    for (int i = 8; i-- > 0;) {
        v = v << 8 | b[96 + i];
    }
    return v;
}

static void
check(const uint8_t *data, size_t size, uint64_t file_bytes)
{
    packed_header h;
    errbuf eb = {{0}};
    if (packed_header_decode(&h, data, size, file_bytes, &eb) != MOE_OK) {
        assert(eb.text[0] != '\0' && h.file_bytes == 0);
        return;
    }
    assert(h.file_bytes == file_bytes);
    assert(h.key.slot_bytes <= h.slot_stride && h.slot_stride % PACKED_ALIGN == 0);
    assert(h.table_offset + (uint64_t)h.key.slot_count * PACKED_ENTRY_BYTES <= h.data_offset);
    assert(h.data_offset % PACKED_ALIGN == 0);
    assert((file_bytes - h.data_offset) / h.slot_stride == h.key.slot_count);
    assert((unsigned)h.key.dtype < DTYPE_COUNT);

    uint8_t again[PACKED_HEADER_FIELDS_BYTES];
    packed_header_encode(&h, again);
    assert(memcmp(again, data, sizeof again) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check(data, size, size);
    if (size < PACKED_HEADER_FIELDS_BYTES) return 0;
    check(data, size, claimed_size(data));
    /* Most mutations break the hash: once more with a right one. */
    uint8_t copy[PACKED_HEADER_FIELDS_BYTES];
    memcpy(copy, data, sizeof copy);
    const uint64_t hash = hash_bytes(0, copy, 104);
    for (int i = 0; i < 8; i++) {
        copy[104 + i] = (uint8_t)(hash >> 8 * i);
    }
    check(copy, sizeof copy, claimed_size(copy));
    return 0;
}
