/* follower: keeps the fleet of a router whose id is above 0 like router 0's.
 *
 * It asks router 0 (Router.Fleet) which workers there are and where the experts are, makes links of
 * its own to the workers, and hands the placement to its membership, which adopts it at this
 * router's own step boundary.  Steps know no difference: they enter the same membership.
 *
 * With each question it tells the load of its own steps, if that is news (load_pool.h).
 *
 * While router 0 is away the last fleet stays in force; a worker whose connection ends, or that
 * does not answer any more, is given up all the same, and its replicas go on.
 *
 * Threads: create, update and free from the control thread.
 */
#ifndef MOE_ROUTER_FOLLOWER_H
#define MOE_ROUTER_FOLLOWER_H

#include "router/load_feed.h"
#include "router/membership.h"

typedef struct follower follower;

typedef struct follower_config {
    const char *router_url; /* of router 0 */
    uint32_t router_id;
    uint64_t router_incarnation;
    const identity *identity;
    exchange_limits limits;
    enum wire_mode mode;
    membership *membership; /* config.follows; borrowed */
    load_feed *feed;        /* whose window router 0 is told; NULL: none.  Borrowed */
    /* Asked often: should a call be left? */
    bool (*stopping)(void);
} follower_config;

moe_err follower_create(follower **out, const follower_config *config, errbuf *eb);
void follower_free(follower *f); /* accepts NULL */

/* Ask once, bring up what is new, adopt what is to be adopted; then wait up to wait_ms for the
 * membership to have something to do. */
void follower_update(follower *f, uint32_t wait_ms);

/* The placement in a reply; MOE_EINVAL: it is none for `limits`, the text says why.  *out NULL when
 * the reply has none. */
moe_err follower_read_placement(const Conclave__FleetReply *reply, const exchange_limits *limits,
                                placement **out, errbuf *eb);

#endif
