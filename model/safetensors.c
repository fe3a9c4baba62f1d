#include "model/safetensors.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"

#define JSON_INT_MAX (INT64_C(1) << 53) /* the largest integer that a JSON number holds exactly */

/* A file and the tensor being read, for messages. */
typedef struct place {
    const char *path;
    const char *tensor;
    errbuf *eb;
} place;

#define PLACE "%s: tensor %.160s "

typedef struct dtype_size {
    const char *name;
    uint32_t bits;
} dtype_size;

static const dtype_size dtype_sizes[] = {
    {"BOOL", 8},    {"U8", 8},      {"I8", 8},   {"F8_E5M2", 8},     {"F8_E4M3", 8},
    {"F8_E8M0", 8}, {"U16", 16},    {"I16", 16}, {"F8_E5M2FNUZ", 8}, {"F8_E4M3FNUZ", 8},
    {"F16", 16},    {"BF16", 16},   {"U32", 32}, {"I32", 32},        {"F32", 32},
    {"U64", 64},    {"I64", 64},    {"F64", 64}, {"C64", 64},        {"F4", 4},
    {"F6_E2M3", 6}, {"F6_E3M2", 6},
};

static const dtype_size *
find_dtype(const char *name)
{
    for (size_t i = 0; i < sizeof dtype_sizes / sizeof dtype_sizes[0]; i++) {
        if (strcmp(dtype_sizes[i].name, name) == 0) return &dtype_sizes[i];
    }
    return NULL;
}

/* Also counts the elements that the shape asks for. */
static moe_err
parse_shape(safetensors_entry *e, uint64_t *elements, const cJSON *shape, const place *at)
{
    if (!cJSON_IsArray(shape))
        return err_set(at->eb, MOE_EINVAL, PLACE "has no shape", at->path, at->tensor);
    *elements = 1;
    const cJSON *item;
    cJSON_ArrayForEach(item, shape)
    {
        if (!json_is_int(item, 0, JSON_INT_MAX))
            return err_set(at->eb, MOE_EINVAL, PLACE "has a shape that is not a list of sizes",
                           at->path, at->tensor);
        const uint64_t size = (uint64_t)item->valuedouble;
        if (e->rank < TENSOR_RANK_MAX) e->shape[e->rank] = size;
        e->rank++;
        if (__builtin_mul_overflow(*elements, size, elements))
            return err_set(at->eb, MOE_EINVAL, PLACE "has a shape whose product overflows",
                           at->path, at->tensor);
    }
    return MOE_OK;
}

/* The range in the data section of data_bytes bytes, which begins at data_begin. */
static moe_err
parse_offsets(safetensors_entry *e, const cJSON *offsets, uint64_t data_begin, uint64_t data_bytes,
              const place *at)
{
    const cJSON *first = cJSON_IsArray(offsets) ? offsets->child : NULL;
    const cJSON *second = first ? first->next : NULL;
    if (second == NULL || second->next != NULL || !json_is_int(first, 0, JSON_INT_MAX) ||
        !json_is_int(second, 0, JSON_INT_MAX))
        return err_set(at->eb, MOE_EINVAL, PLACE "needs data_offsets [begin, end]", at->path,
                       at->tensor);
    const uint64_t begin = (uint64_t)first->valuedouble, end = (uint64_t)second->valuedouble;
    if (begin > end)
        return err_set(at->eb, MOE_EINVAL, PLACE "begins at %" PRIu64 ", behind its end %" PRIu64,
                       at->path, at->tensor, begin, end);
    if (end > data_bytes)
        return err_set(at->eb, MOE_EINVAL,
                       PLACE "ends at %" PRIu64 " of only %" PRIu64 " bytes of data", at->path,
                       at->tensor, end, data_bytes);
    e->begin = data_begin + begin;
    e->end = data_begin + end;
    return MOE_OK;
}

static moe_err
parse_entry(safetensors_entry *e, const cJSON *item, uint64_t data_begin, uint64_t data_bytes,
            const place *at)
{
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(item, "dtype");
    if (!cJSON_IsObject(item) || !cJSON_IsString(dtype))
        return err_set(at->eb, MOE_EINVAL, PLACE "has no dtype", at->path, at->tensor);
    const dtype_size *known = find_dtype(dtype->valuestring);
    if (known == NULL)
        return err_set(at->eb, MOE_EINVAL, PLACE "has unknown dtype %.40s", at->path, at->tensor,
                       dtype->valuestring);
    e->dtype = known->name;

    uint64_t elements = 0, bits;
    moe_err err = parse_shape(e, &elements, cJSON_GetObjectItemCaseSensitive(item, "shape"), at);
    if (!err)
        err = parse_offsets(e, cJSON_GetObjectItemCaseSensitive(item, "data_offsets"), data_begin,
                            data_bytes, at);
    if (err) return err;
    if (__builtin_mul_overflow(elements, known->bits, &bits))
        return err_set(at->eb, MOE_EINVAL, PLACE "has a shape whose size overflows", at->path,
                       at->tensor);
    if (bits % 8 != 0 || bits / 8 != e->end - e->begin)
        return err_set(at->eb, MOE_EINVAL,
                       PLACE "has %" PRIu64 " bytes, %s and its shape ask for %" PRIu64, at->path,
                       at->tensor, e->end - e->begin, known->name, (bits + 7) / 8);
    return MOE_OK;
}

static int
compare_names(const void *a, const void *b)
{
    return strcmp(((const safetensors_entry *)a)->name, ((const safetensors_entry *)b)->name);
}

