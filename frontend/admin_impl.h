/* admin_impl: between the admin API's HTTP (admin.c) and what its routes do (admin_routes.c).
 *
 * Threads: as admin.h.
 */
#ifndef MOE_FRONTEND_ADMIN_IMPL_H
#define MOE_FRONTEND_ADMIN_IMPL_H

#include <stdatomic.h>

#include "common/strbuf.h"
#include "frontend/admin.h"
#include "frontend/api_error.h"
#include "proto/rpc.h"

/* What a route works with. */
typedef struct admin_context {
    rpc_client *router;
    const char *run_dir;
    const _Atomic bool *stopping; /* calls end soon then */
} admin_context;

/* Carry out a request: append the answer's JSON to out and return its status; or fill *error and
 * return 0. */
typedef int admin_handler(const admin_context *c, const strbuf *body, strbuf *out,
                          api_error *error);

typedef struct admin_route {
    const char *path, *method;
    admin_handler *handle;
} admin_route;

/* NULL if there is none; *allow is set if only the method is wrong. */
const admin_route *admin_route_find(const char *path, const char *method, const char **allow);

#endif
