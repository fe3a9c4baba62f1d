#include "model/shards.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/json.h"

#define SINGLE_NAME "model.safetensors"
#define INDEX_NAME "model.safetensors.index.json"
#define SHARD_NAME_MAX 255

struct weight_ref {
    const char *name;
    const char *file;
    size_t shard; /* index into the set's shards */
};

static char *
join_path(const char *dir, const char *file)
{
    char *path;
    return asprintf(&path, "%s/%s", dir, file) < 0 ? NULL : path;
}

/* Takes ownership of path, also on error (NULL: out of memory). */
static moe_err
open_shard(shard *out, char *path, errbuf *eb)
{
    *out = (shard){.path = path};
    if (path == NULL) return err_set(eb, MOE_ENOMEM, "no memory for the path of a shard");
    moe_err err = file_map(path, &out->map, &out->bytes, eb);
    if (!err) err = safetensors_parse(&out->table, path, out->map, out->bytes, eb);
    return err;
}

static void
close_shard(shard *s)
{
    safetensors_fini(&s->table);
    file_unmap(s->map, s->bytes);
    free(s->path);
}

/* A name that can't leave the folder. */
static bool
is_plain_name(const char *name)
{
    const size_t len = strlen(name);
    return len > 0 && len <= SHARD_NAME_MAX && name[0] != '.' && strchr(name, '/') == NULL;
}

static int
compare_refs(const void *a, const void *b)
{
    return strcmp(((const weight_ref *)a)->name, ((const weight_ref *)b)->name);
}

static int
compare_files(const void *a, const void *b)
{
    return strcmp((*(weight_ref *const *)a)->file, (*(weight_ref *const *)b)->file);
}

/* Copy the weight_map out of the JSON tree, sorted by tensor name. */
static moe_err
read_weight_map(shard_set *set, const cJSON *map, errbuf *eb)
{
    const cJSON *item;
    size_t count = 0, text_bytes = 0;
    if (!cJSON_IsObject(map))
        return err_set(eb, MOE_EINVAL, "%s: weight_map must be an object", set->source);
    cJSON_ArrayForEach(item, map)
    {
        if (!cJSON_IsString(item) || !is_plain_name(item->valuestring))
            return err_set(eb, MOE_EINVAL,
                           "%s: tensor %.160s: the shard must be the name of a file in the folder",
                           set->source, item->string);
        count++;
        text_bytes += strlen(item->string) + strlen(item->valuestring) + 2;
    }
    if (count == 0) return err_set(eb, MOE_EINVAL, "%s: weight_map is empty", set->source);
    set->refs = calloc(count, sizeof set->refs[0]);
    set->ref_text = malloc(text_bytes);
    if (set->refs == NULL || set->ref_text == NULL)
        return err_set(eb, MOE_ENOMEM, "%s: no memory for %zu tensors", set->source, count);

    char *text = set->ref_text;
    cJSON_ArrayForEach(item, map)
    {
        weight_ref *ref = &set->refs[set->ref_count++];
        ref->name = text;
        text = stpcpy(text, item->string) + 1;
        ref->file = text;
        text = stpcpy(text, item->valuestring) + 1;
    }
    qsort(set->refs, count, sizeof set->refs[0], compare_refs);
    for (size_t i = 1; i < count; i++) {
        if (strcmp(set->refs[i].name, set->refs[i - 1].name) == 0)
            return err_set(eb, MOE_EINVAL, "%s: tensor %.160s is there twice", set->source,
                           set->refs[i].name);
    }
    return MOE_OK;
}

