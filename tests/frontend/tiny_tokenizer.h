/* tiny_tokenizer: a small tokenizer written out in both formats, for tests that need one they can
 * break on purpose.
 *
 * Ids: 0 <unk>, 1 <s>, 2 </s>, 3 .. 258 the bytes, then the pieces in the order given.
 */
#ifndef MOE_TESTS_FRONTEND_TINY_TOKENIZER_H
#define MOE_TESTS_FRONTEND_TINY_TOKENIZER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "common/strbuf.h"

#define TINY_FIRST_PIECE 259u

#define TINY_NORMALIZER                                                                            \
    "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\u2581\"},"       \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\u2581\"}]}"
#define TINY_DECODER                                                                               \
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"          \
    "\"\u2581\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"              \
    "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}"
#define TINY_ADDED                                                                                 \
    "{\"id\":0,\"content\":\"<unk>\",\"special\":true},"                                           \
    "{\"id\":1,\"content\":\"<s>\",\"special\":true},"                                             \
    "{\"id\":2,\"content\":\"</s>\",\"special\":true}"

/* The parts of a tokenizer.json; NULL takes the usual. */
typedef struct tiny_json {
    const char *normalizer;
    const char *decoder;
    const char *added;  /* members of added_tokens */
    const char *model;  /* members of model before vocab, e.g. "\"type\":\"BPE\"," */
    const char *vocab;  /* members of vocab after the bytes, e.g. ",\"a\":259" */
    const char *merges; /* members of merges */
    const char *more;   /* members of the root, e.g. ",\"pre_tokenizer\":null" */
} tiny_json;

static inline const char *
tiny_part(const char *given, const char *usual)
{
    return given ? given : usual;
}

static inline void
tiny_write_json(strbuf *out, const tiny_json *t)
{
    strbuf_printf(out, "{\"added_tokens\":[%s],\"normalizer\":%s,\"decoder\":%s",
                  tiny_part(t->added, TINY_ADDED), tiny_part(t->normalizer, TINY_NORMALIZER),
                  tiny_part(t->decoder, TINY_DECODER));
    strbuf_printf(out, ",\"model\":{%s\"vocab\":{\"<unk>\":0,\"<s>\":1,\"</s>\":2",
                  tiny_part(t->model, "\"type\":\"BPE\",\"byte_fallback\":true,"));
    for (unsigned byte = 0; byte < 256; byte++) {
        strbuf_printf(out, ",\"<0x%02X>\":%u", byte, byte + 3);
    }
    strbuf_printf(out, "%s},\"merges\":[%s]}%s}", tiny_part(t->vocab, ""), tiny_part(t->merges, ""),
                  tiny_part(t->more, ""));
}

static inline void
tiny_put(strbuf *out, unsigned byte)
{
    const char c = (char)byte;
    strbuf_append(out, &c, 1);
}

/* One SentencePiece message; all lengths are below 128, so that each is one byte. */
static inline void
tiny_write_piece(strbuf *out, const char *text, float score, unsigned type)
{
    const size_t len = strlen(text);
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    tiny_put(out, 0x0a);
    tiny_put(out, (unsigned)len + 9);
    tiny_put(out, 0x0a);
    tiny_put(out, (unsigned)len);
    strbuf_append(out, text, len);
    tiny_put(out, 0x15);
    for (unsigned i = 0; i < 4; i++) {
        tiny_put(out, bits >> 8 * i & 0xff);
    }
    tiny_put(out, 0x18);
    tiny_put(out, type);
}

/* Special pieces and bytes; the caller's pieces follow, then tiny_write_specs(). */
static inline void
tiny_write_model_head(strbuf *out)
{
    tiny_write_piece(out, "<unk>", 0, 2);
    tiny_write_piece(out, "<s>", 0, 3);
    tiny_write_piece(out, "</s>", 0, 3);
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", byte);
        tiny_write_piece(out, text, 0, 6);
    }
}

/* trainer_spec {model_type, byte_fallback}, normalizer_spec {remove_extra_whitespaces}. */
static inline void
tiny_write_specs(strbuf *out, unsigned model_type, bool byte_fallback, bool remove_extra)
{
    const unsigned bytes[] = {0x12,          5,    0x18, model_type, 0x98,        0x02,
                              byte_fallback, 0x1a, 2,    0x20,       remove_extra};
    for (size_t i = 0; i < sizeof bytes / sizeof bytes[0]; i++) {
        tiny_put(out, bytes[i]);
    }
}

#endif
