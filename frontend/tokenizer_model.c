/* tokenizer.model: SentencePiece's ModelProto, read by hand because so few of its fields matter.
 *
 *   ModelProto      1 pieces (repeated)  2 trainer_spec  3 normalizer_spec  5 denormalizer_spec
 *   SentencePiece   1 piece  2 score (float)  3 type (1 when absent)
 *   TrainerSpec     3 model_type  24 treat_whitespace_as_suffix  35 byte_fallback  41 bos_id  42
 * eos_id NormalizerSpec  2 precompiled_charsmap  3 add_dummy_prefix  4 remove_extra_whitespaces 5
 * escape_whitespaces  6 normalization_rule_tsv
 *
 * Every read is bounded by the message it is in.  SentencePiece merges any two neighbours whose
 * joined spelling is a piece, best score first; listing those pairs beforehand gives the tables
 * that tokenizer.json spells out. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/tokenizer_impl.h"
#include "frontend/utf8.h"

typedef struct reader {
    const unsigned char *at;
    const unsigned char *end;
} reader;

typedef struct field {
    uint32_t number;
    uint32_t wire; /* 0 varint, 1 eight bytes, 2 a stretch of bytes, 5 four bytes */
    uint64_t value;
    reader bytes;
} field;

static bool
read_varint(reader *r, uint64_t *out)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (r->at == r->end) return false;
        const unsigned char byte = *r->at++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *out = value;
            return true;
        }
    }
    return false;
}

static bool
read_fixed(reader *r, size_t n, uint64_t *out)
{
    if ((size_t)(r->end - r->at) < n) return false;
    *out = 0;
    for (size_t i = 0; i < n; i++) {
        *out |= (uint64_t)*r->at++ << 8 * i;
    }
    return true;
}

static bool
read_bytes(reader *r, reader *out)
{
    uint64_t n;
    if (!read_varint(r, &n) || n > (size_t)(r->end - r->at)) return false;
    *out = (reader){r->at, r->at + n};
    r->at += n;
    return true;
}

/* false if the next field is cut or malformed. */
static bool
read_field(reader *r, field *f)
{
    uint64_t key;
    if (!read_varint(r, &key) || key >> 3 == 0 || key >> 3 > 0x1fffffff) return false;
    *f = (field){.number = (uint32_t)(key >> 3), .wire = (uint32_t)(key & 7)};
    switch (f->wire) {
    case 0: return read_varint(r, &f->value);
    case 1: return read_fixed(r, 8, &f->value);
    case 2: return read_bytes(r, &f->bytes);
    case 5: return read_fixed(r, 4, &f->value);
    default: return false; /* groups are not used by this format */
    }
}

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };
enum { MODEL_UNIGRAM = 1, MODEL_BPE = 2 };
enum { WIRE_VARINT = 0, WIRE_BYTES = 2, WIRE_FLOAT = 5 };

typedef struct piece {
    const char *text;
    size_t len;
    float score;
    uint64_t type;
} piece;

typedef struct model {
    piece *pieces; /* [piece_count], spellings borrowed from the file */
    size_t piece_count;
    size_t piece_capacity;
    size_t text_bytes;
    uint64_t model_type;
    uint64_t bos_id;
    uint64_t eos_id;
    bool byte_fallback;
    bool whitespace_as_suffix;
    bool has_charsmap;
    bool add_dummy_prefix;
    bool remove_extra_whitespaces;
    bool escape_whitespaces;
} model;

static moe_err
malformed(errbuf *eb, const char *message)
{
    return err_set(eb, MOE_EINVAL, "%s: cut short or malformed", message);
}

