#include "proto/rpc_wire.h"

#include <string.h>

#include "common/hash.h"

#define NESTING_MAX 32
#define IPC_PATH_MAX 107 /* sun_path less its NUL */

moe_err
rpc_frame_find(rpc_header *out, const void *bytes, size_t len, size_t body_bytes_max,
               size_t *frame_bytes, errbuf *eb)
{
    *out = (rpc_header){0};
    *frame_bytes = 0;
    if (len < sizeof *out) return MOE_OK;
    memcpy(out, bytes, sizeof *out);
    if (out->magic != RPC_MAGIC)
        return err_set(eb, MOE_EMISMATCH, "not a conclave message: magic 0x%08x",
                       (unsigned)out->magic);
    if (out->version != RPC_VERSION)
        return err_set(eb, MOE_EMISMATCH, "wire version %u, expected %u", (unsigned)out->version,
                       (unsigned)RPC_VERSION);
    if (out->body_bytes > body_bytes_max)
        return err_set(eb, MOE_ERANGE, "message of %u bytes, at most %zu are read",
                       (unsigned)out->body_bytes, body_bytes_max);
    if (len - sizeof *out >= out->body_bytes) *frame_bytes = sizeof *out + out->body_bytes;
    return MOE_OK;
}

moe_err
rpc_header_check(const rpc_header *header, errbuf *eb)
{
    if (header->kind < RPC_KIND_CALL || header->kind >= RPC_KIND_END)
        return err_set(eb, MOE_EINVAL, "unknown message kind %u", (unsigned)header->kind);
    if (header->reserved != 0 || (header->kind != RPC_KIND_REPLY && header->status != 0))
        return err_set(eb, MOE_EINVAL, "a header field that must be 0 is not");
    if (header->incarnation == 0) return err_set(eb, MOE_EINVAL, "client incarnation is 0");
    return MOE_OK;
}

rpc_header
rpc_header_make(rpc_kind kind, uint32_t body_bytes)
{
    return (rpc_header){
        .magic = RPC_MAGIC,
        .version = RPC_VERSION,
        .kind = (uint8_t)kind,
        .body_bytes = body_bytes,
    };
}

static uint64_t
hash_text(uint64_t seed, const char *text)
{
    return hash_bytes(seed, text, strlen(text));
}

uint64_t
rpc_service_fingerprint(const ProtobufCServiceDescriptor *service)
{
    uint64_t h = hash_text(RPC_VERSION, service->name);
    for (unsigned i = 0; i < service->n_methods; i++) {
        h = hash_text(h, service->methods[i].name);
        h = hash_text(h, service->methods[i].input->name);
        h = hash_text(h, service->methods[i].output->name);
    }
    return h;
}

/* path [depth]: the message types that contain `type`. */
static moe_err
check_type(const ProtobufCMessageDescriptor *type, const ProtobufCMessageDescriptor **path,
           unsigned depth, errbuf *eb)
{
    for (unsigned i = 0; i < depth; i++) {
        if (path[i] == type)
            return err_set(eb, MOE_EINVAL, "message type %s contains itself", type->name);
    }
    if (depth == NESTING_MAX)
        return err_set(eb, MOE_EINVAL, "message type %s nests too deep", type->name);
    path[depth] = type;
    for (unsigned i = 0; i < type->n_fields; i++) {
        if (type->fields[i].type != PROTOBUF_C_TYPE_MESSAGE) continue;
        const moe_err err = check_type(type->fields[i].descriptor, path, depth + 1, eb);
        if (err != MOE_OK) return err;
    }
    return MOE_OK;
}

moe_err
rpc_service_check(const ProtobufCServiceDescriptor *service, errbuf *eb)
{
    const ProtobufCMessageDescriptor *path[NESTING_MAX];
    for (unsigned i = 0; i < service->n_methods; i++) {
        moe_err err = check_type(service->methods[i].input, path, 0, eb);
        if (err == MOE_OK) err = check_type(service->methods[i].output, path, 0, eb);
        if (err != MOE_OK) return err_wrap(eb, err, "%s", service->name);
    }
    return MOE_OK;
}

moe_err
rpc_url_check(const char *url, errbuf *eb)
{
    if (url == NULL || strlen(url) >= RPC_URL_MAX)
        return err_set(eb, MOE_EINVAL, "url is missing or longer than %d", RPC_URL_MAX - 1);
    if (strncmp(url, RPC_IPC_PREFIX, strlen(RPC_IPC_PREFIX)) == 0 &&
        strlen(url) - strlen(RPC_IPC_PREFIX) > IPC_PATH_MAX)
        return err_set(eb, MOE_EINVAL, "%s: a socket's path may have %d bytes", url, IPC_PATH_MAX);
    return MOE_OK;
}
