/* gemm_avx2: gemm.h with 8 floats or 32 bytes a register.
 *
 * Work is cut so that weights come from DRAM once and then from the L1 cache: a block of up to
 * ROWS_MAX rows meets a bundle of up to BUNDLE_TILES tiles, chunk by chunk along K; a chunk of one
 * tile stays in L1 while all rows of the block pass, a few rows in registers at a time.  Partial
 * sums rest in `acc` between chunks: storing and loading a float changes nothing, and neither does
 * any of these cuts.
 */
#include "kernels/gemm.h"

#include <assert.h>
#include <string.h>

#include "kernels/avx2.h"
#include "kernels/tiers.h"

#define ROWS_MAX 48
#define BUNDLE_TILES 4
#define ACC_STRIDE (BUNDLE_TILES * TILE_N)
#define CHUNK_BYTES 16384 /* of one tile: half of the smallest L1 cache in use */
#define PREFETCH_BYTES 4096

/* A range of K of some tiles, and the rows to multiply with it. */
typedef struct chunk {
    const char *w; /* the first tile's bytes of this chunk */
    size_t tile_bytes;
    const char *const *a; /* [rows] */
    uint32_t k, count;    /* multiples of GROUP_K */
    uint32_t k64;
    float *acc; /* row r, tile t at acc + r * ACC_STRIDE + t * TILE_N */
} chunk;

/* acc += rows x tiles over the chunk, both as many as pass together in registers. */
typedef void chunk_fn(const chunk *c, uint32_t rows, uint32_t tiles);

/* Several rows spend long enough on a line of weights that the hardware's own prefetch falls behind
 * memory; one row alone runs at memory's speed without help.  Past the end it does no harm. */
KERNEL_INLINE void
prefetch_weights(const void *w, int rows)
{
    if (rows > 1) _mm_prefetch((const char *)w + PREFETCH_BYTES, _MM_HINT_T0);
}

/* Register (r * tiles + t) * 2 and the next hold row r, tile t. */
KERNEL_INLINE void
sums_load(const chunk *c, __m256 *s, const float **a, int rows, int tiles)
{
    UNROLL for (int r = 0; r < rows; r++)
    {
        a[r] = (const float *)(const void *)c->a[r] + c->k;
        const float *acc = c->acc + r * ACC_STRIDE;
        UNROLL for (int t = 0; t < 2 * tiles; t++)
        {
            s[r * 2 * tiles + t] = _mm256_loadu_ps(acc + 8 * t);
        }
    }
}

KERNEL_INLINE void
sums_store(const chunk *c, const __m256 *s, int rows, int tiles)
{
    UNROLL for (int r = 0; r < rows; r++)
    {
        float *acc = c->acc + r * ACC_STRIDE;
        UNROLL for (int t = 0; t < 2 * tiles; t++)
        {
            _mm256_storeu_ps(acc + 8 * t, s[r * 2 * tiles + t]);
        }
    }
}

KERNEL_INLINE void
f32_chunk(const chunk *c, int rows, int tiles)
{
    const float *w = (const float *)(const void *)c->w;
    const size_t stride = c->tile_bytes / sizeof(float);
    const float *a[6];
    __m256 s[12];
    sums_load(c, s, a, rows, tiles);
    for (uint32_t k = 0; k < c->count; k++, w += TILE_N) {
        UNROLL for (int t = 0; t < tiles; t++)
        {
            prefetch_weights(w + t * stride, rows);
            const __m256 w0 = _mm256_load_ps(w + t * stride);
            const __m256 w1 = _mm256_load_ps(w + t * stride + 8);
            UNROLL for (int r = 0; r < rows; r++)
            {
                const __m256 x = _mm256_broadcast_ss(a[r] + k);
                __m256 *p = s + (r * tiles + t) * 2;
                p[0] = _mm256_fmadd_ps(x, w0, p[0]);
                p[1] = _mm256_fmadd_ps(x, w1, p[1]);
            }
        }
    }
    sums_store(c, s, rows, tiles);
}

