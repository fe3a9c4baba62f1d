/* tokenizer_golden: the golden tokenizers and cases, as the tokenizer and detok tests share them.
 *
 * Nothing here knows which tokenizers there are: they are the folders of tokenizer/ in the golden
 * set, each loaded from every format it has.
 */
#ifndef MOE_TESTS_FRONTEND_TOKENIZER_GOLDEN_H
#define MOE_TESTS_FRONTEND_TOKENIZER_GOLDEN_H

#include <criterion/criterion.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"
#include "common/json.h"
#include "frontend/tokenizer_impl.h"
#include "tests/support/paths.h"

#define GOLDEN_TOKENIZERS_MAX 32

typedef struct golden_tokenizer {
    char name[64];
    const char *format; /* file name */
    char path[1024];
    tokenizer *tok;
} golden_tokenizer;

typedef struct golden_set {
    golden_tokenizer items[GOLDEN_TOKENIZERS_MAX];
    size_t count;
} golden_set;

static inline void
golden_load_file(golden_tokenizer *g)
{
    errbuf eb = {{0}};
    char *bytes = NULL;
    size_t len = 0;
    cr_assert_eq(file_read(g->path, TOKENIZER_FILE_MAX, &bytes, &len, &eb), MOE_OK, "%s", eb.text);
    const moe_err err = strcmp(g->format, "tokenizer.json") == 0
                            ? tokenizer_load_json(&g->tok, bytes, len, &eb)
                            : tokenizer_load_model(&g->tok, bytes, len, &eb);
    cr_assert_eq(err, MOE_OK, "%s: %s", g->path, eb.text);
    free(bytes);
}

/* Every tokenizer in every format; there must be some of each format. */
static inline void
golden_load(golden_set *set)
{
    static const char *const formats[] = {"tokenizer.json", "tokenizer.model"};
    size_t found[2] = {0, 0};
    char root[768];
    memset(set, 0, sizeof *set);
    DIR *dir = opendir(golden_path(root, sizeof root, "tokenizer"));
    cr_assert_not_null(dir, "%s", root);
    struct dirent *entry;
    while ((entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] == '.' || strlen(entry->d_name) >= 64) continue;
        for (size_t f = 0; f < 2; f++) {
            cr_assert_lt(set->count, (size_t)GOLDEN_TOKENIZERS_MAX);
            golden_tokenizer *g = &set->items[set->count];
            snprintf(g->name, sizeof g->name, "%s", entry->d_name);
            snprintf(g->path, sizeof g->path, "%s/%s/%s", root, entry->d_name, formats[f]);
            if (access(g->path, R_OK) != 0) continue;
            g->format = formats[f];
            golden_load_file(g);
            set->count++;
            found[f]++;
        }
    }
    closedir(dir);
    cr_assert(found[0] > 0 && found[1] > 0, "no tokenizers in %s", root);
}

static inline void
golden_free(golden_set *set)
{
    for (size_t i = 0; i < set->count; i++) {
        tokenizer_free(set->items[i].tok);
    }
    set->count = 0;
}

/* The parsed golden file; cJSON_Delete(). */
static inline cJSON *
golden_json(const char *relative)
{
    char path[1024], *bytes = NULL;
    size_t len = 0;
    errbuf eb = {{0}};
    cJSON *root = NULL;
    golden_path(path, sizeof path, relative);
    cr_assert_eq(file_read(path, (size_t)64 << 20, &bytes, &len, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(json_parse(bytes, len, &root, &eb), MOE_OK, "%s: %s", path, eb.text);
    free(bytes);
    return root;
}

static inline uint32_t
golden_id(const cJSON *item)
{
    cr_assert(json_is_int(item, 0, UINT32_MAX));
    return (uint32_t)item->valuedouble;
}

/* Ids as an array, free(). */
static inline uint32_t *
golden_ids(const cJSON *array, size_t *count)
{
    cr_assert(cJSON_IsArray(array));
    *count = (size_t)cJSON_GetArraySize(array);
    uint32_t *ids = malloc((*count + 1) * sizeof ids[0]);
    cr_assert_not_null(ids);
    size_t n = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, array)
    {
        ids[n++] = golden_id(item);
    }
    return ids;
}

/* A case's text, given as a string or in hex; free(). */
static inline char *
golden_text(const cJSON *item, size_t *len)
{
    const cJSON *text = cJSON_GetObjectItemCaseSensitive(item, "text");
    const cJSON *hex = cJSON_GetObjectItemCaseSensitive(item, "hex");
    if (cJSON_IsString(text)) {
        *len = strlen(text->valuestring);
        return strdup(text->valuestring);
    }
    cr_assert(cJSON_IsString(hex));
    *len = strlen(hex->valuestring) / 2;
    char *out = malloc(*len + 1);
    cr_assert_not_null(out);
    for (size_t i = 0; i < *len; i++) {
        unsigned byte = 0;
        cr_assert_eq(sscanf(hex->valuestring + 2 * i, "%2x", &byte), 1);
        out[i] = (char)byte;
    }
    out[*len] = '\0';
    return out;
}

#endif
