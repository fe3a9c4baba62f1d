/* Design notes.
 *
 * The file is sparse until it is filled: its size is set when it is made, so that a slot's place
 * never depends on who came first.  It is made under another name and linked to its own, so no
 * process ever sees half a header.
 *
 * pread() into the final place, not a mapping: weights want huge pages, which page cache seldom is
 * in, and reading costs one pass at memory speed.  The hash is taken of each block while it is
 * still in the CPU's cache.
 */
#include "model/packed_cache.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/hash.h"
#include "common/log.h"

/* Blocks of one work item. */
#define ITEM_BLOCKS 16u
/* A file that is replaced while we open it: try again so often. */
#define OPEN_TRIES 4

struct packed_cache {
    packed_header header;
    int fd;
    bool can_write;
    char path[];
};

/* One entry of the table. */
typedef struct entry {
    uint64_t hash, seal;
} entry;

/* ---- bytes in and out */

static bool
read_at(int fd, void *bytes, size_t size, uint64_t offset)
{
    for (size_t got = 0; got < size;) {
        const ssize_t n = pread(fd, (char *)bytes + got, size - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = ENODATA; /* it was cut off */
        if (n <= 0) return false;
        got += (size_t)n;
    }
    return true;
}

static bool
write_at(int fd, const void *bytes, size_t size, uint64_t offset)
{
    for (size_t put = 0; put < size;) {
        const ssize_t n = pwrite(fd, (const char *)bytes + put, size - put, (off_t)(offset + put));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        put += (size_t)n;
    }
    return true;
}

static uint64_t
entry_offset(const packed_cache *c, uint32_t slot)
{
    return c->header.table_offset + (uint64_t)slot * PACKED_ENTRY_BYTES;
}

static uint64_t
slot_offset(const packed_cache *c, uint32_t slot)
{
    return c->header.data_offset + slot * c->header.slot_stride;
}

static bool
entry_is_sealed(const packed_cache *c, uint32_t slot, const entry *e)
{
    return e->seal == packed_seal(&c->header, slot, e->hash);
}

/* ---- opening */

static const char *
role_name(packed_role role)
{
    return role == PACKED_EXPERTS ? "experts" : "router";
}

/* Everything of the key that tells files of one folder apart, versions too: programs of two
 * versions may share a folder. */
static packed_cache *
allocate(const char *dir, const packed_header *header)
{
    const packed_key *k = &header->key;
    const size_t size = strlen(dir) + 160;
    packed_cache *c = calloc(1, sizeof *c + size);
    if (c == NULL) return NULL;
    c->header = *header;
    c->fd = -1;
    snprintf(c->path, size, "%s/%s-%s-%u-%u-%016" PRIx64 "-%016" PRIx64 ".v%u.%u", dir,
             role_name(k->role), dtype_name(k->dtype), k->width_begin, k->width_end, k->fingerprint,
             k->stamp, PACKED_VERSION, PACKED_PACK_VERSION);
    return c;
}

/* NOFOLLOW and NONBLOCK: what lies there may be a link or a FIFO. */
static moe_err
open_file(packed_cache *c, errbuf *eb)
{
    const int flags = O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    c->can_write = true;
    c->fd = open(c->path, flags | O_RDWR);
    if (c->fd < 0 && (errno == EACCES || errno == EROFS || errno == EPERM)) {
        c->can_write = false;
        c->fd = open(c->path, flags | O_RDONLY);
    }
    if (c->fd >= 0) return MOE_OK;
    const bool missing = errno == ENOENT || errno == ENOTDIR;
    return err_set(eb, missing ? MOE_ENOTFOUND : MOE_EIO, "%s: %s", c->path, strerror(errno));
}

static void
close_file(packed_cache *c)
{
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

static moe_err
check_file(const packed_cache *c, errbuf *eb)
{
    struct stat st;
    if (fstat(c->fd, &st) != 0 || !S_ISREG(st.st_mode))
        return err_set(eb, MOE_EINVAL, "%s: not a regular file", c->path);
    unsigned char bytes[PACKED_HEADER_FIELDS_BYTES];
    const size_t size = (uint64_t)st.st_size < sizeof bytes ? (size_t)st.st_size : sizeof bytes;
    if (!read_at(c->fd, bytes, size, 0))
        return err_set(eb, MOE_EIO, "%s: %s", c->path, strerror(errno));
    packed_header have;
    moe_err err = packed_header_decode(&have, bytes, size, (uint64_t)st.st_size, eb);
    if (!err) err = packed_key_compare(&have.key, &c->header.key, eb);
    return err ? err_wrap(eb, err, "%s", c->path) : MOE_OK;
}

/* Make an empty file under a name of its own, then give it the cache's name: by link, which leaves
 * another process's file alone, or by rename, which takes the place of a bad one. */
static moe_err
make_file(packed_cache *c, bool replace, errbuf *eb)
{
    char *temp;
    if (asprintf(&temp, "%s.XXXXXX", c->path) < 0) return err_set(eb, MOE_ENOMEM, "out of memory");
    const char *step = "making it";
    const int fd = mkostemp(temp, O_CLOEXEC);
    moe_err err = MOE_OK;
    unsigned char bytes[PACKED_HEADER_FIELDS_BYTES];
    packed_header_encode(&c->header, bytes);
    if (fd < 0) goto failed;
    step = "setting its size";
    if (ftruncate(fd, (off_t)c->header.file_bytes) != 0) goto failed;
    step = "writing its header";
    if (!write_at(fd, bytes, sizeof bytes, 0)) goto failed;
    step = "naming it";
    if (replace || (link(temp, c->path) != 0 && errno != EEXIST)) {
        /* Also where links don't exist: then the last of several makers wins. */
        if (rename(temp, c->path) != 0) goto failed;
    } else {
        unlink(temp);
    }
    goto done;

failed:
    err = err_set(eb, errno == ENOENT || errno == ENOTDIR ? MOE_ENOTFOUND : MOE_EIO, "%s: %s: %s",
                  c->path, step, strerror(errno));
    if (fd >= 0) unlink(temp);
done:
    if (fd >= 0) close(fd);
    free(temp);
    return err;
}

moe_err
packed_cache_open(packed_cache **out, const char *dir, const packed_key *key, errbuf *eb)
{
    *out = NULL;
    packed_header header;
    moe_err err = packed_header_init(&header, key, eb);
    if (err) return err;
    packed_cache *c = allocate(dir, &header);
    if (c == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    (void)mkdir(dir, 0700); /* if that fails, so does what follows */

    for (int i = 0; i < OPEN_TRIES; i++) {
        err = open_file(c, eb);
        if (!err) err = check_file(c, eb);
        if (!err) {
            *out = c;
            return MOE_OK;
        }
        close_file(c);
        const bool missing = err == MOE_ENOTFOUND;
        errbuf why = {{0}};
        const moe_err made = make_file(c, !missing, &why);
        if (!made && !missing)
            LOG_WARN("packed-cache", "%s: made anew, what was in it is packed again", eb->text);
        if (!made) continue;
        if (missing) *eb = why; /* else: what is wrong with the file explains more */
        if (missing) err = made;
        break;
    }
    packed_cache_close(c);
    return err;
}

void
packed_cache_close(packed_cache *c)
{
    if (c == NULL) return;
    close_file(c);
    free(c);
}

const char *
packed_cache_path(const packed_cache *c)
{
    return c->path;
}

const packed_key *
packed_cache_key(const packed_cache *c)
{
    return &c->header.key;
}

bool
packed_cache_can_write(const packed_cache *c)
{
    return c->can_write;
}

/* ---- reading */

static bool
read_entry(const packed_cache *c, uint32_t slot, entry *out)
{
    assert(slot < c->header.key.slot_count);
    unsigned char b[PACKED_ENTRY_BYTES];
    if (!read_at(c->fd, b, sizeof b, entry_offset(c, slot))) return false;
    memcpy(&out->hash, b, 8);
    memcpy(&out->seal, b + 8, 8);
    return entry_is_sealed(c, slot, out);
}

bool
packed_cache_holds(const packed_cache *c, uint32_t slot)
{
    entry e;
    return read_entry(c, slot, &e);
}

/* The slots that are there are read block by block; one item is ITEM_BLOCKS blocks of a slot. */
typedef struct read_job {
    const packed_cache *c;
    const packed_slot *slots;
    const uint32_t *held;   /* indices into slots */
    uint64_t *hashes;       /* [held slots][blocks] */
    _Atomic int *error;     /* [held slots] errno, 0 = none */
    uint32_t blocks, items; /* of a slot */
    const _Atomic bool *cancel;
} read_job;

static uint64_t
block_begin(uint32_t block)
{
    return (uint64_t)block * PACKED_BLOCK_BYTES;
}

static size_t
block_size(uint64_t slot_bytes, uint32_t block)
{
    const uint64_t left = slot_bytes - block_begin(block);
    return left < PACKED_BLOCK_BYTES ? (size_t)left : PACKED_BLOCK_BYTES;
}

static void
read_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    const read_job *job = arg;
    const uint32_t index = item / job->items, first = item % job->items * ITEM_BLOCKS;
    const packed_slot *slot = &job->slots[job->held[index]];
    const uint64_t at = slot_offset(job->c, slot->slot);
    const uint64_t slot_bytes = job->c->header.key.slot_bytes;
    (void)readahead(job->c->fd, (off_t)(at + block_begin(first)),
                    (size_t)ITEM_BLOCKS * PACKED_BLOCK_BYTES);
    for (uint32_t b = first; b < job->blocks && b < first + ITEM_BLOCKS; b++) {
        char *to = (char *)slot->bytes + block_begin(b);
        const size_t size = block_size(slot_bytes, b);
        if (job->cancel != NULL && atomic_load_explicit(job->cancel, memory_order_relaxed)) return;
        if (!read_at(job->c->fd, to, size, at + block_begin(b))) {
            atomic_store(&job->error[index], errno);
            return;
        }
        job->hashes[(size_t)index * job->blocks + b] = packed_block_hash(to, size);
    }
}

/* Zero the entry, so that nobody else trips over it. */
static void
forget(packed_cache *c, uint32_t slot)
{
    static const unsigned char none[PACKED_ENTRY_BYTES];
    if (c->can_write) (void)!write_at(c->fd, none, sizeof none, entry_offset(c, slot));
}

static bool
accept_slot(packed_cache *c, const read_job *job, uint32_t index, const entry *e)
{
    const uint32_t slot = job->slots[job->held[index]].slot;
    const int error = atomic_load(&job->error[index]);
    if (error == 0 && packed_slot_hash_of_blocks(job->hashes + (size_t)index * job->blocks,
                                                 job->blocks) == e->hash)
        return true;
    LOG_WARN("packed-cache", "%s: slot %u is damaged (%s): packed again from the checkpoint",
             c->path, slot, error != 0 ? strerror(error) : "its checksum is wrong");
    forget(c, slot);
    return false;
}

/* held [count] and entries [count] are the caller's memory; returns how many slots are there. */
static uint32_t
find_held(const packed_cache *c, const packed_slot *slots, uint32_t count, uint32_t *held,
          entry *entries)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!read_entry(c, slots[i].slot, &entries[n])) continue;
        held[n++] = i;
    }
    return n;
}

