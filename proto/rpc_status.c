#include "proto/rpc.h"
#include "proto/rpc_wire.h"

static const struct {
    rpc_status status;
    const char *name;
    moe_err err;
} statuses[] = {
    {RPC_OK, "OK", MOE_OK},
    {RPC_CANCELLED, "CANCELLED", MOE_ECLOSED},
    {RPC_INVALID_ARGUMENT, "INVALID_ARGUMENT", MOE_EINVAL},
    {RPC_DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", MOE_ETIMEDOUT},
    {RPC_NOT_FOUND, "NOT_FOUND", MOE_ENOTFOUND},
    {RPC_PERMISSION_DENIED, "PERMISSION_DENIED", MOE_EPERM},
    {RPC_RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED", MOE_EBUSY},
    {RPC_FAILED_PRECONDITION, "FAILED_PRECONDITION", MOE_EMISMATCH},
    {RPC_UNIMPLEMENTED, "UNIMPLEMENTED", MOE_EUNSUPPORTED},
    {RPC_INTERNAL, "INTERNAL", MOE_EINTERNAL},
    {RPC_UNAVAILABLE, "UNAVAILABLE", MOE_ECLOSED},
    {RPC_UNAUTHENTICATED, "UNAUTHENTICATED", MOE_EPERM},
};
#define STATUS_COUNT (sizeof statuses / sizeof statuses[0])

const char *
rpc_status_name(rpc_status status)
{
    for (size_t i = 0; i < STATUS_COUNT; i++) {
        if (statuses[i].status == status) return statuses[i].name;
    }
    return "UNKNOWN";
}

moe_err
rpc_status_to_err(rpc_status status)
{
    for (size_t i = 0; i < STATUS_COUNT; i++) {
        if (statuses[i].status == status) return statuses[i].err;
    }
    return MOE_EINTERNAL;
}

rpc_status
rpc_status_from_err(moe_err err)
{
    switch (err) {
    case MOE_OK: return RPC_OK;
    case MOE_EINVAL:
    case MOE_ERANGE: return RPC_INVALID_ARGUMENT;
    case MOE_ENOMEM:
    case MOE_EBUSY: return RPC_RESOURCE_EXHAUSTED;
    case MOE_ENOTFOUND: return RPC_NOT_FOUND;
    case MOE_EMISMATCH: return RPC_FAILED_PRECONDITION;
    case MOE_ETIMEDOUT: return RPC_DEADLINE_EXCEEDED;
    case MOE_ECLOSED: return RPC_UNAVAILABLE;
    case MOE_EUNSUPPORTED: return RPC_UNIMPLEMENTED;
    case MOE_EPERM: return RPC_PERMISSION_DENIED;
    default: return RPC_INTERNAL;
    }
}

rpc_status
rpc_status_from_wire(uint32_t status)
{
    for (size_t i = 0; i < STATUS_COUNT; i++) {
        if ((uint32_t)statuses[i].status == status) return statuses[i].status;
    }
    return RPC_INTERNAL;
}
