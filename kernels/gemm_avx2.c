/* gemm_avx2: gemm.h with 8 floats or 32 bytes a register; cut by gemm_blocks.h. */
#include <assert.h>
#include <string.h>

#include "kernels/avx2.h"
#include "kernels/gemm_blocks.h"
#include "kernels/tiers.h"

/* Of 16 registers 12 hold sums: a row of a tile takes two. */
#define SUMS_MAX 12
#define FLOAT_CHUNK_K 128
#define FLOAT_STRIDE (FLOAT_CHUNK_K * sizeof(float) + 64)
#define WIDE_CHUNK_K 192
#define WIDE_STRIDE 448
#define CHUNK_K 256
#define BYTE_STRIDE 320

/* Register (r * tiles + t) * 2 and the next hold row r, tile t. */
KERNEL_INLINE void
sums_load(gemm_chunk c, __m256 *s, int rows, int tiles)
{
    EACH_ROW(r, UNROLL for (int t = 0; t < 2 * tiles; t++) s[r * 2 * tiles + t] =
                    _mm256_load_ps(c.acc + t / 2 * ACC_TILE + r * TILE_N + t % 2 * 8);)
}

KERNEL_INLINE void
sums_store(gemm_chunk c, const __m256 *s, int rows, int tiles)
{
    EACH_ROW(r, UNROLL for (int t = 0; t < 2 * tiles; t++) _mm256_store_ps(
                    c.acc + t / 2 * ACC_TILE + r * TILE_N + t % 2 * 8, s[r * 2 * tiles + t]);)
}

static void
stage_float(const char *row, uint32_t k64, uint32_t k, uint32_t count, char *staged)
{
    (void)k64;
    memcpy(staged, row + (size_t)k * sizeof(float), count * sizeof(float));
}

KERNEL_INLINE const float *
float_row(gemm_chunk c, int r)
{
    return (const float *)(const void *)(c.a + r * FLOAT_STRIDE);
}

KERNEL_INLINE void
f32_pass(gemm_chunk c, int rows, int tiles)
{
    const char *w = c.w, *next = c.next;
    __m256 s[SUMS_MAX];
    sums_load(c, s, rows, tiles);
    for (uint32_t k = 0; k < c.count; k++, w += TILE_N * 4, next += c.next_step) {
        EACH_TILE(t, const float *v = (const float *)(const void *)(w + t * c.tile_bytes);
                  const __m256 w0 = _mm256_load_ps(v), w1 = _mm256_load_ps(v + 8);
                  EACH_ROW(r, const __m256 x = _mm256_broadcast_ss(float_row(c, r) + k);
                           __m256 *p = s + (r * tiles + t) * 2; p[0] = _mm256_fmadd_ps(x, w0, p[0]);
                           p[1] = _mm256_fmadd_ps(x, w1, p[1]);))
        prefetch_tiles(c, next, tiles);
    }
    sums_store(c, s, rows, tiles);
}

/* A 32-bit lane holds the weights of k (lower half) and k + 1 (upper half). */
KERNEL_INLINE void
bf16_pass(gemm_chunk c, int rows, int tiles)
{
    const __m256i upper = _mm256_set1_epi32((int32_t)0xffff0000);
    const char *w = c.w, *next = c.next;
    __m256 s[SUMS_MAX];
    sums_load(c, s, rows, tiles);
    for (uint32_t k = 0; k < c.count; k += 2, w += TILE_N * 4, next += c.next_step) {
        EACH_TILE(
            t, const __m256i *v = (const __m256i *)(const void *)(w + t * c.tile_bytes);
            const __m256i v0 = _mm256_load_si256(v), v1 = _mm256_load_si256(v + 1);
            const __m256 even0 = _mm256_castsi256_ps(_mm256_slli_epi32(v0, 16));
            const __m256 even1 = _mm256_castsi256_ps(_mm256_slli_epi32(v1, 16));
            EACH_ROW(r, const __m256 x = _mm256_broadcast_ss(float_row(c, r) + k);
                     __m256 *p = s + (r * tiles + t) * 2; p[0] = _mm256_fmadd_ps(x, even0, p[0]);
                     p[1] = _mm256_fmadd_ps(x, even1, p[1]);) const __m256 odd0 =
                _mm256_castsi256_ps(_mm256_and_si256(v0, upper));
            const __m256 odd1 = _mm256_castsi256_ps(_mm256_and_si256(v1, upper));
            EACH_ROW(r, const __m256 x = _mm256_broadcast_ss(float_row(c, r) + k + 1);
                     __m256 *p = s + (r * tiles + t) * 2; p[0] = _mm256_fmadd_ps(x, odd0, p[0]);
                     p[1] = _mm256_fmadd_ps(x, odd1, p[1]);))
        prefetch_tiles(c, next, tiles);
    }
    sums_store(c, s, rows, tiles);
}

