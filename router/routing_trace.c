#include "router/routing_trace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/hash.h"
#include "router/routing_stats.h"

#define VARINT_MAX 10u
#define CHECK_BYTES 4u

static const char magic[8] = {'C', 'L', 'V', 'R', 'O', 'U', 'T', 'E'};

/* One allocation. */
struct routing_trace_writer {
    routing_trace_header header;
    size_t cells;
    int fd;
    bool failed;
    uint64_t records, first_step, last_first;
    uint32_t summed; /* steps in sums */
    uint32_t *sums;  /* [cells] */
    unsigned char *payload;
};

static void
put_u32(unsigned char *at, uint32_t value)
{
    for (uint32_t i = 0; i < 4; i++)
        at[i] = (unsigned char)(value >> (8 * i));
}

static uint32_t
get_u32(const unsigned char *at)
{
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static size_t
put_varint(unsigned char *at, uint64_t value)
{
    size_t n = 0;
    for (; value >= 0x80; value >>= 7)
        at[n++] = (unsigned char)(value | 0x80);
    at[n++] = (unsigned char)value;
    return n;
}

/* false: the bytes end first, or the number has more than 64 bits. */
static bool
get_varint(const unsigned char **at, const unsigned char *end, uint64_t *value)
{
    *value = 0;
    for (uint32_t shift = 0; shift < 64; shift += 7) {
        if (*at == end) return false;
        const unsigned char byte = *(*at)++;
        if (shift == 63 && byte > 1) return false;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return true;
    }
    return false;
}

static uint32_t
check_of(uint64_t record, const unsigned char *payload, size_t n)
{
    return (uint32_t)hash_bytes(record, payload, n);
}

static moe_err
check_header(const routing_trace_header *h, errbuf *eb)
{
    const uint64_t cells = (uint64_t)h->num_layers * h->num_experts;
    if (cells == 0 || cells > ROUTING_CELLS_MAX)
        return err_set(eb, MOE_ERANGE, "a trace of %u layers with %u experts", h->num_layers,
                       h->num_experts);
    if (h->top_k == 0 || h->top_k > h->num_experts)
        return err_set(eb, MOE_ERANGE, "a trace of top-%u of %u experts", h->top_k, h->num_experts);
    if (h->steps_per_record == 0 || h->steps_per_record > ROUTING_TRACE_STEPS_MAX)
        return err_set(eb, MOE_ERANGE, "a trace of %u steps in a record", h->steps_per_record);
    return MOE_OK;
}

static void
write_all(routing_trace_writer *w, const unsigned char *bytes, size_t n)
{
    while (n > 0 && !w->failed) {
        const ssize_t done = write(w->fd, bytes, n);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) {
            w->failed = true;
            return;
        }
        bytes += done;
        n -= (size_t)done;
    }
}

