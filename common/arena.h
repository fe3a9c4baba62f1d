/* arena: a bump allocator with a cap, for bytes that arrive from outside.
 *
 * A small message can unpack into a large tree of objects.  An arena bounds that, makes each
 * allocation a few instructions, and frees the whole tree at once.  `alloc` and `release` have the
 * shape of protobuf-c's allocator callbacks:
 *     ProtobufCAllocator a = {.alloc = arena_alloc, .free = arena_release, .allocator_data =
 * arena};
 *
 * The address range is reserved when the arena is made; pages take memory once they are touched.
 *
 * Threads: one at a time.
 */
#ifndef MOE_COMMON_ARENA_H
#define MOE_COMMON_ARENA_H

#include <stddef.h>

#include "common/err.h"

/* What an arena keeps resident after a reset; pages above are given back to the system. */
#define ARENA_KEEP_BYTES (1u << 20)

typedef struct arena arena;

/* cap: bytes that may be allocated between two resets.
 *   MOE_ERANGE  cap is 0 or too large to address
 *   MOE_ENOMEM  */
moe_err arena_create(arena **out, size_t cap);

/* Accepts NULL. */
void arena_free(arena *a);

/* size bytes at an address aligned for any type, uninitialised, valid until arena_reset(); NULL
 * past the cap.  data is the arena: void * so that it fits a callback. */
void *arena_alloc(void *data, size_t size);

/* Does nothing: memory comes back by arena_reset(). */
void arena_release(void *data, void *pointer);

/* Forget every allocation. */
void arena_reset(arena *a);

size_t arena_used_bytes(const arena *a);

#endif