/* A staged row of a chunk for int8 weights: q as 16 bits, of each four k the even ones, then the
 * odd ones. */
typedef struct wide_row {
    int16_t q[WIDE_CHUNK_K];
    float scale[WIDE_CHUNK_K / GROUP_K];
    int32_t start[WIDE_CHUNK_K / GROUP_K]; /* -128 * sum(q) */
} wide_row;

/* The same for int4 weights. */
typedef struct byte_row {
    int8_t q[CHUNK_K];
    float scale[CHUNK_K / GROUP_K];
    int32_t start[CHUNK_K / GROUP_INT4]; /* -8 * sum(q) */
} byte_row;

static_assert(sizeof(wide_row) <= WIDE_STRIDE && sizeof(byte_row) <= BYTE_STRIDE, "a row fits");
static_assert(FLOAT_STRIDE <= STAGE_STRIDE_MAX, "the largest of them");

static void
stage_wide(const char *row, uint32_t k64, uint32_t k, uint32_t count, char *staged)
{
    const __m128i even_odd = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    wide_row *s = (wide_row *)(void *)staged;
    for (uint32_t i = 0; i < count; i += 16) {
        const __m128i q = _mm_load_si128((const __m128i *)(const void *)(row + k + i));
        const __m256i wide = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(q, even_odd));
        _mm256_store_si256((__m256i *)(void *)(s->q + i), wide);
    }
    memcpy(s->scale, act_scales(row, k64) + k / GROUP_K, count / GROUP_K * sizeof(float));
    const int16_t *sums = act_sums(row, k64) + k / GROUP_INT4;
    for (uint32_t g = 0; g < count / GROUP_K; g++)
        s->start[g] = -128 * (sums[2 * g] + sums[2 * g + 1]);
}

static void
stage_bytes(const char *row, uint32_t k64, uint32_t k, uint32_t count, char *staged)
{
    byte_row *s = (byte_row *)(void *)staged;
    const int16_t *sums = act_sums(row, k64) + k / GROUP_INT4;
    memcpy(s->q, row + k, count);
    memcpy(s->scale, act_scales(row, k64) + k / GROUP_K, count / GROUP_K * sizeof(float));
    for (uint32_t g = 0; g < count / GROUP_INT4; g++)
        s->start[g] = -8 * sums[g];
}

KERNEL_INLINE const wide_row *
wide_at(gemm_chunk c, int r)
{
    return (const wide_row *)(const void *)(c.a + r * WIDE_STRIDE);
}

KERNEL_INLINE const byte_row *
row_at(gemm_chunk c, int r)
{
    return (const byte_row *)(const void *)(c.a + r * BYTE_STRIDE);
}

KERNEL_INLINE __m256i
broadcast4(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}

