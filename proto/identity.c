#include "proto/identity.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static void
read_host_id(char out[HOST_ID_MAX])
{
    char boot[48] = "unknown";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (f != NULL) {
        if (fscanf(f, "%47s", boot) != 1) snprintf(boot, sizeof boot, "unknown");
        fclose(f);
    }
    /* Two containers on one kernel share memory only if they share /dev/shm. */
    struct stat st = {0};
    if (stat("/dev/shm", &st) != 0) st.st_dev = 0;
    snprintf(out, HOST_ID_MAX, "%s/%llx", boot, (unsigned long long)st.st_dev);
}

void
identity_init(identity *out, const checkpoint *c, const kernel_table *kernels,
              moe_dtype expert_dtype, moe_dtype attn_dtype, moe_dtype kv_dtype)
{
    const model_config *config = checkpoint_config(c);
    conclave__model_identity__init(&out->model);
    out->model.fingerprint = checkpoint_fingerprint(c);
    out->model.num_layers = config->num_layers;
    out->model.num_experts = config->num_experts;
    out->model.top_k = config->top_k;
    out->model.hidden_size = config->hidden_size;
    out->model.intermediate_size = config->intermediate_size;
    out->model.vocab_size = config->vocab_size;

    conclave__numeric_class__init(&out->numeric);
    out->numeric.expert_dtype = (char *)(uintptr_t)dtype_name(expert_dtype);
    out->numeric.attn_dtype = (char *)(uintptr_t)dtype_name(attn_dtype);
    out->numeric.kv_dtype = (char *)(uintptr_t)dtype_name(kv_dtype);
    /* f32, int8 and int4 products are the same on every tier; bf16 products round as their tier
     * does. */
    out->numeric.isa = (char *)(uintptr_t)(expert_dtype == DTYPE_BF16 ? kernels->bf16_tier : "any");
    read_host_id(out->host_id);
}

static moe_err
check_model(const Conclave__ModelIdentity *mine, const char *peer,
            const Conclave__ModelIdentity *theirs, errbuf *eb)
{
    if (theirs->fingerprint != mine->fingerprint)
        return err_set(eb, MOE_EMISMATCH,
                       "%s serves another model: fingerprint %016llx, this one's is %016llx", peer,
                       (unsigned long long)theirs->fingerprint,
                       (unsigned long long)mine->fingerprint);
    const struct {
        const char *name;
        uint32_t theirs, mine;
    } sizes[] = {{"num_layers", theirs->num_layers, mine->num_layers},
                 {"num_experts", theirs->num_experts, mine->num_experts},
                 {"top_k", theirs->top_k, mine->top_k},
                 {"hidden_size", theirs->hidden_size, mine->hidden_size},
                 {"intermediate_size", theirs->intermediate_size, mine->intermediate_size},
                 {"vocab_size", theirs->vocab_size, mine->vocab_size}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (sizes[i].theirs != sizes[i].mine)
            return err_set(eb, MOE_EMISMATCH, "%s serves another model: %s %u, this one's is %u",
                           peer, sizes[i].name, sizes[i].theirs, sizes[i].mine);
    }
    return MOE_OK;
}

moe_err
identity_check(const identity *mine, const char *peer, const char *version,
               const Conclave__ModelIdentity *model, const Conclave__NumericClass *numeric,
               errbuf *eb)
{
    if (strcmp(version, CONCLAVE_VERSION) != 0)
        return err_set(eb, MOE_EMISMATCH, "%s runs version %.32s, this is %s", peer, version,
                       CONCLAVE_VERSION);
    if (model == NULL || numeric == NULL)
        return err_set(eb, MOE_EINVAL, "%s does not say which model it serves", peer);
    const moe_err err = check_model(&mine->model, peer, model, eb);
    if (err) return err;
    if (strcmp(numeric->expert_dtype, mine->numeric.expert_dtype) != 0)
        return err_set(eb, MOE_EMISMATCH, "%s has experts in %.16s, this cell uses %s (--dtype)",
                       peer, numeric->expert_dtype, mine->numeric.expert_dtype);
    if (strcmp(numeric->isa, mine->numeric.isa) != 0)
        return err_set(
            eb, MOE_EMISMATCH,
            "%s rounds bf16 products as tier %.16s, this cell as %s: results would differ", peer,
            numeric->isa, mine->numeric.isa);
    return MOE_OK;
}