static int
compare_ranges(const void *a, const void *b)
{
    const safetensors_entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name); /* so that the message does not depend on qsort */
}

/* Leaves the entries sorted by name. */
static moe_err
check_table(safetensors *st, const char *path, errbuf *eb)
{
    if (st->count == 0) return MOE_OK;
    safetensors_entry *e = st->entries;
    qsort(e, st->count, sizeof *e, compare_ranges);
    for (size_t i = 1; i < st->count; i++) {
        if (e[i].begin < e[i - 1].end)
            return err_set(eb, MOE_EINVAL, PLACE "overlaps tensor %.160s", path, e[i].name,
                           e[i - 1].name);
    }
    qsort(e, st->count, sizeof *e, compare_names);
    for (size_t i = 1; i < st->count; i++) {
        if (strcmp(e[i].name, e[i - 1].name) == 0)
            return err_set(eb, MOE_EINVAL, PLACE "is there twice", path, e[i].name);
    }
    return MOE_OK;
}

static bool
is_metadata(const cJSON *item)
{
    return strcmp(item->string, "__metadata__") == 0;
}

/* Room for every entry and name of the header. */
static moe_err
allocate_table(safetensors *st, const cJSON *root, const char *path, errbuf *eb)
{
    size_t count = 0, name_bytes = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, root)
    {
        if (is_metadata(item)) continue;
        count++;
        name_bytes += strlen(item->string) + 1;
    }
    if (count == 0) return MOE_OK;
    st->entries = calloc(count, sizeof st->entries[0]);
    st->names = malloc(name_bytes);
    if (st->entries == NULL || st->names == NULL)
        return err_set(eb, MOE_ENOMEM, "%s: no memory for %zu tensors", path, count);
    return MOE_OK;
}

static moe_err
fill_table(safetensors *st, const cJSON *root, uint64_t data_begin, uint64_t data_bytes,
           const char *path, errbuf *eb)
{
    moe_err err = allocate_table(st, root, path, eb);
    if (err) return err;
    char *name = st->names;
    const cJSON *item;
    cJSON_ArrayForEach(item, root)
    {
        if (is_metadata(item)) {
            if (!cJSON_IsObject(item))
                return err_set(eb, MOE_EINVAL, "%s: __metadata__ must be an object", path);
            continue;
        }
        const size_t bytes = strlen(item->string) + 1;
        memcpy(name, item->string, bytes);
        safetensors_entry *e = &st->entries[st->count++];
        e->name = name;
        name += bytes;
        err = parse_entry(e, item, data_begin, data_bytes,
                          &(place){.path = path, .tensor = e->name, .eb = eb});
        if (err) return err;
    }
    return check_table(st, path, eb);
}

/* A JSON tree takes some 70 bytes a value, so the header's length alone does not bound it. */
static moe_err
check_value_count(const char *header, size_t len, const char *path, errbuf *eb)
{
    size_t commas = 0;
    for (size_t i = 0; i < len; i++) {
        commas += header[i] == ',';
    }
    if (commas <= SAFETENSORS_VALUE_MAX) return MOE_OK;
    return err_set(eb, MOE_EINVAL, "%s: the header holds %zu values, at most %u are read", path,
                   commas, SAFETENSORS_VALUE_MAX);
}

static moe_err
find_header(const char **header, size_t *header_len, const char *path, const void *bytes,
            size_t len, errbuf *eb)
{
    if (len < 8)
        return err_set(eb, MOE_EINVAL, "%s: truncated, %zu bytes are no safetensors file", path,
                       len);
    const unsigned char *p = bytes;
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) {
        n = n << 8 | p[i];
    }
    if (n > SAFETENSORS_HEADER_MAX)
        return err_set(eb, MOE_EINVAL, "%s: header of %" PRIu64 " bytes, at most %u are read", path,
                       n, SAFETENSORS_HEADER_MAX);
    if (n > len - 8)
        return err_set(eb, MOE_EINVAL,
                       "%s: truncated, header of %" PRIu64 " bytes in a file of %zu", path, n, len);
    *header = (const char *)p + 8;
    *header_len = (size_t)n;
    if (n == 0 || **header != '{')
        return err_set(eb, MOE_EINVAL, "%s: the header does not begin with {", path);
    return check_value_count(*header, *header_len, path, eb);
}

moe_err
safetensors_parse(safetensors *out, const char *path, const void *bytes, size_t len, errbuf *eb)
{
    *out = (safetensors){0};
    const char *header = NULL;
    size_t header_len = 0;
    moe_err err = find_header(&header, &header_len, path, bytes, len, eb);
    if (err) return err;

    cJSON *root;
    err = json_parse(header, header_len, &root, eb);
    if (err) return err_wrap(eb, err, "%s: header", path);
    err = fill_table(out, root, 8 + header_len, len - 8 - header_len, path, eb);
    cJSON_Delete(root);
    if (err) safetensors_fini(out);
    return err;
}

void
safetensors_fini(safetensors *st)
{
    free(st->entries);
    free(st->names);
    *st = (safetensors){0};
}

static int
compare_key(const void *key, const void *entry)
{
    return strcmp(key, ((const safetensors_entry *)entry)->name);
}

const safetensors_entry *
safetensors_find(const safetensors *st, const char *name)
{
    if (st->count == 0) return NULL;
    return bsearch(name, st->entries, st->count, sizeof st->entries[0], compare_key);
}

moe_err
safetensors_check(const char *name, const void *bytes, size_t len, errbuf *eb)
{
    safetensors st;
    const moe_err err = safetensors_parse(&st, name, bytes, len, eb);
    if (!err) safetensors_fini(&st);
    return err;
}
