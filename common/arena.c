#include "common/arena.h"

#include <stdalign.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE_BYTES 4096u

struct arena {
    unsigned char *base;
    size_t cap;
    size_t map_bytes;
    size_t used;
    size_t touched; /* the most ever used since pages were last given back */
};

moe_err
arena_create(arena **out, size_t cap)
{
    *out = NULL;
    if (cap == 0 || cap > SIZE_MAX / 2) return MOE_ERANGE;

    arena *a = malloc(sizeof *a);
    if (a == NULL) return MOE_ENOMEM;
    const size_t map_bytes = (cap + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    void *base = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        free(a);
        return MOE_ENOMEM;
    }
    *a = (arena){.base = base, .cap = cap, .map_bytes = map_bytes};
    *out = a;
    return MOE_OK;
}

void
arena_free(arena *a)
{
    if (a == NULL) return;
    munmap(a->base, a->map_bytes);
    free(a);
}

void *
arena_alloc(void *data, size_t size)
{
    arena *a = data;
    const size_t align = alignof(max_align_t);
    const size_t start = (a->used + align - 1) / align * align;
    if (start > a->cap || size > a->cap - start) return NULL;
    a->used = start + size;
    if (a->used > a->touched) a->touched = a->used;
    return a->base + start;
}

void
arena_release(void *data, void *pointer)
{
    (void)data;
    (void)pointer;
}

void
arena_reset(arena *a)
{
    if (a->touched > ARENA_KEEP_BYTES) {
        madvise(a->base + ARENA_KEEP_BYTES, a->map_bytes - ARENA_KEEP_BYTES, MADV_DONTNEED);
        a->touched = ARENA_KEEP_BYTES;
    }
    a->used = 0;
}

size_t
arena_used_bytes(const arena *a)
{
    return a->used;
}
