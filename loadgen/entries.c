#include "loadgen/entries.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/rng.h"

static bool
is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static moe_err
add(entries *list, const char *text, size_t len, size_t number, errbuf *eb)
{
    while (len > 0 && is_space(*text)) {
        text++;
        len--;
    }
    while (len > 0 && is_space(text[len - 1]))
        len--;
    if (list->count == ENTRIES_MAX)
        return err_set(eb, MOE_ERANGE, "more than %u entries", ENTRIES_MAX);
    if (list->count == list->capacity) {
        const size_t capacity = list->capacity == 0 ? 256 : 2 * list->capacity;
        entry *grown = realloc(list->at, capacity * sizeof *grown);
        if (grown == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
        list->at = grown;
        list->capacity = capacity;
    }
    list->at[list->count++] = (entry){.text = text, .len = len, .number = number};
    return MOE_OK;
}

static bool
is_blank(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (!is_space(text[i])) return false;
    }
    return true;
}

moe_err
entries_from_lines(const char *text, size_t len, entries *out, errbuf *eb)
{
    *out = (entries){0};
    const char *at = text, *const end = text + len;
    for (size_t number = 1; at < end; number++) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const size_t line_len = (size_t)((newline ? newline : end) - at);
        if (!is_blank(at, line_len)) {
            const moe_err err = add(out, at, line_len, number, eb);
            if (err) {
                entries_fini(out);
                return err;
            }
        }
        at = newline ? newline + 1 : end;
    }
    return MOE_OK;
}

/* The end of the string whose first quote is at text[i]: the index of its last quote, or len. */
static size_t
skip_string(const char *text, size_t len, size_t i)
{
    for (i++; i < len && text[i] != '"'; i++) {
        if (text[i] == '\\') i++;
    }
    return i < len ? i : len;
}

moe_err
entries_from_array(const char *text, size_t len, entries *out, errbuf *eb)
{
    *out = (entries){0};
    size_t i = 0, depth = 0, number = 0;
    while (i < len && is_space(text[i]))
        i++;
    if (i == len || text[i] != '[') return err_set(eb, MOE_EINVAL, "not a JSON array");

    moe_err err = MOE_OK;
    size_t start = ++i;
    for (; i < len; i++) {
        const char c = text[i];
        if (c == '"') {
            i = skip_string(text, len, i);
        } else if (c == '[' || c == '{') {
            depth++;
        } else if (depth > 0 && (c == ']' || c == '}')) {
            depth--;
        } else if (depth == 0 && (c == ',' || c == ']')) {
            const bool empty_array = c == ']' && number == 0 && is_blank(text + start, i - start);
            if (!empty_array) err = add(out, text + start, i - start, ++number, eb);
            if (err) goto fail;
            start = i + 1;
            if (c == ']') break;
        }
    }
    if (i >= len)
        err = err_set(eb, MOE_EINVAL, "the JSON array does not end");
    else if (!is_blank(text + i + 1, len - i - 1))
        err = err_set(eb, MOE_EINVAL, "more text after the JSON array, at offset %zu", i + 1);
    if (!err) return MOE_OK;
fail:
    entries_fini(out);
    return err;
}

void
entries_shuffle(entries *list, uint64_t seed)
{
    rng r;
    rng_init(&r, seed, RNG_SHUFFLE);
    for (size_t i = list->count; i > 1; i--) {
        const size_t j = (size_t)rng_below(&r, i);
        const entry swapped = list->at[i - 1];
        list->at[i - 1] = list->at[j];
        list->at[j] = swapped;
    }
}

void
entries_fini(entries *list)
{
    free(list->at);
    *list = (entries){0};
}
