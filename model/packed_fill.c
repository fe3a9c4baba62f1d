/* The thread that fills a packed-weights file (packed_cache.h). */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "model/packed_cache.h"

#define FILL_NICE 19
/* Left free on the disk: a cache must not be what fills it. */
#define SPARE_BYTES ((uint64_t)256 << 20)

struct packed_fill {
    packed_cache *cache;
    pthread_t thread;
    bool joined;
    _Atomic bool cancel;
    uint32_t count;
    packed_slot slots[]; /* [count] */
};

/* Whether the disk has room for what is missing; unknown counts as yes. */
static bool
has_room(const packed_fill *f, uint32_t missing)
{
    struct statvfs st;
    if (statvfs(packed_cache_path(f->cache), &st) != 0) return true;
    return st.f_bavail * (uint64_t)st.f_frsize >=
           missing * packed_cache_key(f->cache)->slot_bytes + SPARE_BYTES;
}

static uint32_t
count_missing(const packed_fill *f)
{
    uint32_t missing = 0;
    for (uint32_t i = 0; i < f->count; i++) {
        missing += !packed_cache_holds(f->cache, f->slots[i].slot);
    }
    return missing;
}

static void
report(const packed_fill *f, uint32_t written, uint64_t ns, moe_err err, const errbuf *eb)
{
    const uint64_t bytes = written * packed_cache_key(f->cache)->slot_bytes;
    if (err == MOE_EIO)
        LOG_WARN("packed-cache", "not filled: %s written=%u of=%u", eb->text, written, f->count);
    else
        LOG_INFO("packed-cache", "%s written=%u of=%u bytes=%llu fill_ms=%llu path=%s",
                 err ? "filling was given up" : "filled", written, f->count,
                 (unsigned long long)bytes, (unsigned long long)(ns / NS_PER_MS),
                 packed_cache_path(f->cache));
}

static void *
fill_main(void *arg)
{
    packed_fill *f = arg;
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), FILL_NICE); /* of this thread alone */
    const uint64_t start = clock_now_ns();
    errbuf eb = {{0}};
    moe_err err = MOE_OK;
    uint32_t written = 0;
    const uint32_t missing = count_missing(f);
    if (!has_room(f, missing))
        err = err_set(&eb, MOE_EIO, "%s: too little room on the disk", packed_cache_path(f->cache));
    for (uint32_t i = 0; i < f->count && (err == MOE_OK || err == MOE_EBUSY); i++) {
        if (packed_cache_holds(f->cache, f->slots[i].slot)) continue;
        err = packed_cache_write(f->cache, f->slots[i].slot, f->slots[i].bytes, &f->cancel, &eb);
        written += err == MOE_OK;
    }
    if (err == MOE_EBUSY) err = MOE_OK; /* the other one finishes it */
    if (missing != 0) report(f, written, clock_now_ns() - start, err, &eb);
    return NULL;
}

/* The thread takes no signals: those of the process are for its main thread, and SIGXFSZ, raised by
 * a write beyond a limit on file sizes, shall be an error of that write. */
static int
start_thread(packed_fill *f)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    const int rc = pthread_create(&f->thread, NULL, fill_main, f);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}

moe_err
packed_fill_start(packed_fill **out, packed_cache *c, const packed_slot *slots, uint32_t count,
                  errbuf *eb)
{
    *out = NULL;
    packed_fill *f = calloc(1, sizeof *f + count * sizeof *slots);
    if (f == NULL) {
        packed_cache_close(c);
        return err_set(eb, MOE_ENOMEM, "no memory for a list of %u slots", count);
    }
    f->cache = c;
    f->count = count;
    if (count != 0) memcpy(f->slots, slots, count * sizeof *slots);
    if (start_thread(f) != 0) {
        packed_cache_close(c);
        free(f);
        return err_set(eb, MOE_EIO, "can't start a thread to fill the cache");
    }
    pthread_setname_np(f->thread, "packed-fill");
    *out = f;
    return MOE_OK;
}

void
packed_fill_wait(packed_fill *f)
{
    if (!f->joined) pthread_join(f->thread, NULL);
    f->joined = true;
}

void
packed_fill_stop(packed_fill *f)
{
    if (f == NULL) return;
    atomic_store(&f->cancel, true);
    packed_fill_wait(f);
    packed_cache_close(f->cache);
    free(f);
}