moe_err
packed_cache_read(packed_cache *c, const packed_slot *slots, uint32_t count, bool *done, pool *p,
                  const _Atomic bool *cancel, errbuf *eb)
{
    memset(done, 0, count * sizeof *done);
    if (count == 0) return MOE_OK;
    const uint64_t blocks =
        (c->header.key.slot_bytes + PACKED_BLOCK_BYTES - 1) / PACKED_BLOCK_BYTES;
    const uint64_t items = (blocks + ITEM_BLOCKS - 1) / ITEM_BLOCKS;
    read_job job = {.c = c,
                    .slots = slots,
                    .blocks = (uint32_t)blocks,
                    .items = (uint32_t)items,
                    .cancel = cancel};
    uint32_t *held = malloc(count * sizeof *held);
    entry *entries = malloc(count * sizeof *entries);
    moe_err err = MOE_OK;
    uint32_t n = 0;
    if (held != NULL && entries != NULL) n = find_held(c, slots, count, held, entries);
    job.held = held;
    job.hashes = malloc((n * blocks + 1) * sizeof *job.hashes);
    job.error = calloc(n + 1u, sizeof *job.error);
    if (!held || !entries || !job.hashes || !job.error || n * items > POOL_ITEM_MAX) {
        err = err_set(eb, MOE_ENOMEM, "%s: no memory to read %u slots", c->path, count);
        goto done;
    }
    pool_run(p, read_item, &job, (uint32_t)(n * items));
    if (cancel != NULL && atomic_load(cancel)) {
        err = err_set(eb, MOE_ECLOSED, "the load was given up: this process is stopping");
        goto done;
    }
    for (uint32_t i = 0; i < n; i++) {
        done[held[i]] = accept_slot(c, &job, i, &entries[i]);
    }
done:
    free((void *)job.error);
    free(job.hashes);
    free(entries);
    free(held);
    return err;
}

