#include "common/json.h"

#include <math.h>
#include <string.h>

/* cJSON's own nesting limit is 1000 frames; ours is checked before it recurses. */
static moe_err
check_text(const char *text, size_t len, errbuf *eb)
{
    size_t depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        const char c = text[i];
        if (c == '\0') return err_set(eb, MOE_EINVAL, "not JSON: NUL byte at offset %zu", i);
        if (in_string) {
            /* cJSON keeps strings NUL-terminated, so an escaped NUL would cut one short. */
            if (c == '\\' && len - i >= 6 && memcmp(text + i, "\\u0000", 6) == 0)
                return err_set(eb, MOE_EINVAL, "JSON string with U+0000 at offset %zu", i);
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
            continue;
        }
        if (c == '"')
            in_string = true;
        else if (c == '[' || c == '{')
            depth++;
        else if ((c == ']' || c == '}') && depth > 0)
            depth--;
        if (depth > JSON_DEPTH_MAX)
            return err_set(eb, MOE_EINVAL, "JSON nested deeper than %d at offset %zu",
                           JSON_DEPTH_MAX, i);
    }
    return MOE_OK;
}

moe_err
json_parse(const char *text, size_t len, cJSON **out, errbuf *eb)
{
    *out = NULL;
    moe_err err = check_text(text, len, eb);
    if (err) return err;

    const char *end = NULL;
    cJSON *root = cJSON_ParseWithLengthOpts(text, len, &end, 0);
    if (root == NULL) {
        const size_t at = end == NULL || end < text ? 0 : (size_t)(end - text);
        return err_set(eb, MOE_EINVAL, "not JSON: error near offset %zu of %zu", at, len);
    }
    for (; end < text + len; end++) {
        if (strchr(" \t\r\n", *end) != NULL) continue;
        cJSON_Delete(root);
        return err_set(eb, MOE_EINVAL, "not JSON: more text at offset %zu", (size_t)(end - text));
    }
    *out = root;
    return MOE_OK;
}

/* NULL when absent or null. */
static const cJSON *
member(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return item == NULL || cJSON_IsNull(item) ? NULL : item;
}

bool
json_is_int(const cJSON *item, int64_t min, int64_t max)
{
    if (!cJSON_IsNumber(item)) return false;
    const double v = item->valuedouble;
    return isfinite(v) && v == floor(v) && v >= (double)min && v <= (double)max;
}

moe_err
json_get_i64(const cJSON *object, const char *key, int64_t min, int64_t max, int64_t *out,
             errbuf *eb)
{
    const cJSON *item = member(object, key);
    if (item == NULL) return MOE_OK;
    if (!json_is_int(item, min, max))
        return err_set(eb, MOE_EINVAL, "%s must be an integer from %lld to %lld", key,
                       (long long)min, (long long)max);
    *out = (int64_t)item->valuedouble;
    return MOE_OK;
}

moe_err
json_get_u32(const cJSON *object, const char *key, uint32_t min, uint32_t max, uint32_t *out,
             errbuf *eb)
{
    int64_t v = *out;
    const moe_err err = json_get_i64(object, key, min, max, &v, eb);
    if (!err) *out = (uint32_t)v;
    return err;
}

moe_err
json_get_double(const cJSON *object, const char *key, double min, double max, double *out,
                errbuf *eb)
{
    const cJSON *item = member(object, key);
    if (item == NULL) return MOE_OK;
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= min && item->valuedouble <= max))
        return err_set(eb, MOE_EINVAL, "%s must be a number from %g to %g", key, min, max);
    *out = item->valuedouble;
    return MOE_OK;
}

moe_err
json_get_bool(const cJSON *object, const char *key, bool *out, errbuf *eb)
{
    const cJSON *item = member(object, key);
    if (item == NULL) return MOE_OK;
    if (!cJSON_IsBool(item)) return err_set(eb, MOE_EINVAL, "%s must be true or false", key);
    *out = cJSON_IsTrue(item);
    return MOE_OK;
}

moe_err
json_get_string(const cJSON *object, const char *key, const char **out, errbuf *eb)
{
    const cJSON *item = member(object, key);
    if (item == NULL) return MOE_OK;
    if (!cJSON_IsString(item)) return err_set(eb, MOE_EINVAL, "%s must be a string", key);
    *out = item->valuestring;
    return MOE_OK;
}
