/* golden_json: read golden case files and the raw tensors they name (tests/golden/README.md).
 * Failures abort the test. */
#ifndef MOE_TESTS_SUPPORT_GOLDEN_JSON_H
#define MOE_TESTS_SUPPORT_GOLDEN_JSON_H

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

/* dir/name parsed; cJSON_Delete() it. */
cJSON *golden_json_load(const char *dir, const char *name);

/* The tensor that `item` describes: *count elements of 4 bytes, free() it. */
void *golden_tensor(const char *dir, const cJSON *item, size_t *count);

/* An array of numbers as ids; *count is set; free() it. */
uint32_t *golden_ids(const cJSON *array, uint32_t *count);

const cJSON *golden_member(const cJSON *object, const char *key);

#endif
