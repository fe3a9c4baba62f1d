/* loadgen_fuzz: bytes that a server or a user's file can feed to the load generator.
 *
 * The first byte picks the reader: an event stream (cut at places that the bytes themselves name,
 * its events read as completions chunks), a custom data set, or a ShareGPT one.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/strbuf.h"
#include "loadgen/dataset.h"
#include "loadgen/openai.h"
#include "loadgen/sse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
on_event(void *ctx, const char *data, size_t len)
{
    openai_event_read(data, len, 1, ctx);
}

/* The same record must come out whether the stream arrives whole or in pieces. */
static void
read_stream(const char *bytes, size_t len)
{
    request_record whole, pieces;
    sse_parser p;
    record_init(&whole);
    record_init(&pieces);
    sse_init(&p, 4096);
    const moe_err first = sse_feed(&p, bytes, len, on_event, &whole);
    sse_reset(&p);
    moe_err second = MOE_OK;
    for (size_t i = 0; i < len;) {
        size_t n = 1 + (unsigned char)bytes[i] % 7;
        if (n > len - i) n = len - i;
        second = sse_feed(&p, bytes + i, n, on_event, &pieces);
        i += n;
    }
    if (first != second || whole.chunk_count != pieces.chunk_count ||
        strcmp(strbuf_text(&whole.text), strbuf_text(&pieces.text)) != 0)
        abort();
    record_finish(&whole, 2);
    record_fini(&whole);
    record_fini(&pieces);
    sse_fini(&p);
}

static moe_err
count_bytes(void *ctx, const char *text, int64_t *count, errbuf *eb)
{
    (void)ctx;
    (void)eb;
    *count = (int64_t)strlen(text);
    return MOE_OK;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    const char *text = (const char *)data + 1;
    if (data[0] % 3 == 0) {
        read_stream(text, size - 1);
        return 0;
    }
    const dataset_config config = {
        .kind = data[0] % 3 == 1 ? DATASET_CUSTOM : DATASET_SHAREGPT,
        .count = 8,
        .shuffle = data[0] & 4,
        .output_len = data[0] % 3 == 1 ? 16 : 0,
        .count_tokens = count_bytes,
    };
    dataset set;
    errbuf eb;
    if (dataset_parse(&config, "fuzz", text, size - 1, &set, &eb) == MOE_OK) {
        if (set.count != config.count) abort();
        dataset_fini(&set);
    }
    char line[80];
    openai_error_text(text, size - 1, line, sizeof line);
    return 0;
}
