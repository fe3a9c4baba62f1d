#include "model/weight_load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"

/* NULL when there is none, or it can't be used. */
static packed_cache *
open_cache(const weight_load *load)
{
    packed_key key = load->key;
    packed_cache *cache = NULL;
    errbuf eb = {{0}};
    if (load->cache.dir == NULL || load->cache.dir[0] == '\0' || load->count == 0) return NULL;
    key.fingerprint = load->cache.fingerprint;
    moe_err err = checkpoint_stamp(load->checkpoint, &key.stamp, &eb);
    if (!err) err = packed_cache_open(&cache, load->cache.dir, &key, &eb);
    if (err)
        LOG_WARN("weights", "%s are packed without a cache (%s): %s", load->what, moe_err_name(err),
                 eb.text);
    return cache;
}

static uint32_t
count_true(const bool *flags, uint32_t count)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++) {
        n += flags[i];
    }
    return n;
}

static bool
holds_all(const weight_load *load, const packed_cache *cache)
{
    for (uint32_t i = 0; i < load->count; i++) {
        if (!packed_cache_holds(cache, load->slots[i].slot)) return false;
    }
    return true;
}

/* A whole of which a piece is missing or damaged: forget the others, which packing will not
 * overwrite to the last byte. */
static void
clear_whole(const weight_load *load, bool *done)
{
    for (uint32_t i = 0; i < load->count; i++) {
        memset(load->slots[i].bytes, 0, load->key.slot_bytes);
        done[i] = false;
    }
}

/* Those that are not done. */
static moe_err
read_cache(const weight_load *load, packed_cache *cache, bool *done, errbuf *eb)
{
    if (cache == NULL || (load->whole && !holds_all(load, cache))) return MOE_OK;
    packed_slot *left = malloc((load->count + 1u) * sizeof *left);
    bool *read = malloc(load->count + 1u);
    uint32_t count = 0;
    moe_err err = left == NULL || read == NULL ? err_set(eb, MOE_ENOMEM, "out of memory") : MOE_OK;
    for (uint32_t i = 0; i < load->count && !err; i++) {
        if (!done[i]) left[count++] = load->slots[i];
    }
    if (!err) err = packed_cache_read(cache, left, count, read, load->pool, load->cancel, eb);
    for (uint32_t i = 0, k = 0; i < load->count && !err; i++) {
        if (!done[i]) done[i] = read[k++];
    }
    if (!err && load->whole && count_true(done, load->count) != load->count)
        clear_whole(load, done);
    free(left);
    free(read);
    return err;
}

/* How many slots came from where, in the order in which places are asked. */
typedef struct origins {
    uint32_t cached, copied;
} origins;

static void
ask_source(const weight_load *load, bool *done, origins *from)
{
    const uint32_t before = count_true(done, load->count);
    if (load->source.fill == NULL || before == load->count) return;
    load->source.fill(load->source.arg, load->slots, load->count, done);
    from->copied = count_true(done, load->count) - before;
}

static moe_err
take_packed(const weight_load *load, packed_cache *cache, bool *done, origins *from, errbuf *eb)
{
    if (load->source.first) ask_source(load, done, from);
    const uint32_t before = count_true(done, load->count);
    const moe_err err = read_cache(load, cache, done, eb);
    if (err) return err;
    from->cached = count_true(done, load->count) - before;
    if (!load->source.first) ask_source(load, done, from);
    return MOE_OK;
}

static moe_err
pack_rest(const weight_load *load, const bool *done, uint64_t *source_bytes, errbuf *eb)
{
    pack_plan *plan;
    moe_err err = load->plan(load->arg, &plan, done, eb);
    if (err) return err;
    err = pack_plan_run(plan, load->pool, load->cancel, eb);
    *source_bytes = pack_plan_source_bytes(plan);
    pack_plan_free(plan);
    return err;
}

static void
report(const weight_load *load, const origins *o, uint64_t source_bytes, uint64_t ns)
{
    const uint64_t read = (o->cached + o->copied) * load->key.slot_bytes + source_bytes;
    const bool packed = load->count == 0 || o->cached + o->copied != load->count;
    const char *const names[] = {o->cached != 0 ? "cache" : NULL, o->copied != 0 ? "peer" : NULL,
                                 packed ? "checkpoint" : NULL};
    char from[32];
    int len = 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (names[i] != NULL)
            len += snprintf(from + len, sizeof from - (size_t)len, "%s%s", len == 0 ? "" : "+",
                            names[i]);
    }
    LOG_INFO("weights",
             "%s loaded from=%s slots=%u cached_slots=%u peer_slots=%u bytes=%llu read_bytes=%llu "
             "load_ms=%llu read_gb_per_s=%.2f",
             load->what, from, load->count, o->cached, o->copied,
             (unsigned long long)(load->count * load->key.slot_bytes), (unsigned long long)read,
             (unsigned long long)(ns / NS_PER_MS), ns == 0 ? 0.0 : (double)read / (double)ns);
}

/* Takes the cache; a fill that can't start costs no more than the next start's time. */
static packed_fill *
start_fill(const weight_load *load, packed_cache *cache, uint32_t cached)
{
    packed_fill *fill = NULL;
    errbuf eb;
    if (cache == NULL) return NULL;
    if (cached == load->count || !packed_cache_can_write(cache))
        packed_cache_close(cache);
    else if (packed_fill_start(&fill, cache, load->slots, load->count, &eb))
        LOG_WARN("weights", "the cache is not filled: %s", eb.text);
    return fill;
}

moe_err
weight_load_run(const weight_load *load, packed_fill **fill, errbuf *eb)
{
    *fill = NULL;
    const uint64_t start = clock_now_ns();
    bool *done = calloc(load->count + 1u, sizeof *done);
    if (done == NULL) return err_set(eb, MOE_ENOMEM, "no memory to load %u slots", load->count);
    packed_cache *cache = open_cache(load);
    uint64_t source_bytes = 0;
    origins from = {0};
    moe_err err = take_packed(load, cache, done, &from, eb);
    if (!err && from.cached + from.copied != load->count)
        err = pack_rest(load, done, &source_bytes, eb);
    free(done);
    if (err) {
        packed_cache_close(cache);
        return err;
    }
    report(load, &from, source_bytes, clock_now_ns() - start);
    *fill = start_fill(load, cache, from.cached);
    return MOE_OK;
}