/* ---- writing */

/* Of the slot's first byte; the kernel lets go of it when the process ends. */
static bool
lock_slot(const packed_cache *c, uint32_t slot, short type)
{
    struct flock lock = {
        .l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)slot_offset(c, slot), .l_len = 1};
    if (fcntl(c->fd, F_OFD_SETLK, &lock) == 0) return true;
    return errno != EAGAIN && errno != EACCES; /* a file system without locks: do without */
}

static moe_err
write_blocks(packed_cache *c, uint32_t slot, const char *bytes, const _Atomic bool *cancel,
             errbuf *eb)
{
    const uint64_t size = c->header.key.slot_bytes, at = slot_offset(c, slot);
    for (uint32_t b = 0; block_begin(b) < size; b++) {
        if (cancel != NULL && atomic_load_explicit(cancel, memory_order_relaxed))
            return err_set(eb, MOE_ECLOSED, "the write was given up");
        if (!write_at(c->fd, bytes + block_begin(b), block_size(size, b), at + block_begin(b)))
            return err_set(eb, MOE_EIO, "%s: %s", c->path, strerror(errno));
    }
    return MOE_OK;
}

static moe_err
write_locked(packed_cache *c, uint32_t slot, const void *bytes, const _Atomic bool *cancel,
             errbuf *eb)
{
    if (packed_cache_holds(c, slot)) return MOE_OK; /* somebody was faster */
    const uint64_t hash = packed_slot_hash(bytes, c->header.key.slot_bytes);
    const uint64_t words[2] = {hash, packed_seal(&c->header, slot, hash)};
    moe_err err = write_blocks(c, slot, bytes, cancel, eb);
    if (!err && !write_at(c->fd, words, sizeof words, entry_offset(c, slot)))
        err = err_set(eb, MOE_EIO, "%s: %s", c->path, strerror(errno));
    if (err == MOE_EIO)
        (void)fallocate(c->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        (off_t)slot_offset(c, slot), (off_t)c->header.slot_stride);
    return err;
}

moe_err
packed_cache_write(packed_cache *c, uint32_t slot, const void *bytes, const _Atomic bool *cancel,
                   errbuf *eb)
{
    assert(slot < c->header.key.slot_count);
    if (!c->can_write) return err_set(eb, MOE_EPERM, "%s: opened for reading alone", c->path);
    if (packed_cache_holds(c, slot)) return MOE_OK;
    if (!lock_slot(c, slot, F_WRLCK))
        return err_set(eb, MOE_EBUSY, "%s: slot %u: another process writes it", c->path, slot);
    const moe_err err = write_locked(c, slot, bytes, cancel, eb);
    lock_slot(c, slot, F_UNLCK);
    return err;
}