/* acc = fma((float)s, a_scale * w_scale, acc) for the two halves of a tile. */
KERNEL_INLINE void
group_finish(float *acc, __m256i s0, __m256i s1, const float *a_scale, __m256 scale0, __m256 scale1)
{
    const __m256 a = _mm256_broadcast_ss(a_scale);
    const __m256 p0 =
        _mm256_fmadd_ps(_mm256_cvtepi32_ps(s0), _mm256_mul_ps(a, scale0), _mm256_load_ps(acc));
    const __m256 p1 =
        _mm256_fmadd_ps(_mm256_cvtepi32_ps(s1), _mm256_mul_ps(a, scale1), _mm256_load_ps(acc + 8));
    _mm256_store_ps(acc, p0);
    _mm256_store_ps(acc + 8, p1);
}

/* sum + two products of 16 bits in each of 8 lanes: exact.  vpmaddubsw would take bytes as they
 * are, but wants one side unsigned: moving a's sign to w costs an instruction a product, and more
 * than the widening of w, which all rows share (measured on Zen 4: 20 multiply-adds a
 * cycle, where signs gave 16). */
KERNEL_INLINE __m256i
dot2(__m256i sum, __m256i w, __m256i a)
{
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w, a));
    KEEP_SUM(sum);
    return sum;
}

KERNEL_INLINE void
int8_pass(gemm_chunk c, int rows, int tiles)
{
    const __m256i low = _mm256_set1_epi16(0xff);
    const char *w = c.w, *next = c.next;
    for (uint32_t g = 0; g < c.count / GROUP_K; g++) {
        KEEP_IN_MEMORY;
        __m256i s[SUMS_MAX];
        EACH_ROW(r, const __m256i start = _mm256_set1_epi32(wide_at(c, r)->start[g]);
                 EACH_TILE(t, s[(r * tiles + t) * 2] = s[(r * tiles + t) * 2 + 1] = start;))
        for (uint32_t step = 0; step < GROUP_K / 4; step++, w += 64, next += c.next_step) {
            EACH_TILE(t, const __m256i *v = (const __m256i *)(const void *)(w + t * c.tile_bytes);
                      const __m256i v0 = _mm256_load_si256(v), v1 = _mm256_load_si256(v + 1);
                      const __m256i even0 = _mm256_and_si256(v0, low);
                      const __m256i even1 = _mm256_and_si256(v1, low);
                      const __m256i odd0 = _mm256_srli_epi16(v0, 8),
                      odd1 = _mm256_srli_epi16(v1, 8);
                      EACH_ROW(r, const int16_t *q = wide_at(c, r)->q + g * GROUP_K + step * 4;
                               const __m256i a_even = broadcast4(q), a_odd = broadcast4(q + 2);
                               __m256i *p = s + (r * tiles + t) * 2;
                               p[0] = dot2(p[0], even0, a_even); p[1] = dot2(p[1], even1, a_even);
                               p[0] = dot2(p[0], odd0, a_odd); p[1] = dot2(p[1], odd1, a_odd);))
            prefetch_tiles(c, next, tiles);
        }
        EACH_TILE(t, const float *w_scale = (const float *)(const void *)(w + t * c.tile_bytes);
                  const __m256 scale0 = _mm256_load_ps(w_scale),
                  scale1 = _mm256_load_ps(w_scale + 8);
                  EACH_ROW(r, const __m256i *p = s + (r * tiles + t) * 2;
                           group_finish(c.acc + t * ACC_TILE + r * TILE_N, p[0], p[1],
                                        wide_at(c, r)->scale + g, scale0, scale1);))
        prefetch_tiles(c, next, tiles);
        w += 64, next += c.next_step;
    }
}

/* 4 nibbles times 4 bytes along K, as two sums of pairs in 16 bits: of one group 8 of them add up
 * to 15 * 127 * 2 * 8 = 30480 at most, so no sum overflows before the group's end. */
KERNEL_INLINE __m256i
nibbles4(__m256i sum, __m256i u, __m256i a)
{
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(u, a));
    KEEP_SUM(sum);
    return sum;
}

