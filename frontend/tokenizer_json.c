/* tokenizer.json: Hugging Face tokenizers' format, as far as it describes SentencePiece BPE with
 * byte fallback.
 *
 * `truncation`, `padding` and `post_processor` are not read: they say what to do around an
 * encoding, which is the caller's choice here (TOKENIZER_ADD_BOS). */
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "frontend/tokenizer_impl.h"

static const cJSON *
member(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNull(item) ? NULL : item;
}

static bool
is_string(const cJSON *item, const char *text)
{
    return cJSON_IsString(item) && strcmp(item->valuestring, text) == 0;
}

/* {"type": X, ...}: X, for messages and comparisons; "" if it is not that. */
static const char *
type_of(const cJSON *item)
{
    const cJSON *type = member(item, "type");
    return cJSON_IsString(type) ? type->valuestring : "";
}

/* {"pattern": {"String": from}, "content": to} */
static bool
is_replace(const cJSON *item, const char *from, const char *to)
{
    return strcmp(type_of(item), "Replace") == 0 &&
           is_string(member(member(item, "pattern"), "String"), from) &&
           is_string(member(item, "content"), to);
}

static moe_err
read_normalizer(tokenizer *tok, const cJSON *item, int depth, errbuf *eb)
{
    if (item == NULL) return MOE_OK;
    const cJSON *parts = member(item, "normalizers"), *part;
    if (strcmp(type_of(item), "Sequence") == 0 && cJSON_IsArray(parts) && depth == 0) {
        cJSON_ArrayForEach(part, parts)
        {
            const moe_err err = read_normalizer(tok, part, depth + 1, eb);
            if (err) return err;
        }
        return MOE_OK;
    }
    if (strcmp(type_of(item), "Prepend") == 0 && !tok->add_prefix &&
        is_string(member(item, "prepend"), TOKENIZER_SPACE))
        tok->add_prefix = true;
    else if (is_replace(item, " ", TOKENIZER_SPACE))
        tok->escape_spaces = true;
    else
        return err_set(eb, MOE_EUNSUPPORTED,
                       "normalizer \"%s\": only Prepend U+2581 and Replace \" \" with U+2581 are "
                       "supported",
                       type_of(item));
    return MOE_OK;
}

/* The decoder must be the inverse that detok implements. */
static moe_err
read_decoder(tokenizer *tok, const cJSON *item, errbuf *eb)
{
    if (strcmp(type_of(item), "Sequence") != 0)
        return err_set(eb, MOE_EUNSUPPORTED, "decoder \"%s\": only a Sequence is supported",
                       type_of(item));
    bool bytes = false, spaces = false;
    const cJSON *part;
    cJSON_ArrayForEach(part, member(item, "decoders"))
    {
        const char *type = type_of(part);
        if (is_replace(part, TOKENIZER_SPACE, " "))
            spaces = true;
        else if (strcmp(type, "ByteFallback") == 0)
            bytes = true;
        else if (strcmp(type, "Strip") == 0 && is_string(member(part, "content"), " ") &&
                 json_is_int(member(part, "start"), 1, 1) &&
                 json_is_int(member(part, "stop"), 0, 0))
            tok->strip_prefix = true;
        else if (strcmp(type, "Fuse") != 0)
            return err_set(eb, MOE_EUNSUPPORTED,
                           "decoder \"%s\": only Replace U+2581 with \" \", ByteFallback, Fuse and "
                           "Strip of one leading \" \" are supported",
                           type);
    }
    if (bytes && spaces) return MOE_OK;
    return err_set(eb, MOE_EUNSUPPORTED, "decoder without Replace or ByteFallback");
}

static bool
is_absent_or_empty(const cJSON *item)
{
    return item == NULL || is_string(item, "");
}

static moe_err
check_model(const cJSON *model, errbuf *eb)
{
    if (strcmp(type_of(model), "BPE") != 0)
        return err_set(eb, MOE_EUNSUPPORTED, "model.type \"%s\": only BPE is supported",
                       type_of(model));
    if (!cJSON_IsTrue(member(model, "byte_fallback")))
        return err_set(eb, MOE_EUNSUPPORTED, "model.byte_fallback must be true");
    if (cJSON_IsTrue(member(model, "ignore_merges")))
        return err_set(eb, MOE_EUNSUPPORTED, "model.ignore_merges is not supported");
    if (member(model, "dropout") != NULL)
        return err_set(eb, MOE_EUNSUPPORTED, "model.dropout is not supported");
    if (!is_absent_or_empty(member(model, "continuing_subword_prefix")) ||
        !is_absent_or_empty(member(model, "end_of_word_suffix")))
        return err_set(eb, MOE_EUNSUPPORTED,
                       "model.continuing_subword_prefix and end_of_word_suffix are not supported");
    if (!cJSON_IsObject(member(model, "vocab")))
        return err_set(eb, MOE_EINVAL, "model.vocab is missing or not an object");
    if (!cJSON_IsArray(member(model, "merges")))
        return err_set(eb, MOE_EINVAL, "model.merges is missing or not an array");
    return MOE_OK;
}

