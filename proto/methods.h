/* methods: indices of Router's methods, for rpc_call_sync() and its like: the order of
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

#endif
