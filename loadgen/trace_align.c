#include "loadgen/trace_align.h"

#include <math.h>
#include <string.h>

typedef struct reader {
    trace_align *align;
    uint32_t host; /* of the file being read */
    bool seen;     /* its head */
} reader;

static bool
is_router(const trace_row *head)
{
    return strcmp(head->name, "router") == 0;
}

uint32_t
trace_align_host(const trace_align *a, const trace_row *head)
{
    const int16_t host = (is_router(head) ? a->router_host : a->worker_host)[head->id];
    return host < 0 ? 0 : (uint32_t)host;
}

static moe_err
find_host(trace_align *a, const char *name, uint32_t *out, errbuf *eb)
{
    for (*out = 0; *out < a->host_count; (*out)++) {
        if (strcmp(a->hosts[*out].name, name) == 0) return MOE_OK;
    }
    if (a->host_count == TRACE_HOSTS_MAX)
        return err_set(eb, MOE_ERANGE, "more than %d hosts", TRACE_HOSTS_MAX);
    memcpy(a->hosts[a->host_count++].name, name, sizeof a->hosts[0].name);
    return MOE_OK;
}

/* First pass: who is where. */
static moe_err
on_head(void *ctx, const trace_row *row, errbuf *eb)
{
    reader *r = ctx;
    if (row->kind != TRACE_ROW_HEAD) return MOE_OK;
    if (r->seen) return err_set(eb, MOE_EINVAL, "a second process in one file");
    r->seen = true;
    int16_t *host = &(is_router(row) ? r->align->router_host : r->align->worker_host)[row->id];
    if (*host >= 0) return err_set(eb, MOE_EINVAL, "a second trace of %s %u", row->name, row->id);
    const moe_err err = find_host(r->align, row->host, &r->host, eb);
    *host = (int16_t)r->host;
    return err;
}

/* Second pass: how fast messages are. */
static moe_err
on_message(void *ctx, const trace_row *row, errbuf *eb)
{
    reader *r = ctx;
    (void)eb;
    if (row->kind == TRACE_ROW_HEAD) r->host = trace_align_host(r->align, row);
    int16_t from = -1;
    if (row->kind == TRACE_ROW_DISPATCH_RECEIVED) from = r->align->router_host[row->router];
    if (row->kind == TRACE_ROW_RESULT_RECEIVED) from = r->align->worker_host[row->worker];
    if (from < 0 || (uint32_t)from == r->host) return MOE_OK;
    double *least = &r->align->least_us[from][r->host];
    const double took = row->start_us - row->sent_us;
    if (!(took >= *least)) *least = took;
    return MOE_OK;
}

/* Prim's algorithm: the next host is the one with the shortest round trip to those that are done.
 */
static void
align_hosts(trace_align *a)
{
    a->hosts[0].aligned = true;
    for (;;) {
        uint32_t from = 0, to = 0;
        double best = NAN;
        for (uint32_t i = 0; i < a->host_count; i++) {
            for (uint32_t j = 0; j < a->host_count; j++) {
                const double round_trip = a->least_us[i][j] + a->least_us[j][i];
                if (!a->hosts[i].aligned || a->hosts[j].aligned || !isfinite(round_trip)) continue;
                if (round_trip >= best) continue;
                best = round_trip, from = i, to = j;
            }
        }
        if (!isfinite(best)) return;
        a->hosts[to].aligned = true;
        a->hosts[to].offset_us =
            a->hosts[from].offset_us + (a->least_us[from][to] - a->least_us[to][from]) / 2;
        a->hosts[to].error_us = a->hosts[from].error_us + fabs(best) / 2;
    }
}

static moe_err
read_all(reader *r, const char *const *paths, size_t count, trace_row_fn fn, errbuf *eb)
{
    for (size_t i = 0; i < count; i++) {
        r->seen = false;
        const moe_err err = trace_read_file(paths[i], fn, r, eb);
        if (err) return err;
        if (fn == on_head && !r->seen)
            return err_set(eb, MOE_EINVAL, "%s: nothing says which process wrote it", paths[i]);
    }
    return MOE_OK;
}

moe_err
trace_align_read(trace_align *out, const char *const *paths, size_t count, errbuf *eb)
{
    *out = (trace_align){0};
    for (size_t i = 0; i < TRACE_ID_MAX; i++) {
        out->router_host[i] = out->worker_host[i] = -1;
    }
    for (size_t i = 0; i < TRACE_HOSTS_MAX * TRACE_HOSTS_MAX; i++) {
        out->least_us[i / TRACE_HOSTS_MAX][i % TRACE_HOSTS_MAX] = NAN;
    }
    reader r = {.align = out};
    moe_err err = read_all(&r, paths, count, on_head, eb);
    if (!err) err = read_all(&r, paths, count, on_message, eb);
    if (!err) align_hosts(out);
    return err;
}
