/* attention_avx2: attention_tile.h in pairs of 8-lane registers. */
#include "kernels/attention_tile.h"

#include "kernels/tiers.h"

void
attention_avx2(const attn_args *args)
{
    attention_tiles(args);
}
