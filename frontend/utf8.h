/* utf8: one character at a time, strictly (no overlong forms, no surrogates, nothing above
 * U+10FFFF), with "unfinished" told apart from "wrong".
 *
 * Source: the table of well-formed byte sequences in the Unicode standard, section 3.9.
 *
 * Threads: no shared state.
 */
#ifndef MOE_FRONTEND_UTF8_H
#define MOE_FRONTEND_UTF8_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The character that begins at text[0]; n bytes may be read.
 * Returns its length (1 to 4) and sets *code_point; 0 if the n bytes are the beginning of a
 * character that needs more; -1 if no further bytes could make them one. */
static inline int
utf8_decode(const char *text, size_t n, uint32_t *code_point)
{
    if (n == 0) return 0;
    const unsigned char *p = (const unsigned char *)text;
    const unsigned char lead = p[0];
    if (lead < 0x80) {
        *code_point = lead;
        return 1;
    }
    if (lead < 0xc2 || lead > 0xf4) return -1;
    const int len = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    /* Only the second byte's range depends on the lead: that is where overlong forms, surrogates
     * and values above U+10FFFF are told. */
    unsigned char low = 0x80, high = 0xbf;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
    uint32_t value = lead & (0x7fu >> len);
    for (int i = 1; i < len; i++) {
        if ((size_t)i >= n) return 0;
        if (p[i] < low || p[i] > high) return -1;
        value = value << 6 | (p[i] & 0x3fu);
        low = 0x80;
        high = 0xbf;
    }
    *code_point = value;
    return len;
}

/* Write the character's bytes and return how many; code_point must be one that utf8_decode gives.
 */
static inline int
utf8_encode(uint32_t code_point, unsigned char out[4])
{
    if (code_point < 0x80) {
        out[0] = (unsigned char)code_point;
        return 1;
    }
    const int len = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    for (int i = len - 1; i > 0; i--) {
        out[i] = (unsigned char)(0x80u | (code_point & 0x3fu));
        code_point >>= 6;
    }
    out[0] = (unsigned char)((0xf00u >> len & 0xffu) | code_point);
    return len;
}

/* Offset of the first byte that is not part of a valid character; len if all are. */
static inline size_t
utf8_valid_len(const char *text, size_t len)
{
    size_t at = 0;
    while (at < len) {
        uint64_t eight; /* most texts are mostly ASCII */
        while (len - at >= sizeof eight) {
            memcpy(&eight, text + at, sizeof eight);
            if ((eight & 0x8080808080808080u) != 0) break;
            at += sizeof eight;
        }
        if (at == len) break;
        uint32_t code_point;
        const int n = utf8_decode(text + at, len - at, &code_point);
        if (n <= 0) break;
        at += (size_t)n;
    }
    return at;
}

#endif
