/* json_fields: single values of a request's JSON body, with errors a client can act on.
 *
 * null means absent.  What breaks a rule sets *error (status 400): the field's name, the value and
 * what is allowed; the function then returns false and leaves *out as it was, as it does when the
 * field is absent.
 *
 * Threads: no shared state.
 */
#ifndef MOE_FRONTEND_JSON_FIELDS_H
#define MOE_FRONTEND_JSON_FIELDS_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "frontend/api_error.h"

#define FIELD_SHOWN_MAX 96 /* bytes of a value quoted in a message */

/* NULL: absent. */
const cJSON *field_get(const cJSON *root, const char *name);
/* Write what a value looks like, for a message; returns buf. */
const char *field_show(const cJSON *item, char buf[FIELD_SHOWN_MAX]);

/* name must outlive *error. */
bool field_bool(const cJSON *root, const char *name, bool *out, api_error *error);
bool field_int(const cJSON *root, const char *name, int64_t min, int64_t max, int64_t *out,
               api_error *error);
/* above: min itself is not allowed. */
bool field_number(const cJSON *root, const char *name, double min, bool above, double max,
                  double *out, api_error *error);

/* Status 500; returns false. */
bool field_no_memory(api_error *error);

#endif
