/* strbuf: a growing string with a cap, for text whose length is not known beforehand.
 *
 * A failed append (out of memory, or past the cap) sets `failed` and appends nothing more; the
 * caller checks once, at the end.  The text is always NUL-terminated.
 *
 * Threads: one at a time.
 */
#ifndef MOE_COMMON_STRBUF_H
#define MOE_COMMON_STRBUF_H

#include <stdbool.h>
#include <stddef.h>

typedef struct strbuf {
    char *text; /* owned; NULL until the first append */
    size_t len; /* bytes, without the NUL */
    size_t capacity;
    size_t max; /* len never exceeds this */
    bool failed;
} strbuf;

void strbuf_init(strbuf *sb, size_t max);
void strbuf_fini(strbuf *sb);
/* Empty it, keep the memory, clear `failed`. */
void strbuf_reset(strbuf *sb);

void strbuf_append(strbuf *sb, const char *bytes, size_t n);
void strbuf_puts(strbuf *sb, const char *text);
void strbuf_printf(strbuf *sb, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Append bytes as a quoted JSON string: quotes, backslashes and control characters escaped, UTF-8
 * as it is. */
void strbuf_json_string(strbuf *sb, const char *bytes, size_t n);

/* The text; "" when nothing was appended.  Valid until the next call. */
const char *strbuf_text(const strbuf *sb);

#endif
