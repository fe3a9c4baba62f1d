#include "loadgen/npy_read.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX_BYTES 10 /* magic, version, length of the header */
#define HEADER_BYTES_MAX 1024

static int
digit_of(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* On MOE_OK *out [*size] is owned. */
static moe_err
decode_base64(const char *text, size_t len, unsigned char **out, size_t *size, errbuf *eb)
{
    size_t padding = 0;
    while (padding < 2 && padding < len && text[len - 1 - padding] == '=')
        padding++;
    if (len == 0 || len % 4 != 0) return err_set(eb, MOE_EINVAL, "base64 of %zu letters", len);
    if (len / 4 * 3 > NPY_BYTES_MAX)
        return err_set(eb, MOE_ERANGE, "more than %u bytes", NPY_BYTES_MAX);
    unsigned char *bytes = malloc(len / 4 * 3);
    if (bytes == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    uint32_t word = 0;
    *size = 0;
    for (size_t i = 0; i < len; i++) {
        const int digit = i < len - padding ? digit_of(text[i]) : 0;
        if (digit < 0) {
            free(bytes);
            return err_set(eb, MOE_EINVAL, "letter %zu is no base64", i);
        }
        word = word << 6 | (uint32_t)digit;
        if (i % 4 != 3) continue;
        bytes[(*size)++] = (unsigned char)(word >> 16);
        bytes[(*size)++] = (unsigned char)(word >> 8);
        bytes[(*size)++] = (unsigned char)word;
        word = 0;
    }
    *size -= padding;
    *out = bytes;
    return MOE_OK;
}

/* {'descr': '|u1', 'fortran_order': False, 'shape': (7, 6, 2), } and blanks.  header [len + 1] */
static moe_err
read_header(const char *header, routed_ids *out, size_t *id_bytes, errbuf *eb)
{
    const char *type = strstr(header, "'descr': '"), *shape = strstr(header, "'shape': (");
    if (type == NULL || shape == NULL || strstr(header, "'fortran_order': False") == NULL)
        return err_set(eb, MOE_EINVAL, "the header is not that of an array in C order");
    type += strlen("'descr': '");
    if (strncmp(type, "|u1'", 4) == 0)
        *id_bytes = 1;
    else if (strncmp(type, "<u2'", 4) == 0)
        *id_bytes = 2;
    else
        return err_set(eb, MOE_EINVAL, "ids of another type than |u1 and <u2");
    char end = '\0';
    unsigned long size[3];
    const char *at = shape + strlen("'shape': (");
    for (int i = 0; i < 3; i++) {
        char *after;
        if (*at < '0' || *at > '9') return err_set(eb, MOE_EINVAL, "no shape of three numbers");
        size[i] = strtoul(at, &after, 10);
        end = *after;
        if (end != (i < 2 ? ',' : ')')) return err_set(eb, MOE_EINVAL, "no shape of three numbers");
        at = after + 1 + (after[1] == ' ');
    }
    if (size[0] > NPY_BYTES_MAX || size[1] > NPY_LAYERS_MAX || size[2] > NPY_TOPK_MAX)
        return err_set(eb, MOE_ERANGE, "shape (%lu, %lu, %lu)", size[0], size[1], size[2]);
    out->tokens = (uint32_t)size[0];
    out->layers = (uint32_t)size[1];
    out->top_k = (uint32_t)size[2];
    return MOE_OK;
}

static moe_err
read_ids(const unsigned char *bytes, size_t size, size_t id_bytes, routed_ids *out, errbuf *eb)
{
    const uint64_t count = (uint64_t)out->tokens * out->layers * out->top_k;
    if (count * id_bytes != size)
        return err_set(eb, MOE_EINVAL, "%zu bytes of ids, the shape (%u, %u, %u) has %llu", size,
                       out->tokens, out->layers, out->top_k,
                       (unsigned long long)(count * id_bytes));
    if (count == 0) return MOE_OK;
    out->ids = malloc(count * sizeof *out->ids);
    if (out->ids == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    for (uint64_t i = 0; i < count; i++) {
        const unsigned char *at = bytes + i * id_bytes;
        out->ids[i] = (uint16_t)(id_bytes == 1 ? at[0] : at[0] | at[1] << 8);
        if (out->ids[i] >= NPY_EXPERTS_MAX)
            return err_set(eb, MOE_ERANGE, "expert %u, at most %d", out->ids[i],
                           NPY_EXPERTS_MAX - 1);
    }
    return MOE_OK;
}

moe_err
routed_ids_read(const char *text, size_t len, routed_ids *out, errbuf *eb)
{
    unsigned char *bytes = NULL;
    size_t size = 0, id_bytes = 0;
    char header[HEADER_BYTES_MAX + 1];
    *out = (routed_ids){0};
    moe_err err = decode_base64(text, len, &bytes, &size, eb);
    if (err) return err;
    const size_t header_bytes =
        size >= PREFIX_BYTES ? (size_t)bytes[8] | (size_t)bytes[9] << 8 : SIZE_MAX;
    if (size < PREFIX_BYTES || memcmp(bytes, "\x93NUMPY\x01\x00", 8) != 0)
        err = err_set(eb, MOE_EINVAL, "no .npy file of version 1");
    else if (header_bytes > HEADER_BYTES_MAX || header_bytes > size - PREFIX_BYTES)
        err = err_set(eb, MOE_EINVAL, "a header of %zu bytes", header_bytes);
    if (!err) {
        memcpy(header, bytes + PREFIX_BYTES, header_bytes);
        header[header_bytes] = '\0';
        err = read_header(header, out, &id_bytes, eb);
    }
    const size_t before = PREFIX_BYTES + header_bytes;
    if (!err) err = read_ids(bytes + before, size - before, id_bytes, out, eb);
    free(bytes);
    if (err) routed_ids_fini(out);
    return err;
}

void
routed_ids_fini(routed_ids *r)
{
    free(r->ids);
    *r = (routed_ids){0};
}
