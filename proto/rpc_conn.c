/* Design notes
 *
 * One aio reads into one buffer, as much as there is; one frame is written at a time, by `trier` at
 * once as far as the stream takes it, the rest by `writer` and its callback.  The reader is always
 * in one of these states, so that the buffer has one user:
 *   - its aio is under way: a read, or the wake-up that rpc_conn_resume_locked() makes of it;
 *   - its callback runs;
 *   - held: arrived() said "not now";
 *   - at its end: the connection is ending, garbled or lost.
 *
 * What nng 1.5.2 wants of its user, and how it gets it here:
 *   - A read or write that begins after nng_stream_close() is never completed.  So `open` is tested
 *     and the operation begun under one mutex.
 *   - nng_aio_stop() beside a beginning operation may return before its callback has run.  The
 *     mutex prevents that too: a lost connection begins nothing.
 *   - A stream must outlive the operations that are being cancelled.  So the aios are stopped
 *     before it is freed.
 * nng runs callbacks on its own threads, never inside the functions that we call with the mutex
 * held.
 */
#include "proto/rpc_conn.h"

#include <stdlib.h>
#include <string.h>

/* Room to read into.  A larger frame gets a larger buffer, which is kept up to a limit: fresh pages
 * for each large frame take as long as its bytes. */
#define BUFFER_BYTES (16u << 10)
#define BUFFER_KEPT_BYTES (RPC_MESSAGE_BYTES_DEFAULT + 4096)

struct rpc_conn {
    rpc_conn_owner owner;
    nng_stream *stream;
    nng_aio *reader, *writer, *trier;

    uint8_t *buffer; /* [capacity], of which start..end - 1 were read and not yet handled; the
                        reader's */
    size_t capacity, start, end;

    bool open;          /* the rest is guarded by the owner's mutex */
    bool ending;        /* no longer read */
    bool held;          /* arrived() said "not now" */
    bool resumed;       /* ... but was told to go on before that was noted here */
    rpc_frame *writing; /* NULL = none */
    size_t written;     /* bytes of it */
};

rpc_frame *
rpc_frame_alloc(const rpc_header *header)
{
    const size_t bytes = sizeof *header + header->body_bytes;
    rpc_frame *frame = malloc(sizeof *frame + bytes);
    if (frame == NULL) return NULL;
    frame->next = NULL;
    frame->bytes = bytes;
    memcpy(frame->data, header, sizeof *header);
    return frame;
}

uint8_t *
rpc_frame_body(rpc_frame *frame)
{
    return frame->data + sizeof(rpc_header);
}

void
rpc_conn_close_locked(rpc_conn *c)
{
    if (!c->open) return;
    c->open = false;
    nng_stream_close(c->stream);
    c->owner.lost_locked(c->owner.arg);
}

/* ---- writing ---- */

static void
set_iov_locked(rpc_conn *c, nng_aio *aio)
{
    nng_iov iov = {.iov_buf = c->writing->data + c->written,
                   .iov_len = c->writing->bytes - c->written};
    nng_aio_set_iov(aio, 1, &iov);
}

/* Write what the stream takes at once, without a callback: waking a thread of nng's to be told that
 * it is done takes longer than the writing.  A write that went through has a count when
 * nng_stream_send() returns; one that did not (or failed) is taken back, which ends it at once.
 * Returns nng's error. */
static int
write_now_locked(rpc_conn *c)
{
    int rc = 0;
    while (rc == 0 && c->written < c->writing->bytes) {
        set_iov_locked(c, c->trier);
        nng_stream_send(c->stream, c->trier);
        if (nng_aio_count(c->trier) == 0) nng_aio_cancel(c->trier);
        nng_aio_wait(c->trier); /* does not block any more */
        rc = nng_aio_result(c->trier);
        c->written += nng_aio_count(c->trier);
    }
    return rc == NNG_ECANCELED ? 0 : rc;
}

static void
end_frame_locked(rpc_conn *c)
{
    free(c->writing);
    c->writing = NULL;
}

/* Write frames until there are no more, or the stream takes no more: then on_written() goes on. */
static void
write_frames_locked(rpc_conn *c)
{
    while (c->open) {
        if (c->writing == NULL) {
            c->writing = c->owner.next_locked(c->owner.arg);
            c->written = 0;
        }
        if (c->writing == NULL) {
            if (c->ending) rpc_conn_close_locked(c);
            return;
        }
        if (write_now_locked(c) != 0) {
            end_frame_locked(c);
            rpc_conn_close_locked(c);
        } else if (c->written == c->writing->bytes) {
            end_frame_locked(c);
        } else {
            set_iov_locked(c, c->writer);
            nng_stream_send(c->stream, c->writer);
            return;
        }
    }
}

void
rpc_conn_write_locked(rpc_conn *c)
{
    if (c->writing == NULL) write_frames_locked(c);
}

static void
on_written(void *arg)
{
    rpc_conn *c = arg;
    const int rc = nng_aio_result(c->writer);
    pthread_mutex_lock(c->owner.mutex);
    c->written += nng_aio_count(c->writer);
    if (rc != 0) rpc_conn_close_locked(c);
    if (!c->open || c->written == c->writing->bytes) end_frame_locked(c);
    write_frames_locked(c);
    pthread_mutex_unlock(c->owner.mutex);
}

/* ---- reading ---- */

