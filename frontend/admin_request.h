/* admin_request: the JSON bodies of the admin API's POST routes, checked.
 *
 * Every function returns false with *error set (status 400) for what breaks a rule; the text names
 * the field, the value and the limit.  Unknown fields are refused: a misspelt one would do
 * something else than was meant.
 *
 * Threads: no shared state.
 */
#ifndef MOE_FRONTEND_ADMIN_REQUEST_H
#define MOE_FRONTEND_ADMIN_REQUEST_H

#include "conclave.pb-c.h"

#include "exchange/wire.h"
#include "frontend/api_error.h"

/* {"workers": [3, 4]}: 1 to WORKER_MAX ids below WORKER_MAX, none twice. */
bool admin_read_drain(const char *body, size_t len, uint32_t ids[WORKER_MAX], size_t *count,
                      api_error *error);

/* {"workers": N}, 1 to WORKER_MAX. */
bool admin_read_scale(const char *body, size_t len, uint32_t *workers, api_error *error);

/* Nothing, or {}. */
bool admin_read_nothing(const char *body, size_t len, api_error *error);

/* The workers of a fleet that go when it is to have only `keep`: those with the highest ids, as
 * `deploy/conclave scale` has it.  *live: how many there are that are not going already.  Returns
 * how many ids, 0 if keep >= *live. */
size_t admin_surplus(const Conclave__RouterStats *s, uint32_t keep, uint32_t ids[WORKER_MAX],
                     uint32_t *live);

#endif