moe_err
routing_trace_create(routing_trace_writer **out, const char *path, const routing_trace_header *h,
                     errbuf *eb)
{
    *out = NULL;
    const moe_err err = check_header(h, eb);
    if (err) return err;
    const size_t cells = (size_t)h->num_layers * h->num_experts;
    /* A count takes at most 5 bytes; a lone 0 takes 2. */
    const size_t payload = 4 * VARINT_MAX + CHECK_BYTES + cells * 5;
    routing_trace_writer *w = calloc(1, sizeof *w + cells * sizeof *w->sums + payload);
    if (w == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    w->header = *h;
    w->cells = cells;
    w->sums = (uint32_t *)(w + 1);
    w->payload = (unsigned char *)(w->sums + cells);
    w->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (w->fd < 0) {
        free(w);
        return err_set(eb, MOE_EIO, "%s: %s", path, strerror(errno));
    }
    unsigned char header[ROUTING_TRACE_HEADER_BYTES] = {0};
    memcpy(header, magic, sizeof magic);
    put_u32(header + 8, ROUTING_TRACE_VERSION);
    put_u32(header + 12, h->num_layers);
    put_u32(header + 16, h->num_experts);
    put_u32(header + 20, h->top_k);
    put_u32(header + 24, (uint32_t)h->fingerprint);
    put_u32(header + 28, (uint32_t)(h->fingerprint >> 32));
    put_u32(header + 32, h->steps_per_record);
    write_all(w, header, sizeof header);
    *out = w;
    return MOE_OK;
}

/* The length stands before the payload, so the payload is built behind room for the longest. */
static void
write_record(routing_trace_writer *w)
{
    unsigned char *const payload = w->payload + VARINT_MAX;
    size_t n = put_varint(payload, w->first_step - w->last_first);
    n += put_varint(payload + n, w->summed);
    for (size_t i = 0; i < w->cells; i++) {
        n += put_varint(payload + n, w->sums[i]);
        if (w->sums[i] != 0) continue;
        size_t end = i + 1;
        while (end < w->cells && w->sums[end] == 0)
            end++;
        n += put_varint(payload + n, end - i - 1);
        i = end - 1;
    }
    put_u32(payload + n, check_of(w->records, payload, n));
    unsigned char length[VARINT_MAX];
    const size_t length_bytes = put_varint(length, n);
    memcpy(payload - length_bytes, length, length_bytes);
    write_all(w, payload - length_bytes, length_bytes + n + CHECK_BYTES);
    w->last_first = w->first_step;
    w->records++;
    w->summed = 0;
    memset(w->sums, 0, w->cells * sizeof *w->sums);
}

moe_err
routing_trace_append(routing_trace_writer *w, uint64_t step, const uint32_t *counts)
{
    if (w->summed == 0) w->first_step = step;
    for (size_t i = 0; i < w->cells; i++)
        w->sums[i] += counts[i];
    if (++w->summed == w->header.steps_per_record) write_record(w);
    return w->failed ? MOE_EIO : MOE_OK;
}

moe_err
routing_trace_close(routing_trace_writer *w)
{
    if (w == NULL) return MOE_OK;
    if (w->summed != 0) write_record(w);
    if (close(w->fd) != 0) w->failed = true;
    const moe_err err = w->failed ? MOE_EIO : MOE_OK;
    free(w);
    return err;
}

moe_err
routing_trace_open(routing_trace *out, const void *bytes, size_t len, errbuf *eb)
{
    const unsigned char *b = bytes;
    *out = (routing_trace){0};
    if (len < ROUTING_TRACE_HEADER_BYTES || memcmp(b, magic, sizeof magic) != 0)
        return err_set(eb, MOE_EINVAL, "not a routing trace");
    if (get_u32(b + 8) != ROUTING_TRACE_VERSION)
        return err_set(eb, MOE_EMISMATCH, "a routing trace of version %u, not %u", get_u32(b + 8),
                       ROUTING_TRACE_VERSION);
    const routing_trace_header h = {
        .num_layers = get_u32(b + 12),
        .num_experts = get_u32(b + 16),
        .top_k = get_u32(b + 20),
        .fingerprint = get_u32(b + 24) | (uint64_t)get_u32(b + 28) << 32,
        .steps_per_record = get_u32(b + 32),
    };
    const moe_err err = check_header(&h, eb);
    if (err) return err;
    *out = (routing_trace){.header = h, .bytes = b, .len = len, .at = ROUTING_TRACE_HEADER_BYTES};
    return MOE_OK;
}

static bool
read_counts(const routing_trace *t, const unsigned char *at, const unsigned char *end,
            uint32_t *counts)
{
    const size_t cells = (size_t)t->header.num_layers * t->header.num_experts;
    for (size_t i = 0; i < cells;) {
        uint64_t value;
        if (!get_varint(&at, end, &value) || value > UINT32_MAX) return false;
        counts[i++] = (uint32_t)value;
        if (value != 0) continue;
        if (!get_varint(&at, end, &value) || value > cells - i) return false;
        memset(counts + i, 0, (size_t)value * sizeof *counts);
        i += (size_t)value;
    }
    return at == end;
}

moe_err
routing_trace_next(routing_trace *t, routing_trace_record *record, uint32_t *counts, errbuf *eb)
{
    const unsigned char *at = t->bytes + t->at, *const end = t->bytes + t->len;
    uint64_t length, step, steps;
    if (at == end) return MOE_ENOTFOUND;
    if (!get_varint(&at, end, &length)) {
        if (end - at > 0)
            return err_set(eb, MOE_EINVAL, "record %llu: a length of more than 64 bits",
                           (unsigned long long)t->records);
        return err_set(eb, MOE_ECLOSED, "record %llu is cut off", (unsigned long long)t->records);
    }
    if ((uint64_t)(end - at) < CHECK_BYTES || length > (uint64_t)(end - at) - CHECK_BYTES)
        return err_set(eb, MOE_ECLOSED, "record %llu is cut off", (unsigned long long)t->records);
    const unsigned char *const stop = at + length;
    if (get_u32(stop) != check_of(t->records, at, (size_t)length))
        return err_set(eb, MOE_EINVAL, "record %llu is damaged", (unsigned long long)t->records);
    if (!get_varint(&at, stop, &step) || !get_varint(&at, stop, &steps) || steps == 0 ||
        steps > UINT32_MAX || (t->records != 0 && step == 0) || step > UINT64_MAX - t->last_step)
        return err_set(eb, MOE_EINVAL, "record %llu: impossible steps",
                       (unsigned long long)t->records);
    if (!read_counts(t, at, stop, counts))
        return err_set(eb, MOE_EINVAL, "record %llu: impossible counts",
                       (unsigned long long)t->records);
    t->last_step += step;
    t->records++;
    t->at = (size_t)(stop - t->bytes) + CHECK_BYTES;
    *record = (routing_trace_record){.first_step = t->last_step, .step_count = (uint32_t)steps};
    return MOE_OK;
}
