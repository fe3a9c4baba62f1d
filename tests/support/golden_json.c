#include "tests/support/golden_json.h"

#include <stdio.h>
#include <stdlib.h>

#include <criterion/criterion.h>

#include "common/file.h"

#define FILE_MAX ((size_t)256 << 20)

cJSON *
golden_json_load(const char *dir, const char *name)
{
    char path[1024], *text;
    size_t len;
    errbuf eb = {{0}};
    snprintf(path, sizeof path, "%s/%s", dir, name);
    cr_assert_eq(file_read(path, FILE_MAX, &text, &len, &eb), MOE_OK, "%s", eb.text);
    cJSON *root = cJSON_ParseWithLength(text, len);
    free(text);
    cr_assert_not_null(root, "%s is not JSON", path);
    return root;
}

const cJSON *
golden_member(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    cr_assert_not_null(item, "no key %s", key);
    return item;
}

void *
golden_tensor(const char *dir, const cJSON *item, size_t *count)
{
    char path[1024], *bytes;
    size_t len;
    errbuf eb = {{0}};
    snprintf(path, sizeof path, "%s/%s", dir, golden_member(item, "file")->valuestring);
    cr_assert_eq(file_read(path, FILE_MAX, &bytes, &len, &eb), MOE_OK, "%s", eb.text);
    *count = 1;
    const cJSON *extent;
    cJSON_ArrayForEach(extent, golden_member(item, "shape"))
    {
        *count *= (size_t)extent->valuedouble;
    }
    cr_assert_eq(*count * 4, len, "%s has %zu bytes", path, len);
    return bytes;
}

uint32_t *
golden_ids(const cJSON *array, uint32_t *count)
{
    *count = (uint32_t)cJSON_GetArraySize(array);
    uint32_t *ids = malloc((*count + 1) * sizeof *ids), i = 0;
    cr_assert_not_null(ids);
    const cJSON *item;
    cJSON_ArrayForEach(item, array)
    {
        ids[i++] = (uint32_t)item->valuedouble;
    }
    return ids;
}
