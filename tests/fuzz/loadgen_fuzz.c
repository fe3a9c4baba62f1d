/* loadgen_fuzz: bytes that a server or a user's file can feed to the load generator.
 *
 * The first byte picks the reader: an event stream (cut at places that the bytes themselves name,
 * its events read as completions chunks), a data set of one of the kinds with a file, or a server's
 * metrics.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/strbuf.h"
#include "loadgen/dataset.h"
#include "loadgen/openai.h"
#include "loadgen/scrape.h"
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

static void
read_metrics(const char *bytes, size_t len)
{
    scrape_result r = {0};
    for (size_t sample = 0; sample < 2; sample++) {
        if (scrape_parse(bytes, len, sample, &r)) abort();
    }
    r.sample_count = 2;
    scrape_halve(&r);
    scrape_result_fini(&r);
}

static void
read_dataset(dataset_kind kind, unsigned bits, const char *bytes, size_t len)
{
    const dataset_config config = {
        .kind = kind,
        .count = 8,
        .shuffle = bits & 1,
        .output_len = kind == DATASET_CUSTOM ? 16 : 0,
        .count_tokens = count_bytes,
        .vocab_first = 3,
        .vocab_end = 9,
        .speed = 1,
        .token_max = 4096,
        .skew = DATASET_SKEW_ZIPF,
        .skew_alpha = 1,
    };
    dataset set;
    errbuf eb;
    if (dataset_parse(&config, "fuzz", bytes, len, &set, &eb)) return;
    if (set.count != config.count) abort();
    for (size_t i = 1; i < set.count; i++) {
        if (set.timed && set.prompts[i].arrival_ns < set.prompts[i - 1].arrival_ns) abort();
        if (set.prompts[i].turn > 0 && set.prompts[i].turn != set.prompts[i - 1].turn + 1) abort();
    }
    dataset_fini(&set);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    const char *text = (const char *)data + 1;
    static const dataset_kind kinds[] = {DATASET_CUSTOM, DATASET_SHAREGPT, DATASET_MULTI_TURN,
                                         DATASET_EXPERT_SKEW, DATASET_TRACE};
    const unsigned reader = data[0] % 8;
    if (reader == 0) {
        read_stream(text, size - 1);
    } else if (reader <= 5) {
        read_dataset(kinds[reader - 1], data[0] >> 3, text, size - 1);
    } else {
        read_metrics(text, size - 1);
    }
    char line[80];
    openai_error_text(text, size - 1, line, sizeof line);
    return 0;
}
