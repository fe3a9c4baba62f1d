/* fetch: packed weights on their way from one worker to another.
 *
 * A worker that is to host an expert asks one that hosts it for its bytes, block by block, with
 * Worker.Fetch.  Every request says what it takes the bytes to be (model, dtype, slice, version of
 * packing, size), so that they never mean something else where they arrive; and whoever asked
 * compares the whole expert's hash with the one that the router told (fetcher.h).
 *
 * Source: DeepSeek's EPLB leaves moving to the engine; vLLM's rearranges experts between ranks with
 * point-to-point sends inside a collective.  Here nobody waits, so a pull that can be given up.
 *
 * Threads: pure, but for fetch_serve(): one at a time.
 */
#ifndef MOE_EXPERT_WORKER_FETCH_H
#define MOE_EXPERT_WORKER_FETCH_H

#include "conclave.pb-c.h"

#include "expert_worker/store.h"
#include "proto/rpc.h"

#define FETCH_BLOCK_BYTES (1u << 20)
/* Blocks that one worker has asked another for and not got yet. */
#define FETCH_IN_FLIGHT 2
/* Of one block.  The other end serves at low priority, but one that hangs must not hold a move up.
 */
#define FETCH_TIMEOUT_MS 2000
/* A block and what protobuf needs around it. */
#define FETCH_MESSAGE_BYTES (FETCH_BLOCK_BYTES + 4096u)

/* What both ends must have alike; strings are borrowed from dtype_name(). */
void fetch_describe(Conclave__FetchRequest *out, const expert_layout *layout, uint64_t fingerprint);

/* Does a request fit what is hosted here?
 *   MOE_EMISMATCH  its bytes would mean something else; the text names the field
 *   MOE_EINVAL     no bytes, too many, or outside the expert  */
moe_err fetch_check(const Conclave__FetchRequest *r, const expert_layout *layout,
                    uint64_t fingerprint, errbuf *eb);

/* Answer a call, with an error if need be.  block [FETCH_BLOCK_BYTES] is scratch.  Returns how many
 * bytes were given. */
uint32_t fetch_serve(expert_store *s, uint64_t fingerprint, const Conclave__FetchRequest *r,
                     void *block, rpc_call *call);

/* Is it the block of `bytes` that was asked for?
 *   MOE_EINVAL  it is of another size  */
moe_err fetch_check_reply(const Conclave__FetchReply *reply, size_t bytes, errbuf *eb);

/* Do the lists of a request fit each other, and do all texts fit their bounds?
 *   MOE_EINVAL  the text names the list  */
moe_err fetch_check_peers(const Conclave__HostRequest *r, errbuf *eb);

#endif