KERNEL_INLINE void
int4_group(gemm_chunk c, const char *w, const char *scales, const char *next, uint32_t g,
           float *acc, int rows)
{
    KEEP_IN_MEMORY;
    const __m256i mask = _mm256_set1_epi8(0xf), ones = _mm256_set1_epi16(1);
    __m256i s[SUMS_MAX];
    EACH_ROW(r, s[2 * r] = s[2 * r + 1] = _mm256_setzero_si256();)
    UNROLL for (uint32_t v = 0; v < GROUP_INT4 / 8; v++)
    {
        const __m256i *p = (const __m256i *)(const void *)(w + v * 64);
        const __m256i both0 = _mm256_load_si256(p), both1 = _mm256_load_si256(p + 1);
        __builtin_prefetch(next + v * c.next_step, 0, 2);
        __m256i u0 = _mm256_and_si256(both0, mask), u1 = _mm256_and_si256(both1, mask);
        EACH_ROW(r, const __m256i x = broadcast4(row_at(c, r)->q + g * GROUP_INT4 + v * 4);
                 s[2 * r] = nibbles4(s[2 * r], u0, x);
                 s[2 * r + 1] = nibbles4(s[2 * r + 1], u1, x);)
        u0 = _mm256_and_si256(_mm256_srli_epi16(both0, 4), mask);
        u1 = _mm256_and_si256(_mm256_srli_epi16(both1, 4), mask);
        EACH_ROW(r, const __m256i x = broadcast4(row_at(c, r)->q + g * GROUP_INT4 + 16 + v * 4);
                 s[2 * r] = nibbles4(s[2 * r], u0, x);
                 s[2 * r + 1] = nibbles4(s[2 * r + 1], u1, x);)
    }
    const uint16_t *half = (const uint16_t *)(const void *)scales;
    const __m256 scale0 = half_widen_8(half), scale1 = half_widen_8(half + 8);
    EACH_ROW(r, const byte_row *row = row_at(c, r);
             const __m256i start = _mm256_set1_epi32(row->start[g]); group_finish(
                 acc + r * TILE_N, _mm256_add_epi32(_mm256_madd_epi16(s[2 * r], ones), start),
                 _mm256_add_epi32(_mm256_madd_epi16(s[2 * r + 1], ones), start), row->scale + g / 2,
                 scale0, scale1);)
}

KERNEL_INLINE void
int4_pass(gemm_chunk c, int rows, int tiles)
{
    const size_t block = 576;
    const char *w = c.w, *next = c.next;
    for (uint32_t g = 0; g < c.count / GROUP_K; g++, w += block, next += 9 * c.next_step) {
        EACH_TILE(
            t, const char *wt = w + t * c.tile_bytes, *nt = next + t * c.tile_bytes;
            float *acc = c.acc + t * ACC_TILE; int4_group(c, wt, wt + 512, nt, 2 * g, acc, rows);
            int4_group(c, wt + 256, wt + 512 + 32, nt + 4 * c.next_step, 2 * g + 1, acc, rows);
            __builtin_prefetch(nt + 8 * c.next_step, 0, 2);)
    }
}

/* The combinations of rows and tiles that a pass may have, each with its own inlined body; `more`
 * holds those beyond 4 rows. */
#define DEFINE_PASS(name, body, more)                                                              \
    static void name(const gemm_chunk *c, uint32_t rows, uint32_t tiles)                           \
    {                                                                                              \
        switch (rows * 8 + tiles) {                                                                \
        case 1 * 8 + 1: body(*c, 1, 1); return;                                                    \
        case 1 * 8 + 2: body(*c, 1, 2); return;                                                    \
        case 1 * 8 + 4: body(*c, 1, 4); return;                                                    \
        case 2 * 8 + 1: body(*c, 2, 1); return;                                                    \
        case 2 * 8 + 2: body(*c, 2, 2); return;                                                    \
        case 3 * 8 + 1: body(*c, 3, 1); return;                                                    \
        case 4 * 8 + 1:                                                                            \
            body(*c, 4, 1);                                                                        \
            return;                                                                                \
            more(body) default : assert(0 && "no such shape");                                     \
        }                                                                                          \
    }