/* A 32-bit lane holds the weights of k (lower half) and k + 1 (upper half). */
KERNEL_INLINE void
bf16_chunk(const chunk *c, int rows, int tiles)
{
    const __m256i upper = _mm256_set1_epi32((int32_t)0xffff0000);
    const char *w = c->w;
    const float *a[6];
    __m256 s[12];
    sums_load(c, s, a, rows, tiles);
    for (uint32_t k = 0; k < c->count; k += 2, w += TILE_N * 4) {
        UNROLL for (int t = 0; t < tiles; t++)
        {
            const __m256i *v = (const __m256i *)(const void *)(w + t * c->tile_bytes);
            prefetch_weights(v, rows);
            const __m256i v0 = _mm256_load_si256(v), v1 = _mm256_load_si256(v + 1);
            const __m256 even0 = _mm256_castsi256_ps(_mm256_slli_epi32(v0, 16));
            const __m256 even1 = _mm256_castsi256_ps(_mm256_slli_epi32(v1, 16));
            UNROLL for (int r = 0; r < rows; r++)
            {
                const __m256 x = _mm256_broadcast_ss(a[r] + k);
                __m256 *p = s + (r * tiles + t) * 2;
                p[0] = _mm256_fmadd_ps(x, even0, p[0]);
                p[1] = _mm256_fmadd_ps(x, even1, p[1]);
            }
            const __m256 odd0 = _mm256_castsi256_ps(_mm256_and_si256(v0, upper));
            const __m256 odd1 = _mm256_castsi256_ps(_mm256_and_si256(v1, upper));
            UNROLL for (int r = 0; r < rows; r++)
            {
                const __m256 x = _mm256_broadcast_ss(a[r] + k + 1);
                __m256 *p = s + (r * tiles + t) * 2;
                p[0] = _mm256_fmadd_ps(x, odd0, p[0]);
                p[1] = _mm256_fmadd_ps(x, odd1, p[1]);
            }
        }
    }
    sums_store(c, s, rows, tiles);
}

/* sum + the products of 4 bytes along K in each of 8 lanes.  vpmaddubsw wants one unsigned side: it
 * gets |a|, and a's sign goes to w.  Both are within 127, so a pair sum is at most 32258: exact. */
KERNEL_INLINE __m256i
dot4(__m256i sum, __m256i a, __m256i a_abs, __m256i w)
{
    const __m256i pairs = _mm256_maddubs_epi16(a_abs, _mm256_sign_epi8(w, a));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

KERNEL_INLINE __m256i
broadcast4(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}

KERNEL_INLINE void
int8_group(const char *w, const char *const *a, uint32_t k, uint32_t k64, float *acc, int rows)
{
    const __m256i *v = (const __m256i *)(const void *)w;
    __m256i s[12];
    UNROLL for (int i = 0; i < 2 * rows; i++) s[i] = _mm256_setzero_si256();
    for (uint32_t step = 0; step < GROUP_K / 4; step++, v += 2) {
        prefetch_weights(v, rows);
        const __m256i w0 = _mm256_load_si256(v), w1 = _mm256_load_si256(v + 1);
        UNROLL for (int r = 0; r < rows; r++)
        {
            const __m256i x = broadcast4((const int8_t *)a[r] + k + step * 4);
            const __m256i x_abs = _mm256_abs_epi8(x);
            s[2 * r] = dot4(s[2 * r], x, x_abs, w0);
            s[2 * r + 1] = dot4(s[2 * r + 1], x, x_abs, w1);
        }
    }
    const float *w_scale = (const float *)(const void *)v;
    const __m256 scale0 = _mm256_load_ps(w_scale), scale1 = _mm256_load_ps(w_scale + 8);
    UNROLL for (int r = 0; r < rows; r++)
    {
        const float *a_scale = (const float *)(const void *)(a[r] + k64);
        const __m256 x = _mm256_broadcast_ss(a_scale + k / GROUP_K);
        float *p = acc + r * ACC_STRIDE;
        const __m256 p0 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[2 * r]), _mm256_mul_ps(x, scale0),
                                          _mm256_loadu_ps(p));
        const __m256 p1 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[2 * r + 1]),
                                          _mm256_mul_ps(x, scale1), _mm256_loadu_ps(p + 8));
        _mm256_storeu_ps(p, p0);
        _mm256_storeu_ps(p + 8, p1);
    }
}

