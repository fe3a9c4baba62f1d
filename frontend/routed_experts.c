#include "frontend/routed_experts.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A multiple of 64, as the format has it, and room for the largest shape. */
#define NPY_HEADER_BYTES 128
#define NPY_MAGIC_BYTES 10 /* magic, version, length of the rest */
#define BASE64_CHUNK 4096  /* digits appended at a time; a multiple of 4 */

void
routed_experts_init(routed_experts *r, const routing_shape *shape, uint32_t first, uint32_t end)
{
    assert(first <= end);
    *r = (routed_experts){
        .first = first, .end = end, .shape = *shape, .token_bytes = routing_token_bytes(shape)};
    r->bytes = malloc((size_t)(end - first) * r->token_bytes + 1);
    r->failed = r->bytes == NULL;
}

void
routed_experts_fini(routed_experts *r)
{
    free(r->bytes);
    *r = (routed_experts){0};
}

void
routed_experts_put(routed_experts *r, uint32_t position, const uint8_t *ids, uint32_t count)
{
    if (r->failed || r->bytes == NULL) return;
    if (position > r->known) {
        r->failed = true;
        return;
    }
    uint32_t end = position + count;
    if (end > r->known) r->known = end;
    if (end > r->end) end = r->end;
    if (position < r->first) {
        if (end <= r->first) return;
        ids += (size_t)(r->first - position) * r->token_bytes;
        position = r->first;
    }
    if (position >= end) return;
    memcpy(r->bytes + (size_t)(position - r->first) * r->token_bytes, ids,
           (size_t)(end - position) * r->token_bytes);
}

/* ---- printing ---- */

static void
write_header(const routed_experts *r, uint32_t tokens, unsigned char out[NPY_HEADER_BYTES])
{
    char *text = (char *)out + NPY_MAGIC_BYTES;
    const size_t room = NPY_HEADER_BYTES - NPY_MAGIC_BYTES;
    memcpy(out, "\x93NUMPY\x01\x00", 8);
    out[8] = (unsigned char)room; /* little-endian, below 256 */
    out[9] = 0;
    const int len = snprintf(
        text, room, "{'descr': '%s', 'fortran_order': False, 'shape': (%u, %u, %u), }",
        r->shape.id_bytes == 1 ? "|u1" : "<u2", tokens, r->shape.num_layers, r->shape.top_k);
    assert(len > 0 && (size_t)len < room);
    memset(text + len, ' ', room - (size_t)len);
    text[room - 1] = '\n';
}

/* Base64 of two byte strings as if they were one. */
typedef struct base64 {
    strbuf *out;
    char text[BASE64_CHUNK];
    size_t count;  /* in text */
    uint32_t word; /* of `held` bytes that are no group of 3 yet */
    unsigned held;
} base64;

static void
base64_flush(base64 *b)
{
    strbuf_append(b->out, b->text, b->count);
    b->count = 0;
}

/* The group's 4 digits; of fewer than 3 bytes, the rest is padding. */
static void
base64_group(base64 *b)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint32_t word = b->word << 8 * (3 - b->held);
    for (unsigned i = 0; i < 4; i++)
        b->text[b->count++] = i <= b->held ? digits[word >> (18 - 6 * i) & 63] : '=';
    b->word = b->held = 0;
    if (b->count == BASE64_CHUNK) base64_flush(b);
}

static void
base64_add(base64 *b, const unsigned char *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        b->word = b->word << 8 | bytes[i];
        if (++b->held == 3) base64_group(b);
    }
}

static void
base64_end(base64 *b)
{
    if (b->held != 0) base64_group(b);
    base64_flush(b);
}

void
routed_experts_print(const routed_experts *r, uint32_t total, strbuf *out)
{
    if (r->failed || r->bytes == NULL || total > r->known || total < r->first || total > r->end) {
        strbuf_puts(out, "null");
        return;
    }
    unsigned char header[NPY_HEADER_BYTES];
    write_header(r, total - r->first, header);
    base64 b = {.out = out};
    strbuf_puts(out, "\"");
    base64_add(&b, header, sizeof header);
    base64_add(&b, r->bytes, (size_t)(total - r->first) * r->token_bytes);
    base64_end(&b);
    strbuf_puts(out, "\"");
}
