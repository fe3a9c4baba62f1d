/* fleet_json: what a router says of its fleet, as JSON for people and scripts.
 *
 * The shapes are those of the admin API (docs/admin.md) and of conclave-ctl.
 *
 *   L layers   E experts
 *
 * Threads: no shared state.
 */
#ifndef MOE_PROTO_FLEET_JSON_H
#define MOE_PROTO_FLEET_JSON_H

#include <cjson/cJSON.h>

#include "conclave.pb-c.h"

#include "common/err.h"

/* Most bytes of a packed reply with a placement or a window: of 2^20 slots or cells and more. */
#define FLEET_REPLY_BYTES_MAX (64u << 20)

/* Each call: on MOE_OK *out is the caller's, cJSON_Delete(); else NULL.
 *   MOE_EINVAL  the reply's lists don't fit its sizes; the text names them
 *   MOE_ENOMEM  */
moe_err fleet_json_stats(const Conclave__RouterStats *s, cJSON **out, errbuf *eb);
moe_err fleet_json_placement(const Conclave__PlacementReply *p, cJSON **out, errbuf *eb);
moe_err fleet_json_routing(const Conclave__RoutingReply *r, cJSON **out, errbuf *eb);

/* Print without white space; owned: free().  NULL: out of memory. */
char *fleet_json_text(const cJSON *root);

#endif
