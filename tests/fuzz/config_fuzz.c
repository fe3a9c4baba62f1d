/* config_fuzz: whatever the bytes, a config.json is refused or yields sizes within their limits. */
#include <assert.h>
#include <stdint.h>

#include "model/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    model_config c;
    errbuf eb;
    if (model_config_parse(&c, (const char *)data, size, &eb) != MOE_OK) return 0;
    assert(c.vocab_size >= 1 && c.vocab_size <= MODEL_VOCAB_MAX);
    assert(c.hidden_size >= 1 && c.hidden_size <= MODEL_DIM_MAX);
    assert(c.intermediate_size >= 1 && c.intermediate_size <= MODEL_DIM_MAX);
    assert(c.num_layers >= 1 && c.num_layers <= MODEL_LAYER_MAX);
    assert(c.num_experts >= c.top_k && c.num_experts <= MODEL_EXPERT_MAX);
    assert(c.top_k >= 1 && c.top_k <= MODEL_TOPK_MAX);
    assert(c.num_kv_heads >= 1 && c.num_heads % c.num_kv_heads == 0);
    assert(c.head_dim >= 2 && c.head_dim % 2 == 0);
    assert((uint64_t)c.num_heads * c.head_dim <= MODEL_DIM_MAX);
    assert(c.max_position >= 1 && c.max_position <= MODEL_POSITION_MAX);
    assert(c.rms_norm_eps > 0 && c.rope_theta >= 1);
    assert(c.bos_id == UINT32_MAX || c.bos_id < c.vocab_size);
    assert(c.eos_count <= MODEL_EOS_MAX);
    for (uint32_t i = 0; i < c.eos_count; i++) {
        assert(c.eos_ids[i] < c.vocab_size);
    }
    return 0;
}
