#include "common/strbuf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 256

void
strbuf_init(strbuf *sb, size_t max)
{
    *sb = (strbuf){.max = max};
}

void
strbuf_fini(strbuf *sb)
{
    free(sb->text);
    *sb = (strbuf){.max = sb->max};
}

void
strbuf_reset(strbuf *sb)
{
    sb->len = 0;
    sb->failed = false;
    if (sb->text != NULL) sb->text[0] = '\0';
}

static bool
reserve(strbuf *sb, size_t extra)
{
    if (sb->failed) return false;
    if (extra > sb->max - sb->len) return sb->failed = true, false;
    const size_t need = sb->len + extra + 1;
    if (need <= sb->capacity) return true;

    size_t capacity = sb->capacity == 0 ? FIRST_CAPACITY : sb->capacity;
    while (capacity < need)
        capacity *= 2;
    char *text = realloc(sb->text, capacity);
    if (text == NULL) return sb->failed = true, false;
    sb->text = text;
    sb->capacity = capacity;
    return true;
}

void
strbuf_append(strbuf *sb, const char *bytes, size_t n)
{
    if (!reserve(sb, n)) return;
    if (n != 0) memcpy(sb->text + sb->len, bytes, n);
    sb->len += n;
    sb->text[sb->len] = '\0';
}

void
strbuf_puts(strbuf *sb, const char *text)
{
    strbuf_append(sb, text, strlen(text));
}

void
strbuf_printf(strbuf *sb, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    const int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0) {
        sb->failed = true;
        return;
    }
    if (!reserve(sb, (size_t)n)) return;
    va_start(ap, fmt);
    vsnprintf(sb->text + sb->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    sb->len += (size_t)n;
}

void
strbuf_json_string(strbuf *sb, const char *bytes, size_t n)
{
    strbuf_puts(sb, "\"");
    size_t start = 0;
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)bytes[i];
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        strbuf_append(sb, bytes + start, i - start);
        start = i + 1;
        switch (c) {
        case '"': strbuf_puts(sb, "\\\""); break;
        case '\\': strbuf_puts(sb, "\\\\"); break;
        case '\n': strbuf_puts(sb, "\\n"); break;
        case '\r': strbuf_puts(sb, "\\r"); break;
        case '\t': strbuf_puts(sb, "\\t"); break;
        default: strbuf_printf(sb, "\\u%04x", c);
        }
    }
    strbuf_append(sb, bytes + start, n - start);
    strbuf_puts(sb, "\"");
}

const char *
strbuf_text(const strbuf *sb)
{
    return sb->text == NULL ? "" : sb->text;
}
