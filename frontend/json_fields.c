#include "frontend/json_fields.h"

#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "frontend/utf8.h"

const cJSON *
field_get(const cJSON *root, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, name);
    return item == NULL || cJSON_IsNull(item) ? NULL : item;
}

const char *
field_show(const cJSON *item, char buf[FIELD_SHOWN_MAX])
{
    if (cJSON_IsNumber(item))
        snprintf(buf, FIELD_SHOWN_MAX, "%.10g", item->valuedouble);
    else if (cJSON_IsString(item))
        snprintf(buf, FIELD_SHOWN_MAX, "the string \"%.40s\"", item->valuestring);
    else if (cJSON_IsBool(item))
        snprintf(buf, FIELD_SHOWN_MAX, "%s", cJSON_IsTrue(item) ? "true" : "false");
    else if (cJSON_IsNull(item))
        snprintf(buf, FIELD_SHOWN_MAX, "null");
    else
        snprintf(buf, FIELD_SHOWN_MAX, cJSON_IsArray(item) ? "an array" : "an object");
    buf[utf8_valid_len(buf, strlen(buf))] = '\0';
    return buf;
}

bool
field_no_memory(api_error *error)
{
    return api_error_set(error, 500, NULL, "out of memory");
}

bool
field_bool(const cJSON *root, const char *name, bool *out, api_error *error)
{
    const cJSON *item = field_get(root, name);
    char shown[FIELD_SHOWN_MAX];
    if (item == NULL) return true;
    if (!cJSON_IsBool(item))
        return api_error_set(error, 400, name, "%s must be true or false, not %s", name,
                             field_show(item, shown));
    *out = cJSON_IsTrue(item);
    return true;
}

bool
field_int(const cJSON *root, const char *name, int64_t min, int64_t max, int64_t *out,
          api_error *error)
{
    const cJSON *item = field_get(root, name);
    char shown[FIELD_SHOWN_MAX];
    if (item == NULL) return true;
    if (!json_is_int(item, min, max))
        return api_error_set(error, 400, name, "%s must be an integer from %lld to %lld, not %s",
                             name, (long long)min, (long long)max, field_show(item, shown));
    *out = (int64_t)item->valuedouble;
    return true;
}

bool
field_number(const cJSON *root, const char *name, double min, bool above, double max, double *out,
             api_error *error)
{
    const cJSON *item = field_get(root, name);
    char shown[FIELD_SHOWN_MAX];
    if (item == NULL) return true;
    const double v = item->valuedouble;
    if (!cJSON_IsNumber(item) || !(above ? v > min : v >= min) || !(v <= max))
        return api_error_set(error, 400, name, "%s must be a number %s %g and at most %g, not %s",
                             name, above ? "above" : "from", min, max, field_show(item, shown));
    *out = v;
    return true;
}
