#include "frontend/stop_matcher.h"

#include <string.h>

void
stop_matcher_init(stop_matcher *m, char *const *stops, const size_t *lens, uint32_t count,
                  bool include)
{
    *m = (stop_matcher){
        .stops = stops, .lens = lens, .count = count, .include = include, .matched = -1};
    strbuf_init(&m->held, SIZE_MAX / 2);
}

void
stop_matcher_fini(stop_matcher *m)
{
    strbuf_fini(&m->held);
}

/* Where in held does a stop string end first?  Sets matched and *start; 0 if there is none. */
static size_t
first_end(stop_matcher *m, size_t *start)
{
    size_t best = 0;
    for (uint32_t i = 0; i < m->count; i++) {
        const char *at = memmem(m->held.text, m->held.len, m->stops[i], m->lens[i]);
        if (at == NULL) continue;
        const size_t begin = (size_t)(at - m->held.text), end = begin + m->lens[i];
        if (best != 0 && (end > best || (end == best && begin >= *start))) continue;
        best = end;
        *start = begin;
        m->matched = (int)i;
    }
    return best;
}

/* How many of held's last bytes could be the beginning of a stop string? */
static size_t
undecided(const stop_matcher *m)
{
    size_t longest = 0;
    for (uint32_t i = 0; i < m->count; i++) {
        size_t n = m->lens[i] - 1 < m->held.len ? m->lens[i] - 1 : m->held.len;
        for (; n > longest; n--) {
            if (memcmp(m->held.text + m->held.len - n, m->stops[i], n) == 0) longest = n;
        }
    }
    return longest;
}

bool
stop_matcher_push(stop_matcher *m, const char *text, size_t len, strbuf *out)
{
    if (m->count == 0) {
        strbuf_append(out, text, len);
        return false;
    }
    strbuf_append(&m->held, text, len);
    if (m->held.len == 0) return false;

    size_t start;
    const size_t end = first_end(m, &start);
    if (end != 0) {
        strbuf_append(out, m->held.text, m->include ? end : start);
        strbuf_reset(&m->held);
        return true;
    }
    const size_t keep = undecided(m), sure = m->held.len - keep;
    strbuf_append(out, m->held.text, sure);
    memmove(m->held.text, m->held.text + sure, keep + 1); /* the NUL too */
    m->held.len = keep;
    return false;
}

void
stop_matcher_flush(stop_matcher *m, strbuf *out)
{
    strbuf_append(out, strbuf_text(&m->held), m->held.len);
    strbuf_reset(&m->held);
}