static moe_err
check_added(const cJSON *added, errbuf *eb)
{
    static const char *const refused[] = {"single_word", "lstrip", "rstrip", "normalized"};
    const cJSON *content = member(added, "content");
    if (!cJSON_IsString(content))
        return err_set(eb, MOE_EINVAL, "added_tokens: content must be a string");
    if (!json_is_int(member(added, "id"), 0, TOKENIZER_VOCAB_MAX - 1))
        return err_set(eb, MOE_EINVAL, "added_tokens \"%s\": id must be an integer from 0 to %u",
                       content->valuestring, TOKENIZER_VOCAB_MAX - 1);
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        if (cJSON_IsTrue(member(added, refused[i])))
            return err_set(eb, MOE_EUNSUPPORTED, "added_tokens \"%s\": %s is not supported",
                           content->valuestring, refused[i]);
    }
    return MOE_OK;
}

static uint32_t
id_of(const cJSON *added)
{
    return (uint32_t)member(added, "id")->valuedouble;
}

/* Number of tokens (the vocabulary, and added tokens beyond it) and bytes of their spellings. */
static moe_err
count_tokens(const cJSON *vocab, const cJSON *added_tokens, size_t *count, size_t *text_bytes,
             errbuf *eb)
{
    size_t vocab_count = 0, beyond = 0;
    const cJSON *item;
    *text_bytes = 0;
    cJSON_ArrayForEach(item, vocab)
    {
        if (!json_is_int(item, 0, TOKENIZER_VOCAB_MAX - 1))
            return err_set(eb, MOE_EINVAL, "model.vocab \"%s\": id must be an integer from 0 to %u",
                           item->string, TOKENIZER_VOCAB_MAX - 1);
        vocab_count++;
        *text_bytes += strlen(item->string);
    }
    cJSON_ArrayForEach(item, added_tokens)
    {
        const moe_err err = check_added(item, eb);
        if (err) return err;
        if (id_of(item) < vocab_count) continue;
        beyond++;
        *text_bytes += strlen(member(item, "content")->valuestring);
    }
    *count = vocab_count + beyond;
    return MOE_OK;
}

/* An added token is new, or marks one of the vocabulary's as special. */
static moe_err
read_added(tokenizer *tok, const cJSON *added, errbuf *eb)
{
    const uint32_t id = id_of(added);
    const token_kind kind = cJSON_IsTrue(member(added, "special")) ? TOKEN_SPECIAL : TOKEN_ADDED;
    const char *content = member(added, "content")->valuestring;
    if (id >= tok->token_count || tok->tokens[id].kind == TOKEN_MISSING)
        return tokenizer_build_token(tok, id, kind, content, strlen(content), eb);
    token *t = &tok->tokens[id];
    if (strcmp(tok->text + t->offset, content) != 0)
        return err_set(eb, MOE_EINVAL, "added_tokens \"%s\": id %u is \"%s\" in the vocabulary",
                       content, id, tok->text + t->offset);
    t->kind = (uint8_t)kind;
    return MOE_OK;
}

static moe_err
read_tokens(tokenizer **out, const cJSON *vocab, const cJSON *added_tokens, errbuf *eb)
{
    size_t count = 0, text_bytes = 0;
    const cJSON *item;
    moe_err err = count_tokens(vocab, added_tokens, &count, &text_bytes, eb);
    if (!err) err = tokenizer_build_begin(out, count, text_bytes, eb);
    if (err) return err;
    cJSON_ArrayForEach(item, vocab)
    {
        const size_t len = strlen(item->string);
        const bool byte = tokenizer_byte_of_text(item->string, len) >= 0;
        err = tokenizer_build_token(*out, (uint32_t)item->valuedouble,
                                    byte ? TOKEN_BYTE : TOKEN_PIECE, item->string, len, eb);
        if (err) return err_wrap(eb, err, "model.vocab");
    }
    cJSON_ArrayForEach(item, added_tokens)
    {
        err = read_added(*out, item, eb);
        if (err) return err_wrap(eb, err, "added_tokens");
    }
    return tokenizer_build_index(*out, eb);
}

