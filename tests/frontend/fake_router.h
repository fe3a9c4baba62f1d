/* fake_router: Router's RPC service with scripted behaviour, for tests of the engine.
 *
 * The sampled token is a hash of the tokens fed so far (so that a replay that feeds other tokens is
 * noticed), kept below VOCAB.  Every step checks that start positions follow.
 */
#ifndef MOE_TESTS_FRONTEND_FAKE_ROUTER_H
#define MOE_TESTS_FRONTEND_FAKE_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

#define FAKE_VOCAB 1000u
#define FAKE_SEQS 4u
#define FAKE_MODEL_LEN 128u

typedef struct fake_router fake_router;

typedef struct fake_router_options {
    const char *url;
    uint64_t incarnation;
    uint32_t kv_blocks;  /* of 16 tokens; 0 = enough */
    const char *version; /* NULL = ours */
    uint64_t fingerprint;
    uint32_t refuse_after; /* steps from this number on are refused as invalid; 0 = never */
    bool not_ready;
} fake_router_options;

fake_router *fake_router_start(const fake_router_options *options);
void fake_router_stop(fake_router *r);
uint32_t fake_router_steps(const fake_router *r);

/* What the engine should have sampled: out [count] for a prompt. */
void fake_router_expect(const uint32_t *prompt, uint32_t prompt_len, uint32_t count, uint32_t *out);

#endif