static void
submit_read_locked(rpc_conn *c)
{
    nng_iov iov = {.iov_buf = c->buffer + c->end, .iov_len = c->capacity - c->end};
    nng_aio_set_iov(c->reader, 1, &iov);
    nng_stream_recv(c->stream, c->reader);
}

/* Make room for the rest of a frame of frame_bytes.  false: out of memory. */
static bool
make_room(rpc_conn *c, size_t frame_bytes)
{
    const size_t held = c->end - c->start;
    size_t capacity = c->capacity;
    if (held == 0 && capacity > BUFFER_KEPT_BYTES) capacity = BUFFER_BYTES;
    if (frame_bytes > capacity) capacity = frame_bytes;
    memmove(c->buffer, c->buffer + c->start, held);
    c->start = 0;
    c->end = held;
    if (capacity == c->capacity) return true;
    uint8_t *resized = realloc(c->buffer, capacity);
    if (resized == NULL) return capacity < c->capacity;
    c->buffer = resized;
    c->capacity = capacity;
    return true;
}

static bool
may_read(rpc_conn *c)
{
    pthread_mutex_lock(c->owner.mutex);
    const bool may = c->open && !c->ending;
    pthread_mutex_unlock(c->owner.mutex);
    return may;
}

/* false: told to go on meanwhile. */
static bool
hold(rpc_conn *c)
{
    pthread_mutex_lock(c->owner.mutex);
    c->held = !c->resumed;
    c->resumed = false;
    const bool held = c->held;
    pthread_mutex_unlock(c->owner.mutex);
    return held;
}

/* Hand over the frames in the buffer.  true: more must be read. */
static bool
take_frames(rpc_conn *c)
{
    rpc_header header;
    size_t bytes;
    errbuf eb;
    while (may_read(c)) {
        moe_err err = rpc_frame_find(&header, c->buffer + c->start, c->end - c->start,
                                     c->owner.body_bytes_max, &bytes, &eb);
        if (err == MOE_OK && bytes == 0) {
            if (make_room(c, sizeof header + header.body_bytes)) return true;
            err = err_set(&eb, MOE_ENOMEM, "out of memory for a message of %u bytes",
                          (unsigned)header.body_bytes);
        }
        if (err != MOE_OK) {
            c->owner.garbled(c->owner.arg, err, eb.text);
            return false;
        }
        if (c->owner.arrived(c->owner.arg, &header, c->buffer + c->start + sizeof header))
            c->start += bytes;
        else if (hold(c))
            return false;
    }
    return false;
}

static void
on_read(void *arg)
{
    rpc_conn *c = arg;
    const int rc = nng_aio_result(c->reader);
    c->end += nng_aio_count(c->reader);
    if (rc == 0 && !take_frames(c)) return;
    pthread_mutex_lock(c->owner.mutex);
    if (rc != 0)
        rpc_conn_close_locked(c);
    else if (c->open && !c->ending)
        submit_read_locked(c);
    pthread_mutex_unlock(c->owner.mutex);
}

/* Its callback finds what was left in the buffer: the frame must be handled on a thread of nng's,
 * not on the caller's, which may be inside a handler. */
void
rpc_conn_resume_locked(rpc_conn *c)
{
    if (!c->held) {
        c->resumed = true;
        return;
    }
    c->held = false;
    if (c->open && nng_aio_begin(c->reader)) nng_aio_finish(c->reader, 0);
}

/* ---- life ---- */

moe_err
rpc_conn_open(rpc_conn **out, nng_stream *stream, const rpc_conn_owner *owner)
{
    *out = NULL;
    rpc_conn *c = calloc(1, sizeof *c);
    if (c == NULL) {
        nng_stream_free(stream);
        return MOE_ENOMEM;
    }
    c->owner = *owner;
    c->stream = stream;
    c->capacity = BUFFER_BYTES;
    c->buffer = malloc(c->capacity);
    if (c->buffer == NULL || nng_aio_alloc(&c->reader, on_read, c) != 0 ||
        nng_aio_alloc(&c->writer, on_written, c) != 0 ||
        nng_aio_alloc(&c->trier, NULL, NULL) != 0) {
        rpc_conn_free(c);
        return MOE_ENOMEM;
    }
    nng_aio_set_timeout(c->reader, NNG_DURATION_INFINITE);
    nng_aio_set_timeout(c->writer, NNG_DURATION_INFINITE);
    nng_aio_set_timeout(c->trier, NNG_DURATION_INFINITE);
    *out = c;
    return MOE_OK;
}

void
rpc_conn_start_locked(rpc_conn *c)
{
    c->open = true;
    submit_read_locked(c);
    rpc_conn_write_locked(c);
}

void
rpc_conn_end_locked(rpc_conn *c)
{
    c->ending = true;
    rpc_conn_write_locked(c);
}

void
rpc_conn_free(rpc_conn *c)
{
    if (c == NULL) return;
    pthread_mutex_lock(c->owner.mutex);
    rpc_conn_close_locked(c);
    pthread_mutex_unlock(c->owner.mutex);
    if (c->reader != NULL) nng_aio_stop(c->reader);
    if (c->writer != NULL) nng_aio_stop(c->writer);
    nng_stream_free(c->stream);
    nng_aio_free(c->reader);
    nng_aio_free(c->writer);
    nng_aio_free(c->trier);
    free(c->buffer);
    free(c);
}
