/* packed_cache: packed weights kept in a file, so that a process starts at the speed of reading.
 *
 * One file per (model, dtype, role, slice), format in packed_format.h.  It is filled slot by slot,
 * by any number of processes at once, each with what it had to pack anyway, and it may be complete,
 * partly filled or damaged at any time:
 *
 *   - A slot counts only once its sealed hash is in the table, which is written after its bytes.
 *     A process that dies in the middle leaves a slot that is not there.
 *   - Who writes a slot holds a lock on it that the kernel drops with the process.  Two writers
 *     could do no harm, since equal weights pack to equal bytes; the lock only saves the work.
 *   - Every read is checked against the hash.  After a loss of power, or with a bad disk, a slot
 *     may be sealed and wrong: it is reported, forgotten, and packed again.
 *   - Nothing is mapped: a file that shrinks is a failed read, not a SIGBUS.
 *
 * Hashes find damage, not malice: whoever can write to the folder decides what the weights are. The
 * folder is made with mode 0700, files with 0600.
 *
 * Nothing here ever has to succeed: a caller that gets an error packs from the checkpoint.
 *
 * Threads: one at a time; read() uses the pool.
 */
#ifndef MOE_MODEL_PACKED_CACHE_H
#define MOE_MODEL_PACKED_CACHE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/pool.h"
#include "model/packed_format.h"

typedef struct packed_cache packed_cache;

/* A slot and the memory it belongs in. */
typedef struct packed_slot {
    uint32_t slot;
    void *bytes; /* [slot_bytes] */
} packed_slot;

/* Open the file for this key in the folder dir; the folder (its last name) and the file are made
 * when missing.  What lies there and is no good file for the key is reported with a warning and
 * replaced.  In a folder that can't be written, an existing file is opened for reading alone.
 *   MOE_ERANGE     the key has no slots, or is outside the format's limits
 *   MOE_ENOTFOUND  no file, and none can be made
 *   MOE_EINVAL, MOE_EMISMATCH  a bad file that can't be replaced
 *   MOE_EIO, MOE_ENOMEM  */
moe_err packed_cache_open(packed_cache **out, const char *dir, const packed_key *key, errbuf *eb);
void packed_cache_close(packed_cache *c); /* accepts NULL */

const char *packed_cache_path(const packed_cache *c);
const packed_key *packed_cache_key(const packed_cache *c);
bool packed_cache_can_write(const packed_cache *c);

/* Is the slot in the file now?  Asks the file, since other processes fill it too. */
bool packed_cache_holds(const packed_cache *c, uint32_t slot);

/* Read slots [count] with all threads of the pool.
 *   done  [count] set to whether the slot was there and is whole; the bytes of the others are
 *         unspecified.  Damaged ones are logged, and forgotten if the file can be written.
 *   MOE_ECLOSED  *cancel became true (cancel may be NULL); done is all false
 *   MOE_ENOMEM  */
moe_err packed_cache_read(packed_cache *c, const packed_slot *slots, uint32_t count, bool *done,
                          pool *p, const _Atomic bool *cancel, errbuf *eb);

/* Write one slot, unless it is there already.  Given up between blocks once *cancel is true.
 *   MOE_EBUSY    another process is writing it
 *   MOE_EPERM    opened for reading alone
 *   MOE_ECLOSED  cancelled
 *   MOE_EIO      the disk is full, or another error of the system: the text names it.  What was
 *                written of the slot is given back */
moe_err packed_cache_write(packed_cache *c, uint32_t slot, const void *bytes,
                           const _Atomic bool *cancel, errbuf *eb);

/* ---- filling in the background */

typedef struct packed_fill packed_fill;

/* Write slots [count] that the file does not hold from a thread of low priority, so that nobody
 * waits for the disk; the outcome is logged.  Takes ownership of the cache, on error too.  The
 * slots' memory is borrowed, and unchanged, until stop(); the list is copied.
 *   MOE_ENOMEM, MOE_EIO  */
moe_err packed_fill_start(packed_fill **out, packed_cache *c, const packed_slot *slots,
                          uint32_t count, errbuf *eb);
/* Until everything is written, or given up. */
void packed_fill_wait(packed_fill *f);
/* Ends within about one block's write; closes the cache.  Accepts NULL. */
void packed_fill_stop(packed_fill *f);

#endif
