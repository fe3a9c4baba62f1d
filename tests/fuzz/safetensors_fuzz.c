/* safetensors_fuzz: whatever the bytes, a file is refused or its table keeps its promises. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check(const uint8_t *data, size_t size)
{
    safetensors st;
    errbuf eb;
    if (safetensors_parse(&st, "f", data, size, &eb) != MOE_OK) {
        assert(st.entries == NULL && strncmp(eb.text, "f: ", 3) == 0);
        return;
    }
    for (size_t i = 0; i < st.count; i++) {
        const safetensors_entry *e = &st.entries[i];
        assert(e->begin <= e->end && e->end <= size);
        assert(safetensors_find(&st, e->name) == e);
    }
    safetensors_fini(&st);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check(data, size);
    if (size < 9) return 0;
    /* Most mutations break the length in front: once more with one that ends at the last brace, so
     * that they reach the tensors behind it. */
    uint8_t *copy = malloc(size);
    if (copy == NULL) return 0;
    memcpy(copy, data, size);
    const uint8_t *brace = memrchr(copy + 8, '}', size - 8);
    const uint64_t n = brace ? (uint64_t)(brace + 1 - (copy + 8)) : size - 8;
    for (int i = 0; i < 8; i++) {
        copy[i] = (uint8_t)(n >> 8 * i);
    }
    check(copy, size);
    free(copy);
    return 0;
}
