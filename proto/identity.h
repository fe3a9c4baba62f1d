/* identity: what two processes compare before rows may travel between them.
 *
 * The same model (fingerprint and sizes), the same version, and one numeric class: within it
 * results are equal bit for bit.
 *
 * Threads: plain data.
 */
#ifndef MOE_PROTO_IDENTITY_H
#define MOE_PROTO_IDENTITY_H

#include "conclave.pb-c.h"

#include "common/err.h"
#include "kernels/table.h"
#include "model/checkpoint.h"

#define HOST_ID_MAX 80

typedef struct identity {
    Conclave__ModelIdentity model;
    Conclave__NumericClass numeric; /* its texts are static */
    char host_id[HOST_ID_MAX];      /* equal where shared memory can be shared */
} identity;

/* kv_dtype and attn_dtype are the router's; a worker passes its experts' dtype for both and they
 * are not compared.  Reads the checkpoint's fingerprint: call once. */
void identity_init(identity *out, const checkpoint *c, const kernel_table *kernels,
                   moe_dtype expert_dtype, moe_dtype attn_dtype, moe_dtype kv_dtype);

/* Does a worker that says `model` and `numeric` fit?  peer is a name for the text ("worker 2").
 *   MOE_EMISMATCH  something differs; the text names it and both values
 *   MOE_EINVAL     model or numeric is missing (NULL)  */
moe_err identity_check(const identity *mine, const char *peer, const char *version,
                       const Conclave__ModelIdentity *model, const Conclave__NumericClass *numeric,
                       errbuf *eb);

#endif