KERNEL_INLINE void
int8_chunk(const chunk *c, int rows, int tiles)
{
    for (int t = 0; t < tiles; t++) {
        const char *w = c->w + t * c->tile_bytes;
        for (uint32_t k = c->k; k < c->k + c->count; k += GROUP_K) {
            int8_group(w, c->a, k, c->k64, c->acc + t * TILE_N, rows);
            w += GROUP_K * TILE_N + TILE_N * sizeof(float);
        }
    }
}

/* The combinations of rows and tiles that chunk_run() asks for, each with its own inlined body. */
#define DEFINE_RUN(name, body)                                                                     \
    static void name(const chunk *c, uint32_t rows, uint32_t tiles)                                \
    {                                                                                              \
        switch (rows * 8 + tiles) {                                                                \
        case 1 * 8 + 1: body(c, 1, 1); return;                                                     \
        case 1 * 8 + 2: body(c, 1, 2); return;                                                     \
        case 1 * 8 + 4: body(c, 1, 4); return;                                                     \
        case 2 * 8 + 1: body(c, 2, 1); return;                                                     \
        case 2 * 8 + 2: body(c, 2, 2); return;                                                     \
        case 3 * 8 + 1: body(c, 3, 1); return;                                                     \
        case 3 * 8 + 2: body(c, 3, 2); return;                                                     \
        case 4 * 8 + 1: body(c, 4, 1); return;                                                     \
        case 5 * 8 + 1: body(c, 5, 1); return;                                                     \
        case 6 * 8 + 1: body(c, 6, 1); return;                                                     \
        default: assert(0 && "no such shape");                                                     \
        }                                                                                          \
    }

DEFINE_RUN(f32_run, f32_chunk)
DEFINE_RUN(bf16_run, bf16_chunk)
DEFINE_RUN(int8_run, int8_chunk)

typedef struct kernel {
    moe_dtype dtype;
    uint32_t rows_max; /* rows that pass together: their accumulators fit 16 registers */
    chunk_fn *run;
} kernel;

static const kernel f32_kernel = {DTYPE_F32, 6, f32_run};
static const kernel bf16_kernel = {DTYPE_BF16, 6, bf16_run};
static const kernel int8_kernel = {DTYPE_INT8, 4, int8_run};

/* How many tiles pass together: few rows alone have too few FMA chains to hide their latency. */
static uint32_t
tiles_beside(uint32_t rows, uint32_t tiles)
{
    if (rows == 1 && tiles == 4) return 4;
    return rows <= 3 && tiles % 2 == 0 ? 2 : 1;
}

/* All rows of the block times all tiles of the bundle, over one chunk of K. */
static void
chunk_run(const kernel *kn, chunk c, uint32_t rows, uint32_t tiles)
{
    const uint32_t beside = tiles_beside(rows, tiles);
    const uint32_t passes = (rows + kn->rows_max - 1) / kn->rows_max;
    for (uint32_t t = 0; t < tiles; t += beside) {
        chunk part = c;
        part.w = c.w + t * c.tile_bytes;
        part.acc = c.acc + t * TILE_N;
        uint32_t left = rows;
        for (uint32_t pass = passes; pass > 0; pass--) {
            const uint32_t take = (left + pass - 1) / pass; /* 8 rows: 4 + 4, not 6 + 2 */
            kn->run(&part, take, beside);
            part.a += take;
            part.acc += take * ACC_STRIDE;
            left -= take;
        }
    }
}

