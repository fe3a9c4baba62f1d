/* json: parse with a bound on depth, and read typed members with errors that name the key.
 *
 * Getters return MOE_OK and leave *out as it was when the key is absent or null, so that the caller
 * sets the default first; a key of another type or outside [min, max] is MOE_EINVAL with "KEY must
 * be ...".
 *
 * Threads: no shared state.
 */
#ifndef MOE_COMMON_JSON_H
#define MOE_COMMON_JSON_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define JSON_DEPTH_MAX 64

/* Parse exactly len bytes (no NUL needed; trailing white space allowed, anything else refused).
 * On MOE_OK *out is owned by the caller: cJSON_Delete().
 *   MOE_EINVAL  not JSON, deeper than JSON_DEPTH_MAX, or holds a NUL byte; the text names the
 * offset MOE_ENOMEM  */
moe_err json_parse(const char *text, size_t len, cJSON **out, errbuf *eb);

moe_err json_get_u32(const cJSON *object, const char *key, uint32_t min, uint32_t max,
                     uint32_t *out, errbuf *eb);
moe_err json_get_i64(const cJSON *object, const char *key, int64_t min, int64_t max, int64_t *out,
                     errbuf *eb);
moe_err json_get_double(const cJSON *object, const char *key, double min, double max, double *out,
                        errbuf *eb);
moe_err json_get_bool(const cJSON *object, const char *key, bool *out, errbuf *eb);
/* *out is borrowed from the object. */
moe_err json_get_string(const cJSON *object, const char *key, const char **out, errbuf *eb);

/* Is it a number without a fraction within [min, max]?  max at most 2^53. */
bool json_is_int(const cJSON *item, int64_t min, int64_t max);

#endif
