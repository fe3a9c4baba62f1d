/* gemm_avx512_vnni: int8 and int4 products with vpdpbusd, 64 multiply-adds an instruction.
 *
 * It multiplies unsigned by signed bytes.  The unsigned side is the weights, lifted by an offset
 * (int8: 128, int4: 8; so they are packed): sum(a (q + offset)) - offset * sum(a)
 * is the group's exact sum.  So each sum starts at -offset * sum(a), which staging takes from the
 * activation row.
 */
#include <assert.h>
#include <string.h>

#include "kernels/gemm_avx512.h"
#include "kernels/tiers.h"

#define CHUNK_K 256
#define CHUNK_GROUPS (CHUNK_K / GROUP_K)

/* A staged row of a chunk. */
typedef struct staged_row {
    int8_t q[CHUNK_K];
    float scale[CHUNK_GROUPS];
    int32_t start[CHUNK_K / GROUP_INT4]; /* -offset * sum(a); a group of 64 uses half of them */
} staged_row;

#define STAGE_STRIDE 320

static_assert(sizeof(staged_row) <= STAGE_STRIDE && STAGE_STRIDE <= STAGE_STRIDE_MAX, "a row fits");

static void
stage_int8(const char *row, uint32_t k64, uint32_t k, uint32_t count, char *staged)
{
    staged_row *s = (staged_row *)(void *)staged;
    const int16_t *sums = act_sums(row, k64) + k / GROUP_INT4;
    const float *scale = act_scales(row, k64) + k / GROUP_K;
    for (uint32_t g = 0; g < count / GROUP_K; g++) {
        _mm512_store_si512(s->q + g * GROUP_K, _mm512_load_si512(row + k + g * GROUP_K));
        s->scale[g] = scale[g];
        s->start[g] = -128 * (sums[2 * g] + sums[2 * g + 1]);
    }
}

static void
stage_int4(const char *row, uint32_t k64, uint32_t k, uint32_t count, char *staged)
{
    staged_row *s = (staged_row *)(void *)staged;
    const int16_t *sums = act_sums(row, k64) + k / GROUP_INT4;
    const float *scale = act_scales(row, k64) + k / GROUP_K;
    for (uint32_t g = 0; g < count / GROUP_K; g++) {
        _mm512_store_si512(s->q + g * GROUP_K, _mm512_load_si512(row + k + g * GROUP_K));
        s->scale[g] = scale[g];
        s->start[2 * g] = -8 * sums[2 * g];
        s->start[2 * g + 1] = -8 * sums[2 * g + 1];
    }
}

KERNEL_INLINE const staged_row *
row_at(gemm_chunk c, int r)
{
    return (const staged_row *)(const void *)(c.a + r * STAGE_STRIDE);
}

KERNEL_INLINE __m512i
broadcast4(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

/* _mm512_dpbusd_epi32, in place: compilers copy the sum around the intrinsic. */
KERNEL_INLINE __m512i
dot4(__m512i sum, __m512i u, __m512i x)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(x));
    return sum;
}

KERNEL_INLINE void
sums_start(gemm_chunk c, __m512i *s, uint32_t start, int rows, int tiles)
{
    EACH_ROW(r, const __m512i v = _mm512_set1_epi32(row_at(c, r)->start[start]);
             EACH_TILE(t, s[r * tiles + t] = v;))
}

/* acc = fma((float)s, a_scale * w_scale, acc) */
KERNEL_INLINE void
sums_finish(gemm_chunk c, const __m512i *s, uint32_t g, const __m512 *w_scale, int rows, int tiles)
{
    EACH_ROW(r, const __m512 a_scale = _mm512_set1_ps(row_at(c, r)->scale[g]);
             EACH_TILE(t, float *acc = c.acc + t * ACC_TILE + r * TILE_N;
                       const __m512 v = _mm512_cvtepi32_ps(s[r * tiles + t]);
                       const __m512 scale = _mm512_mul_ps(a_scale, w_scale[t]);
                       _mm512_store_ps(acc, _mm512_fmadd_ps(v, scale, _mm512_load_ps(acc)));))
}

