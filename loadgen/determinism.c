#include "loadgen/determinism.h"

#include <string.h>

static size_t
common_bytes(const strbuf *a, const strbuf *b)
{
    const char *x = strbuf_text(a), *y = strbuf_text(b);
    size_t n = 0;
    while (n < a->len && n < b->len && x[n] == y[n])
        n++;
    return n;
}

static bool
are_equal(const request_record *a, const request_record *b)
{
    return a->output_tokens == b->output_tokens && a->text.len == b->text.len &&
           memcmp(strbuf_text(&a->text), strbuf_text(&b->text), a->text.len) == 0 &&
           strcmp(a->finish_reason, b->finish_reason) == 0;
}

determinism
determinism_compare(const request_record *a, const request_record *b, size_t count)
{
    determinism d = {0};
    for (size_t i = 0; i < count; i++) {
        if (!a[i].completed || !b[i].completed) {
            d.skipped++;
            continue;
        }
        d.compared++;
        if (are_equal(&a[i], &b[i])) {
            d.equal++;
            continue;
        }
        if (d.different++ == 0) {
            d.first_different = i;
            d.first_byte = common_bytes(&a[i].text, &b[i].text);
        }
    }
    return d;
}