/* acc = a block of rows times the bundle of tiles that starts at w. */
static void
bundle_run(const kernel *kn, const char *w, uint32_t k64, const char *const *a, uint32_t rows,
           uint32_t tiles, float *acc)
{
    const size_t bytes = tile_bytes(kn->dtype, k64);
    const size_t group_bytes = tile_bytes(kn->dtype, GROUP_K);
    /* Rows that pass only once gain nothing from chunks: they read whole tiles in order. */
    const uint32_t step =
        rows <= kn->rows_max ? k64 : (uint32_t)(CHUNK_BYTES / group_bytes) * GROUP_K;

    memset(acc, 0, rows * ACC_STRIDE * sizeof *acc);
    for (uint32_t k = 0; k < k64; k += step) {
        const chunk c = {
            .w = w + k / GROUP_K * group_bytes,
            .tile_bytes = bytes,
            .a = a,
            .k = k,
            .count = k64 - k < step ? k64 - k : step,
            .k64 = k64,
            .acc = acc,
        };
        chunk_run(kn, c, rows, tiles);
    }
}

static void
store_plain(const float *acc, uint32_t rows, uint32_t tiles, float *out, size_t out_stride)
{
    for (uint32_t r = 0; r < rows; r++)
        memcpy(out + r * out_stride, acc + r * ACC_STRIDE, tiles * TILE_N * sizeof *out);
}

static void
store_silu(const float *acc, uint32_t rows, uint32_t tiles, float *out, size_t out_stride)
{
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t n = 0; n < tiles * TILE_N / 2; n += 8) {
            const float *gate = acc + r * ACC_STRIDE + n / TILE_N * 2 * TILE_N + n % TILE_N;
            const __m256 up = _mm256_loadu_ps(gate + TILE_N);
            const __m256 y = _mm256_mul_ps(silu_8(_mm256_loadu_ps(gate)), up);
            _mm256_storeu_ps(out + r * out_stride + n, y);
        }
    }
}

/* tiles_per_column: 1, or 2 where a gate and an up tile make one column of tiles in out. */
static void
gemm(const gemm_args *args, const kernel *kn, uint32_t tiles_per_column)
{
    const uint32_t k64 = pad_k(args->k);
    const size_t bytes = tile_bytes(kn->dtype, k64);
    const char *a[ROWS_MAX];
    _Alignas(64) float acc[ROWS_MAX * ACC_STRIDE];

    for (uint32_t i = 0; i < args->m; i += ROWS_MAX) {
        const uint32_t rows = args->m - i < ROWS_MAX ? args->m - i : ROWS_MAX;
        for (uint32_t r = 0; r < rows; r++) {
            const size_t row = args->rows ? args->rows[i + r] : i + r;
            a[r] = (const char *)args->a + row * args->a_stride;
        }
        for (uint32_t t = args->tile_begin; t < args->tile_end; t += BUNDLE_TILES) {
            const uint32_t left = args->tile_end - t;
            const uint32_t tiles = left < BUNDLE_TILES ? left : BUNDLE_TILES;
            float *out = args->out + i * args->out_stride + (size_t)t / tiles_per_column * TILE_N;
            bundle_run(kn, (const char *)args->w + t * bytes, k64, a, rows, tiles, acc);
            if (tiles_per_column == 2)
                store_silu(acc, rows, tiles, out, args->out_stride);
            else
                store_plain(acc, rows, tiles, out, args->out_stride);
        }
    }
}

void
gemm_f32_avx2(const gemm_args *args)
{
    gemm(args, &f32_kernel, 1);
}

void
gemm_bf16_avx2(const gemm_args *args)
{
    gemm(args, &bf16_kernel, 1);
}

void
gemm_int8_avx2(const gemm_args *args)
{
    gemm(args, &int8_kernel, 1);
}

void
gemm_silu_f32_avx2(const gemm_args *args)
{
    gemm(args, &f32_kernel, 2);
}

void
gemm_silu_bf16_avx2(const gemm_args *args)
{
    gemm(args, &bf16_kernel, 2);
}

void
gemm_silu_int8_avx2(const gemm_args *args)
{
    gemm(args, &int8_kernel, 2);
}