/* Both forms, "a b" and ["a", "b"], as two stretches of bytes. */
static moe_err
split_merge(const cJSON *item, const char **left, size_t *left_len, const char **right, errbuf *eb)
{
    if (cJSON_IsString(item)) {
        const char *space = strchr(item->valuestring, ' ');
        if (space == NULL || strchr(space + 1, ' ') != NULL)
            return err_set(eb, MOE_EINVAL, "\"%s\" is not two tokens and a space",
                           item->valuestring);
        *left = item->valuestring;
        *left_len = (size_t)(space - *left);
        *right = space + 1;
        return MOE_OK;
    }
    const cJSON *first = cJSON_IsArray(item) ? item->child : NULL;
    const cJSON *second = first ? first->next : NULL;
    if (!cJSON_IsString(first) || !cJSON_IsString(second) || second->next != NULL)
        return err_set(eb, MOE_EINVAL, "neither \"a b\" nor [\"a\", \"b\"]");
    *left = first->valuestring;
    *left_len = strlen(*left);
    *right = second->valuestring;
    return MOE_OK;
}

static moe_err
read_merge(tokenizer *tok, const cJSON *item, uint32_t rank, errbuf *eb)
{
    const char *left = NULL, *right = NULL;
    size_t left_len = 0;
    moe_err err = split_merge(item, &left, &left_len, &right, eb);
    if (err) return err;
    const size_t right_len = strlen(right);
    if (left_len + right_len > TOKENIZER_TOKEN_MAX)
        return err_set(eb, MOE_EINVAL, "the result is longer than any token");
    char whole[TOKENIZER_TOKEN_MAX];
    memcpy(whole, left, left_len);
    memcpy(whole + left_len, right, right_len);

    const uint32_t left_id = tokenizer_token_id(tok, left, left_len);
    const uint32_t right_id = tokenizer_token_id(tok, right, right_len);
    const uint32_t id = tokenizer_token_id(tok, whole, left_len + right_len);
    if (left_id == TOKENIZER_ID_NONE || right_id == TOKENIZER_ID_NONE || id == TOKENIZER_ID_NONE)
        return err_set(eb, MOE_EINVAL, "\"%.*s\" and \"%s\": %s is not in the vocabulary",
                       (int)left_len, left, right,
                       left_id == TOKENIZER_ID_NONE    ? "the first"
                       : right_id == TOKENIZER_ID_NONE ? "the second"
                                                       : "the result");
    return tokenizer_build_merge(tok, left_id, right_id, rank, id, eb);
}

static moe_err
read_merges(tokenizer *tok, const cJSON *merges, errbuf *eb)
{
    size_t count = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, merges)
    {
        count++;
    }
    moe_err err = tokenizer_build_merges(tok, count, eb);
    uint32_t rank = 0;
    cJSON_ArrayForEach(item, merges)
    {
        if (err) break;
        err = read_merge(tok, item, rank, eb);
        if (err) err_wrap(eb, err, "model.merges[%u]", rank);
        rank++;
    }
    return err;
}

static moe_err
build(tokenizer **out, const cJSON *root, errbuf *eb)
{
    const cJSON *model = member(root, "model"), *added = member(root, "added_tokens");
    if (!cJSON_IsObject(model)) return err_set(eb, MOE_EINVAL, "model is missing or not an object");
    if (added != NULL && !cJSON_IsArray(added))
        return err_set(eb, MOE_EINVAL, "added_tokens must be an array");
    if (member(root, "pre_tokenizer") != NULL)
        return err_set(eb, MOE_EUNSUPPORTED, "pre_tokenizer \"%s\" is not supported",
                       type_of(member(root, "pre_tokenizer")));
    moe_err err = check_model(model, eb);
    if (!err) err = read_tokens(out, member(model, "vocab"), added, eb);
    if (!err) err = read_normalizer(*out, member(root, "normalizer"), 0, eb);
    if (!err) err = read_decoder(*out, member(root, "decoder"), eb);
    if (!err) err = read_merges(*out, member(model, "merges"), eb);
    if (err) return err;
    (*out)->bos_id = tokenizer_token_id(*out, "<s>", 3);
    (*out)->eos_id = tokenizer_token_id(*out, "</s>", 4);
    return tokenizer_build_finish(*out, eb);
}

moe_err
tokenizer_load_json(tokenizer **out, const char *bytes, size_t len, errbuf *eb)
{
    cJSON *root = NULL;
    *out = NULL;
    moe_err err = json_parse(bytes, len, &root, eb);
    if (err) return err;
    err = build(out, root, eb);
    cJSON_Delete(root);
    if (err) {
        tokenizer_free(*out);
        *out = NULL;
    }
    return err;
}