#define NO_MORE(body)
#define MORE_FLOATS(body)                                                                          \
    case 3 * 8 + 2: body(*c, 3, 2); return;                                                        \
    case 5 * 8 + 1: body(*c, 5, 1); return;                                                        \
    case 6 * 8 + 1: body(*c, 6, 1); return;

DEFINE_PASS(pass_f32, f32_pass, MORE_FLOATS)
DEFINE_PASS(pass_bf16, bf16_pass, MORE_FLOATS)
DEFINE_PASS(pass_int8, int8_pass, NO_MORE)
DEFINE_PASS(pass_int4, int4_pass, NO_MORE)

static void
silu_store(const float *acc, uint32_t rows, uint32_t tiles, float *out, size_t out_stride)
{
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t n = 0; n < tiles * TILE_N / 2; n += 8) {
            const float *gate = acc + n / TILE_N * 2 * ACC_TILE + r * TILE_N + n % TILE_N;
            const __m256 up = _mm256_load_ps(gate + ACC_TILE);
            const __m256 y = _mm256_mul_ps(silu_8(_mm256_load_ps(gate)), up);
            _mm256_storeu_ps(out + r * out_stride + n, y);
        }
    }
}

static const gemm_kernel f32_kernel = {
    .dtype = DTYPE_F32,
    .chunk_k = FLOAT_CHUNK_K,
    .stage_stride = FLOAT_STRIDE,
    .rows_max = {0, 6, 3, 0, 1},
    .tiles_many = 1,
    .stage = stage_float,
    .pass = pass_f32,
    .silu = silu_store,
};

static const gemm_kernel bf16_kernel = {
    .dtype = DTYPE_BF16,
    .chunk_k = FLOAT_CHUNK_K,
    .stage_stride = FLOAT_STRIDE,
    .rows_max = {0, 5, 3, 0, 1}, /* six rows' sums leave no register for widened weights */
    .tiles_many = 1,
    .stage = stage_float,
    .pass = pass_bf16,
    .silu = silu_store,
};

static const gemm_kernel int8_kernel = {
    .dtype = DTYPE_INT8,
    .chunk_k = WIDE_CHUNK_K,
    .stage_stride = WIDE_STRIDE,
    .rows_max = {0, 4, 2, 0, 1},
    .tiles_many = 1,
    .stage = stage_wide,
    .pass = pass_int8,
    .silu = silu_store,
};

static const gemm_kernel int4_kernel = {
    .dtype = DTYPE_INT4,
    .chunk_k = CHUNK_K,
    .stage_stride = BYTE_STRIDE,
    .rows_max = {0, 4, 2, 0, 1},
    .tiles_many = 1,
    .stage = stage_bytes,
    .pass = pass_int4,
    .silu = silu_store,
};

void
gemm_f32_avx2(const gemm_args *args)
{
    gemm_blocks(args, &f32_kernel, false);
}

void
gemm_bf16_avx2(const gemm_args *args)
{
    gemm_blocks(args, &bf16_kernel, false);
}

void
gemm_int8_avx2(const gemm_args *args)
{
    gemm_blocks(args, &int8_kernel, false);
}

void
gemm_int4_avx2(const gemm_args *args)
{
    gemm_blocks(args, &int4_kernel, false);
}

void
gemm_silu_f32_avx2(const gemm_args *args)
{
    gemm_blocks(args, &f32_kernel, true);
}

void
gemm_silu_bf16_avx2(const gemm_args *args)
{
    gemm_blocks(args, &bf16_kernel, true);
}

void
gemm_silu_int8_avx2(const gemm_args *args)
{
    gemm_blocks(args, &int8_kernel, true);
}

void
gemm_silu_int4_avx2(const gemm_args *args)
{
    gemm_blocks(args, &int4_kernel, true);
}
