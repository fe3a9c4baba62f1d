/* npy: what a client of return_routed_experts does: base64 back to a NumPy file, and its array. */
#ifndef MOE_TESTS_SUPPORT_NPY_H
#define MOE_TESTS_SUPPORT_NPY_H

#include <criterion/criterion.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct npy {
    unsigned char *file; /* owned */
    const unsigned char *ids;
    unsigned tokens, layers, top_k, id_bytes;
} npy;

static inline unsigned
npy_digit(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = strchr(digits, c);
    cr_assert(c != '\0' && at != NULL, "'%c' is no base64", c);
    return (unsigned)(at - digits);
}

static inline npy
npy_read(const char *text)
{
    npy a = {0};
    const size_t len = strlen(text);
    cr_assert_eq(len % 4, 0);
    a.file = malloc(len + 1);
    size_t n = 0;
    for (size_t i = 0; i < len; i += 4) {
        unsigned word = 0, pad = 0;
        for (size_t j = 0; j < 4; j++) {
            const bool padding = text[i + j] == '=' && i + 4 == len;
            pad += padding;
            word = word << 6 | (padding ? 0 : npy_digit(text[i + j]));
        }
        for (unsigned j = 0; j < 3 - pad; j++)
            a.file[n++] = (unsigned char)(word >> (16 - 8 * j));
    }
    cr_assert_geq(n, 10);
    cr_assert_eq(memcmp(a.file, "\x93NUMPY\x01\x00", 8), 0);
    const size_t header = 10 + a.file[8] + 256u * a.file[9];
    cr_assert_eq(header % 64, 0);
    cr_assert_leq(header, n);
    cr_assert_eq(a.file[header - 1], '\n');
    char dict[256], type[4] = "";
    snprintf(dict, sizeof dict, "%.*s", (int)header - 10, (const char *)a.file + 10);
    cr_assert_eq(sscanf(dict,
                        "{'descr': '%3[|<u12]', 'fortran_order': False, 'shape': (%u, %u, %u)",
                        type, &a.tokens, &a.layers, &a.top_k),
                 4, "%s", dict);
    a.id_bytes = strcmp(type, "|u1") == 0 ? 1 : 2;
    a.ids = a.file + header;
    cr_assert_eq(n - header, (size_t)a.tokens * a.layers * a.top_k * a.id_bytes);
    return a;
}

static inline unsigned
npy_id(const npy *a, unsigned token, unsigned i)
{
    const unsigned char *at = a->ids + ((size_t)token * a->layers * a->top_k + i) * a->id_bytes;
    return a->id_bytes == 1 ? at[0] : at[0] + 256u * at[1];
}

#endif
