/* methods: indices of each service's methods, for rpc_call_sync() and its like: the order of
 * conclave.proto.
 *
 * Threads: constants. */
#ifndef MOE_PROTO_METHODS_H
#define MOE_PROTO_METHODS_H

typedef enum router_method {
    ROUTER_HEALTH,
    ROUTER_REGISTER_WORKER,
    ROUTER_HEARTBEAT,
    ROUTER_STEP,
    ROUTER_STATS,
    ROUTER_DRAIN,
    ROUTER_DRAIN_WORKERS,
    ROUTER_REBALANCE,
    ROUTER_FLEET,
    ROUTER_PLACEMENT,
    ROUTER_ROUTING
} router_method;

typedef enum worker_method {
    WORKER_LOAD,
    WORKER_ATTACH,
    WORKER_STATS,
    WORKER_DRAIN,
    WORKER_HOST,
    WORKER_CANCEL_HOST,
    WORKER_HASH,
    WORKER_RELEASE,
    WORKER_PING,
    WORKER_FETCH
} worker_method;

#endif