static moe_err
add_piece(model *m, piece p, errbuf *eb)
{
    if (m->piece_count == TOKENIZER_VOCAB_MAX)
        return err_set(eb, MOE_ERANGE, "more than %u pieces", TOKENIZER_VOCAB_MAX);
    if (m->piece_count == m->piece_capacity) {
        const size_t capacity = m->piece_capacity ? m->piece_capacity * 2 : 4096;
        piece *pieces = realloc(m->pieces, capacity * sizeof pieces[0]);
        if (pieces == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
        m->pieces = pieces;
        m->piece_capacity = capacity;
    }
    m->pieces[m->piece_count++] = p;
    m->text_bytes += p.len;
    return MOE_OK;
}

static moe_err
read_piece(model *m, reader r, errbuf *eb)
{
    piece p = {.type = TYPE_NORMAL};
    field f;
    while (r.at < r.end) {
        if (!read_field(&r, &f))
            return err_set(eb, MOE_EINVAL, "piece %zu: cut short or malformed", m->piece_count);
        if (f.number == 1 && f.wire == WIRE_BYTES) {
            p.text = (const char *)f.bytes.at;
            p.len = (size_t)(f.bytes.end - f.bytes.at);
        } else if (f.number == 2 && f.wire == WIRE_FLOAT) {
            const uint32_t bits = (uint32_t)f.value;
            memcpy(&p.score, &bits, sizeof bits);
        } else if (f.number == 3 && f.wire == WIRE_VARINT) {
            p.type = f.value;
        }
    }
    if (isnan(p.score))
        return err_set(eb, MOE_EINVAL, "piece %zu: the score is not a number", m->piece_count);
    return add_piece(m, p, eb);
}

static moe_err
read_trainer(model *m, reader r, errbuf *eb)
{
    field f;
    while (r.at < r.end) {
        if (!read_field(&r, &f)) return malformed(eb, "trainer_spec");
        if (f.wire != WIRE_VARINT) continue;
        switch (f.number) {
        case 3: m->model_type = f.value; break;
        case 24: m->whitespace_as_suffix = f.value != 0; break;
        case 35: m->byte_fallback = f.value != 0; break;
        case 41: m->bos_id = f.value; break;
        case 42: m->eos_id = f.value; break;
        default: break;
        }
    }
    return MOE_OK;
}

static moe_err
read_normalizer(model *m, reader r, errbuf *eb)
{
    field f;
    while (r.at < r.end) {
        if (!read_field(&r, &f)) return malformed(eb, "normalizer_spec");
        switch (f.number) {
        case 2:
        case 6: m->has_charsmap |= f.bytes.at != f.bytes.end; break;
        case 3: m->add_dummy_prefix = f.value != 0; break;
        case 4: m->remove_extra_whitespaces = f.value != 0; break;
        case 5: m->escape_whitespaces = f.value != 0; break;
        default: break;
        }
    }
    return MOE_OK;
}

static moe_err
read_denormalizer(model *m, reader r, errbuf *eb)
{
    field f;
    while (r.at < r.end) {
        if (!read_field(&r, &f)) return malformed(eb, "denormalizer_spec");
        if (f.number == 2 || f.number == 6) m->has_charsmap |= f.bytes.at != f.bytes.end;
    }
    return MOE_OK;
}

static moe_err
read_model(model *m, reader r, errbuf *eb)
{
    field f;
    moe_err err = MOE_OK;
    while (!err && r.at < r.end) {
        if (!read_field(&r, &f)) return malformed(eb, "the file");
        if (f.wire != WIRE_BYTES) continue;
        switch (f.number) {
        case 1: err = read_piece(m, f.bytes, eb); break;
        case 2: err = read_trainer(m, f.bytes, eb); break;
        case 3: err = read_normalizer(m, f.bytes, eb); break;
        case 5: err = read_denormalizer(m, f.bytes, eb); break;
        default: break;
        }
    }
    return err;
}

static moe_err
check_model(const model *m, errbuf *eb)
{
    const char *what = NULL;
    if (m->piece_count == 0) return err_set(eb, MOE_EINVAL, "no pieces");
    if (m->model_type != MODEL_BPE) what = "model_type other than BPE";
    if (!m->byte_fallback) what = "byte_fallback false";
    if (m->whitespace_as_suffix) what = "treat_whitespace_as_suffix";
    if (m->has_charsmap) what = "a normalization map";
    if (m->remove_extra_whitespaces) what = "remove_extra_whitespaces";
    return what ? err_set(eb, MOE_EUNSUPPORTED, "%s is not supported", what) : MOE_OK;
}

static moe_err
add_token(tokenizer *tok, const model *m, uint32_t id, errbuf *eb)
{
    const piece *p = &m->pieces[id];
    token_kind kind;
    switch (p->type) {
    case TYPE_NORMAL: kind = TOKEN_PIECE; break;
    case TYPE_UNKNOWN:
    case TYPE_CONTROL: kind = TOKEN_SPECIAL; break;
    case TYPE_BYTE: kind = TOKEN_BYTE; break;
    case TYPE_USER_DEFINED:
    case TYPE_UNUSED:
        return err_set(eb, MOE_EUNSUPPORTED, "piece %u is %s, which is not supported", id,
                       p->type == TYPE_UNUSED ? "unused" : "user-defined");
    default:
        return err_set(eb, MOE_EINVAL, "piece %u has an unknown type %llu", id,
                       (unsigned long long)p->type);
    }
    return tokenizer_build_token(tok, id, kind, p->text, p->len, eb);
}

static int
compare_scores(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return x > y ? -1 : x < y;
}

/* Distinct scores, highest first, into *out (free()); a piece's rank is its score's place there. */
static moe_err
sort_scores(const model *m, float **out, size_t *count, errbuf *eb)
{
    float *scores = malloc(m->piece_count * sizeof scores[0]);
    if (scores == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    for (size_t i = 0; i < m->piece_count; i++) {
        scores[i] = m->pieces[i].score;
    }
    qsort(scores, m->piece_count, sizeof scores[0], compare_scores);
    *count = 0;
    for (size_t i = 0; i < m->piece_count; i++) {
        if (i == 0 || scores[i] != scores[*count - 1]) scores[(*count)++] = scores[i];
    }
    *out = scores;
    return MOE_OK;
}

static uint32_t
find_piece(const tokenizer *tok, const char *text, size_t len)
{
    const uint32_t id = tokenizer_token_id(tok, text, len);
    return id != TOKENIZER_ID_NONE && tok->tokens[id].kind == TOKEN_PIECE ? id : TOKENIZER_ID_NONE;
}

/* Every way to cut the piece into two pieces is a merge.  Adds their number to *count, and the
 * merges themselves once the tokenizer has room for them. */
static moe_err
add_merges_of(tokenizer *tok, const piece *p, uint32_t id, uint32_t rank, size_t *count, errbuf *eb)
{
    for (size_t at = 0; at < p->len;) {
        uint32_t code_point;
        const int n = utf8_decode(p->text + at, p->len - at, &code_point);
        if (n <= 0) return err_set(eb, MOE_EINVAL, "piece %u is not UTF-8", id);
        /* Such a character would have to merge before it becomes bytes: no merge table says that.
         */
        if (find_piece(tok, p->text + at, (size_t)n) == TOKENIZER_ID_NONE)
            return err_set(eb, MOE_EUNSUPPORTED,
                           "piece %u: its character U+%04X is not a piece of its own", id,
                           code_point);
        at += (size_t)n;
        if (at == p->len) break;
        const uint32_t left = find_piece(tok, p->text, at);
        const uint32_t right = find_piece(tok, p->text + at, p->len - at);
        if (left == TOKENIZER_ID_NONE || right == TOKENIZER_ID_NONE) continue;
        ++*count;
        if (tok->merges == NULL) continue;
        const moe_err err = tokenizer_build_merge(tok, left, right, rank, id, eb);
        if (err) return err;
    }
    return MOE_OK;
}

static moe_err
visit_merges(tokenizer *tok, const model *m, const float *scores, size_t score_count, size_t *count,
             errbuf *eb)
{
    *count = 0;
    for (uint32_t id = 0; id < tok->token_count; id++) {
        const piece *p = &m->pieces[id];
        if (tok->tokens[id].kind != TOKEN_PIECE) continue;
        const float *score =
            bsearch(&p->score, scores, score_count, sizeof scores[0], compare_scores);
        const moe_err err = add_merges_of(tok, p, id, (uint32_t)(score - scores), count, eb);
        if (err) return err;
    }
    return MOE_OK;
}

static moe_err
add_merges(tokenizer *tok, const model *m, errbuf *eb)
{
    float *scores = NULL;
    size_t score_count = 0, count = 0;
    moe_err err = sort_scores(m, &scores, &score_count, eb);
    if (err) return err;
    err = visit_merges(tok, m, scores, score_count, &count, eb);
    if (!err) err = tokenizer_build_merges(tok, count, eb);
    if (!err) err = visit_merges(tok, m, scores, score_count, &count, eb);
    free(scores);
    return err;
}

static moe_err
build(tokenizer **out, const model *m, errbuf *eb)
{
    moe_err err = tokenizer_build_begin(out, m->piece_count, m->text_bytes, eb);
    if (err) return err;
    tokenizer *tok = *out;
    for (uint32_t id = 0; id < tok->token_count && !err; id++) {
        err = add_token(tok, m, id, eb);
    }
    if (!err) err = tokenizer_build_index(tok, eb);
    if (!err) err = add_merges(tok, m, eb);
    tok->add_prefix = m->add_dummy_prefix;
    tok->strip_prefix = m->add_dummy_prefix;
    tok->escape_spaces = m->escape_whitespaces;
    /* -1 (here 2^64 - 1) says that there is none. */
    if (m->bos_id < tok->token_count) tok->bos_id = (uint32_t)m->bos_id;
    if (m->eos_id < tok->token_count) tok->eos_id = (uint32_t)m->eos_id;
    return err ? err : tokenizer_build_finish(tok, eb);
}

moe_err
tokenizer_load_model(tokenizer **out, const char *bytes, size_t len, errbuf *eb)
{
    const unsigned char *p = (const unsigned char *)bytes;
    /* The values that SentencePiece gives to absent fields. */
    model m = {.model_type = MODEL_UNIGRAM,
               .bos_id = 1,
               .eos_id = 2,
               .add_dummy_prefix = true,
               .remove_extra_whitespaces = true,
               .escape_whitespaces = true};
    *out = NULL;
    moe_err err = read_model(&m, (reader){p, p + len}, eb);
    if (!err) err = check_model(&m, eb);
    if (!err) err = build(out, &m, eb);
    free(m.pieces);
    if (err) {
        tokenizer_free(*out);
        *out = NULL;
    }
    return err;
}
