/* tokenizer_bench: how fast one thread encodes a text, and decodes it token by token.
 *
 * usage: tokenizer_bench MODEL_DIR TEXT_FILE...
 *
 * A text is cut into windows of 1 KB, 100 KB and 1 MB (at characters), as far as it goes.  A pass
 * encodes all windows of one size one after the other; the figures are of the fastest pass:
 *   encode  MB of text per second, and ns per id
 *   first   the same for the very first pass of a tokenizer just loaded, which knows no words yet
 *   decode  million tokens per second through detok_push(), the output reset after each
 * So a window is never encoded twice in a row, and what a pass gains from the passes before it is
 * what a server gains from the requests before. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/file.h"
#include "frontend/detok.h"
#include "frontend/tokenizer.h"

#define TEXT_MAX ((size_t)64 << 20)
#define PASS_NS_MIN (NS_PER_S / 2) /* passes go on for this long */
#define PASSES_MIN 3

typedef struct result {
    uint64_t encode_ns, decode_ns; /* of one pass, or the fastest */
    uint64_t first_ns;             /* encode_ns of the first */
    size_t bytes, ids;
} result;

static bool
is_inside_character(char c)
{
    return ((unsigned char)c & 0xc0) == 0x80;
}

/* One window: adds what it took to *pass. */
static moe_err
run_window(const tokenizer *tok, const char *text, size_t len, strbuf *out, result *pass,
           errbuf *eb)
{
    uint32_t *ids = NULL;
    size_t count = 0;
    uint64_t start = clock_now_ns();
    moe_err err = tokenizer_encode(tok, text, len, 0, &ids, &count, eb);
    pass->encode_ns += clock_now_ns() - start;
    pass->bytes += len;
    pass->ids += count;

    detok d;
    detok_init(&d, tok, true);
    start = clock_now_ns();
    for (size_t i = 0; i < count && !err; i++) {
        strbuf_reset(out);
        err = detok_push(&d, ids[i], out);
    }
    pass->decode_ns += clock_now_ns() - start;
    free(ids);
    return err;
}

static moe_err
run_pass(const tokenizer *tok, const char *text, size_t len, size_t window, result *pass,
         errbuf *eb)
{
    strbuf out;
    moe_err err = MOE_OK;
    strbuf_init(&out, TEXT_MAX);
    *pass = (result){0};
    for (size_t from = 0; from + window <= len && !err;) {
        size_t n = window;
        while (from + n < len && is_inside_character(text[from + n])) {
            n++;
        }
        err = run_window(tok, text + from, n, &out, pass, eb);
        from += n;
    }
    strbuf_fini(&out);
    return err;
}

static moe_err
run_size(const tokenizer *tok, const char *text, size_t len, size_t window, result *best,
         errbuf *eb)
{
    const uint64_t end = clock_now_ns() + PASS_NS_MIN;
    for (int i = 0; i < PASSES_MIN || clock_now_ns() < end; i++) {
        result pass;
        const moe_err err = run_pass(tok, text, len, window, &pass, eb);
        if (err) return err;
        if (i == 0) *best = pass, best->first_ns = pass.encode_ns;
        if (pass.encode_ns < best->encode_ns) best->encode_ns = pass.encode_ns;
        if (pass.decode_ns < best->decode_ns) best->decode_ns = pass.decode_ns;
    }
    return MOE_OK;
}

static void
print_result(const char *path, size_t window, const result *best)
{
    const double bytes = (double)best->bytes, ids = (double)best->ids;
    printf("%s window_bytes=%zu bytes_per_id=%.2f encode_mb_per_s=%.2f encode_ns_per_id=%.1f "
           "first_mb_per_s=%.2f decode_mtok_per_s=%.2f\n",
           path, window, bytes / ids, bytes * 1e3 / (double)best->encode_ns,
           (double)best->encode_ns / ids, bytes * 1e3 / (double)best->first_ns,
           ids * 1e3 / (double)best->decode_ns);
    fflush(stdout);
}

static moe_err
run_file(const char *model_dir, const char *path, errbuf *eb)
{
    static const size_t windows[] = {(size_t)1 << 10, (size_t)100 << 10, (size_t)1 << 20};
    char *text = NULL;
    size_t len = 0;
    moe_err err = file_read(path, TEXT_MAX, &text, &len, eb);
    for (size_t i = 0; i < sizeof windows / sizeof windows[0] && !err; i++) {
        result best = {0};
        tokenizer *tok = NULL;
        if (windows[i] > len) break;
        err = tokenizer_load(&tok, model_dir, eb);
        if (!err) err = run_size(tok, text, len, windows[i], &best, eb);
        if (!err) print_result(path, windows[i], &best);
        tokenizer_free(tok);
    }
    free(text);
    return err;
}

int
main(int argc, char **argv)
{
    errbuf eb = {{0}};
    moe_err err = MOE_OK;
    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL_DIR TEXT_FILE...\n", argv[0]);
        return 2;
    }
    for (int i = 2; i < argc && !err; i++) {
        err = run_file(argv[1], argv[i], &eb);
    }
    if (err) fprintf(stderr, "%s: %s\n", moe_err_name(err), eb.text);
    return err != MOE_OK;
}