KERNEL_INLINE void
int8_pass(gemm_chunk c, int rows, int tiles)
{
    const char *w = c.w, *next = c.next;
    for (uint32_t g = 0; g < c.count / GROUP_K; g++) {
        KEEP_IN_MEMORY;
        __m512i s[SUMS_MAX];
        sums_start(c, s, g, rows, tiles);
        for (uint32_t step = 0; step < GROUP_K / 4; step++, w += 64, next += c.next_step) {
            __m512i u[4];
            EACH_TILE(t, u[t] = _mm512_load_si512(w + t * c.tile_bytes);)
            prefetch_tiles(c, next, tiles);
            EACH_ROW(r, const __m512i x = broadcast4(row_at(c, r)->q + g * GROUP_K + step * 4);
                     EACH_TILE(t, s[r * tiles + t] = dot4(s[r * tiles + t], u[t], x);))
        }
        __m512 w_scale[4];
        EACH_TILE(t, w_scale[t] = _mm512_load_ps(w + t * c.tile_bytes);)
        prefetch_tiles(c, next, tiles);
        sums_finish(c, s, g, w_scale, rows, tiles);
        w += 64, next += c.next_step;
    }
}

KERNEL_INLINE void
int4_pass(gemm_chunk c, int rows, int tiles)
{
    const __m512i mask = _mm512_set1_epi8(0xf);
    const char *w = c.w, *next = c.next;
    for (uint32_t g = 0; g < c.count / GROUP_INT4; g++) {
        KEEP_IN_MEMORY;
        const char *scales = w + (g % 2 ? 256 : 512) + g % 2 * 32;
        __m512i s[SUMS_MAX];
        sums_start(c, s, g, rows, tiles);
        for (uint32_t v = 0; v < GROUP_INT4 / 8; v++, w += 64, next += c.next_step) {
            __m512i both[4], u[4];
            EACH_TILE(t, both[t] = _mm512_load_si512(w + t * c.tile_bytes);
                      u[t] = _mm512_and_si512(both[t], mask);)
            prefetch_tiles(c, next, tiles);
            EACH_ROW(r, const __m512i x = broadcast4(row_at(c, r)->q + g * GROUP_INT4 + v * 4);
                     EACH_TILE(t, s[r * tiles + t] = dot4(s[r * tiles + t], u[t], x);))
            EACH_TILE(t, u[t] = _mm512_and_si512(_mm512_srli_epi16(both[t], 4), mask);)
            EACH_ROW(r, const __m512i x = broadcast4(row_at(c, r)->q + g * GROUP_INT4 + 16 + v * 4);
                     EACH_TILE(t, s[r * tiles + t] = dot4(s[r * tiles + t], u[t], x);))
        }
        __m512 w_scale[4];
        EACH_TILE(t, const char *half = scales + t * c.tile_bytes;
                  w_scale[t] =
                      _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)half));)
        sums_finish(c, s, g / 2, w_scale, rows, tiles);
        if (g % 2) {
            prefetch_tiles(c, next, tiles);
            w += 64, next += c.next_step;
        }
    }
}

DEFINE_PASS_AVX512(pass_int8, int8_pass)
DEFINE_PASS_AVX512(pass_int4, int4_pass)

static const gemm_kernel int8_kernel = {
    .dtype = DTYPE_INT8,
    .chunk_k = CHUNK_K,
    .stage_stride = STAGE_STRIDE,
    .rows_max = ROWS_MAX_AVX512,
    .tiles_many = TILES_MANY_AVX512,
    .stage = stage_int8,
    .pass = pass_int8,
    .silu = silu_store_avx512,
};

static const gemm_kernel int4_kernel = {
    .dtype = DTYPE_INT4,
    .chunk_k = CHUNK_K,
    .stage_stride = STAGE_STRIDE,
    .rows_max = ROWS_MAX_AVX512,
    .tiles_many = TILES_MANY_AVX512,
    .stage = stage_int4,
    .pass = pass_int4,
    .silu = silu_store_avx512,
};

void
gemm_int8_avx512_vnni(const gemm_args *args)
{
    gemm_blocks(args, &int8_kernel, false);
}

void
gemm_silu_int8_avx512_vnni(const gemm_args *args)
{
    gemm_blocks(args, &int8_kernel, true);
}

void
gemm_int4_avx512_vnni(const gemm_args *args)
{
    gemm_blocks(args, &int4_kernel, false);
}

void
gemm_silu_int4_avx512_vnni(const gemm_args *args)
{
    gemm_blocks(args, &int4_kernel, true);
}
