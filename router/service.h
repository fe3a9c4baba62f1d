/* service: the router's control plane: Router's RPCs, over membership, stepper and transformer.
 *
 * Threads: start and stop from one thread.
 */
#ifndef MOE_ROUTER_SERVICE_H
#define MOE_ROUTER_SERVICE_H

#include "router/balancer.h"
#include "router/load_pool.h"
#include "router/membership.h"
#include "router/stepper.h"

typedef struct router_service router_service;

typedef struct router_service_config {
    const char *control_url;
    uint64_t incarnation;
    const identity *identity;
    transformer *transformer;
    membership *membership;
    stepper *stepper;
    balancer *balancer; /* NULL with tensor parallelism */
    load_pool *pool;    /* of followers' load; NULL: it is not looked at */
    load_feed *feed;    /* NULL if it follows */
    bool follows;       /* not router 0: it has no workers of its own */
    bool eplb;
    const char *eplb_policy;
    uint32_t kv_block_count;
    uint32_t max_num_seqs, max_num_batched_tokens, max_model_len;
    uint32_t heartbeat_ms;
    uint32_t routed_id_bytes; /* HealthReply's */
    bool tensor_parallel;
    void (*on_drain)(void); /* a Drain call asks the process to end */
} router_service_config;

moe_err router_service_start(router_service **out, const router_service_config *config, errbuf *eb);
void router_service_stop(router_service *s); /* accepts NULL */

#endif
