/* attention_avx512: attention_tile.h in registers of 16 lanes. */
#include "kernels/attention_tile.h"

#include "kernels/tiers.h"

void
attention_avx512(const attn_args *args)
{
    attention_tiles(args);
}
