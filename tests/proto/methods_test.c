/* The indices that calls are made by are those of conclave.proto's methods. */
#include <criterion/criterion.h>

#include "conclave.pb-c.h"

#include "proto/methods.h"

TestSuite(methods, .timeout = 10);

static void
expect_names(const ProtobufCServiceDescriptor *service, const char *const *names, unsigned count)
{
    cr_assert_eq(service->n_methods, count);
    for (unsigned i = 0; i < count; i++)
        cr_expect_str_eq(service->methods[i].name, names[i], "method %u of %s", i, service->name);
}

Test(methods, of_the_router)
{
    static const char *const names[] = {
        [ROUTER_HEALTH] = "Health",
        [ROUTER_REGISTER_WORKER] = "RegisterWorker",
        [ROUTER_HEARTBEAT] = "Heartbeat",
        [ROUTER_STEP] = "Step",
        [ROUTER_STATS] = "Stats",
        [ROUTER_DRAIN] = "Drain",
        [ROUTER_DRAIN_WORKERS] = "DrainWorkers",
        [ROUTER_REBALANCE] = "Rebalance",
        [ROUTER_FLEET] = "Fleet",
        [ROUTER_PLACEMENT] = "Placement",
        [ROUTER_ROUTING] = "Routing",
    };
    expect_names(&conclave__router__descriptor, names, sizeof names / sizeof names[0]);
}

Test(methods, of_a_worker)
{
    static const char *const names[] = {
        [WORKER_LOAD] = "Load",   [WORKER_ATTACH] = "Attach",   [WORKER_STATS] = "Stats",
        [WORKER_DRAIN] = "Drain", [WORKER_HOST] = "Host",       [WORKER_CANCEL_HOST] = "CancelHost",
        [WORKER_HASH] = "Hash",   [WORKER_RELEASE] = "Release", [WORKER_PING] = "Ping",
        [WORKER_FETCH] = "Fetch",
    };
    expect_names(&conclave__worker__descriptor, names, sizeof names / sizeof names[0]);
}