/* Open every distinct file of the map, and note each tensor's. */
static moe_err
open_all(shard_set *set, const char *dir, errbuf *eb)
{
    weight_ref **by_file = malloc(set->ref_count * sizeof(weight_ref *));
    set->shards = calloc(set->ref_count, sizeof set->shards[0]);
    moe_err err = MOE_OK;
    if (by_file == NULL || set->shards == NULL) {
        err = err_set(eb, MOE_ENOMEM, "%s: no memory for %zu tensors", set->source, set->ref_count);
        goto done;
    }
    for (size_t i = 0; i < set->ref_count; i++) {
        by_file[i] = &set->refs[i];
    }
    qsort(by_file, set->ref_count, sizeof by_file[0], compare_files);
    for (size_t i = 0; i < set->ref_count; i++) {
        if (i == 0 || strcmp(by_file[i]->file, by_file[i - 1]->file) != 0) {
            err = open_shard(&set->shards[set->count++], join_path(dir, by_file[i]->file), eb);
            if (err) goto done;
        }
        by_file[i]->shard = set->count - 1;
    }
done:
    free(by_file);
    return err;
}

static moe_err
check_refs(const shard_set *set, errbuf *eb)
{
    for (size_t i = 0; i < set->ref_count; i++) {
        const weight_ref *ref = &set->refs[i];
        const shard *s = &set->shards[ref->shard];
        if (safetensors_find(&s->table, ref->name) == NULL)
            return err_set(eb, MOE_ENOTFOUND,
                           "%s: tensor %.160s is missing, " INDEX_NAME " says it is in this file",
                           s->path, ref->name);
    }
    return MOE_OK;
}

static moe_err
open_indexed(shard_set *set, const char *dir, errbuf *eb)
{
    char *text = NULL;
    size_t len = 0;
    cJSON *root = NULL;
    moe_err err = file_read(set->source, SAFETENSORS_HEADER_MAX, &text, &len, eb);
    if (err) return err;
    err = json_parse(text, len, &root, eb);
    free(text);
    if (err) return err_wrap(eb, err, "%s", set->source);
    err = read_weight_map(set, cJSON_GetObjectItemCaseSensitive(root, "weight_map"), eb);
    cJSON_Delete(root);
    if (!err) err = open_all(set, dir, eb);
    if (!err) err = check_refs(set, eb);
    return err;
}

/* MOE_ENOTFOUND, with nothing left behind, when the folder has no single file. */
static moe_err
open_single(shard_set *set, const char *dir, errbuf *eb)
{
    set->source = join_path(dir, SINGLE_NAME);
    set->shards = calloc(1, sizeof set->shards[0]);
    if (set->source == NULL || set->shards == NULL)
        return err_set(eb, MOE_ENOMEM, "%s: no memory to open it", dir);
    set->count = 1;
    return open_shard(&set->shards[0], join_path(dir, SINGLE_NAME), eb);
}

moe_err
shards_open(shard_set *out, const char *dir, errbuf *eb)
{
    *out = (shard_set){0};
    moe_err err = open_single(out, dir, eb);
    if (err == MOE_ENOTFOUND) {
        shards_close(out);
        out->source = join_path(dir, INDEX_NAME);
        if (out->source == NULL)
            err = err_set(eb, MOE_ENOMEM, "%s: no memory to open it", dir);
        else
            err = open_indexed(out, dir, eb);
        if (err == MOE_ENOTFOUND && out->ref_count == 0)
            err_set(eb, err, "%s: neither " SINGLE_NAME " nor " INDEX_NAME, dir);
    }
    if (err) shards_close(out);
    return err;
}

void
shards_close(shard_set *set)
{
    for (size_t i = 0; i < set->count; i++) {
        close_shard(&set->shards[i]);
    }
    free(set->shards);
    free(set->refs);
    free(set->ref_text);
    free(set->source);
    *set = (shard_set){0};
}

static int
compare_key(const void *key, const void *ref)
{
    return strcmp(key, ((const weight_ref *)ref)->name);
}

const safetensors_entry *
shards_find(const shard_set *set, const char *name, const shard **where)
{
    *where = &set->shards[0];
    if (set->refs != NULL) {
        const weight_ref *ref =
            bsearch(name, set->refs, set->ref_count, sizeof set->refs[0], compare_key);
        if (ref == NULL) return NULL;
        *where = &set->shards[ref->shard];
    }
    return safetensors_find(&(*where)->table, name);
}
