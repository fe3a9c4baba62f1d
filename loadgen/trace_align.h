/* trace_align: how far the clocks of several hosts are apart, from the messages in their traces.
 *
 * Processes of one host share a clock.  Between two hosts A and B, let dAB be the least of
 * (received by B's clock - sent by A's) over all messages from A to B, and dBA the same of the
 * other way.  If the fastest message takes as long one way as the other,
 *
 *   B's clock - A's clock = (dAB - dBA) / 2
 *
 * and it is wrong by at most (dAB + dBA) / 2, half of the fastest round trip.  Hosts that have no
 * messages in common are aligned over others, along the pairs with the shortest round trips.
 *
 * Source: the offset of NTP (RFC 5905, section 8), with the least delay as filter.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_TRACE_ALIGN_H
#define MOE_LOADGEN_TRACE_ALIGN_H

#include "common/err.h"
#include "loadgen/trace_read.h"

#define TRACE_HOSTS_MAX 64

typedef struct trace_host {
    char name[64];
    double offset_us; /* its clock - host 0's; 0 unless aligned */
    double error_us;  /* it is wrong by at most so much, if a message's least time is */
    bool aligned;
} trace_host;

typedef struct trace_align {
    uint32_t host_count;
    trace_host hosts[TRACE_HOSTS_MAX]; /* 0: of the first file */
    /* [TRACE_ID_MAX] index into hosts; -1: no trace of it is there */
    int16_t router_host[TRACE_ID_MAX], worker_host[TRACE_ID_MAX];
    double least_us[TRACE_HOSTS_MAX][TRACE_HOSTS_MAX]; /* [from][to], NaN: no message */
} trace_align;

/* Reads all files, twice.
 *   MOE_EINVAL  a file does not say who wrote it, or two are of one process; or as trace_read.h
 *   MOE_ERANGE  more than TRACE_HOSTS_MAX hosts
 *   MOE_ENOTFOUND, MOE_EIO, MOE_ENOMEM */
moe_err trace_align_read(trace_align *out, const char *const *paths, size_t count, errbuf *eb);

/* The host of the file whose head row is this; index into hosts. */
uint32_t trace_align_host(const trace_align *a, const trace_row *head);

#endif
