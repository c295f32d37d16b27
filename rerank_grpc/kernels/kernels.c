/* Operations that torch has no single call for, on CPUs with AVX-512 VNNI and BF16.
 *
 * Compiled at load by native.py where there is a compiler; cpu.py has a slower
 * twin of each function in torch. Rows are tokens, all matrices are row-major,
 * and bfloat16 values travel as uint16_t.
 */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define TILE 6     /* rows of a register tile */
#define PANEL 64   /* columns of a register tile: 4 registers of 16 */
#define CHUNK 96   /* rows that share a panel of weights while it is in the L2 cache */

typedef uint16_t bf16;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE __m512 widen(const bf16 *x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)x)), 16));
}

INLINE void narrow(bf16 *to, __m512 x) { _mm256_storeu_si256((void *)to, (__m256i)_mm512_cvtneps_pbh(x)); }

/* exp(x) for x <= 0, to 2e-7 of the result; of NaN, which max gives back as its second operand, NaN. */
INLINE __m512 exponential(__m512 x) {
    x = _mm512_mul_ps(_mm512_max_ps(_mm512_set1_ps(-87.0f), x), _mm512_set1_ps(1.44269504088896341f));
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 part = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(1.3333558146e-3f);
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(9.6181291076e-3f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(5.5504108664e-2f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(2.4022650696e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(6.9314718056e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

/* x/2 (1 + erf(x/sqrt 2)); erf as the quotient of polynomials that Eigen uses. */
INLINE __m512 gelu(__m512 x) {
    const __m512 four = _mm512_set1_ps(4.0f);
    __m512 z = _mm512_mul_ps(x, _mm512_set1_ps(0.70710678118654752f));
    z = _mm512_min_ps(_mm512_max_ps(z, _mm512_sub_ps(_mm512_setzero_ps(), four)), four);
    __m512 s = _mm512_mul_ps(z, z);
    __m512 p = _mm512_set1_ps(-2.72614225801306e-10f);
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(2.77068142495902e-08f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-2.10102402082508e-06f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-5.69250639462346e-05f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-7.34990630326855e-04f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-2.95459980854025e-03f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-1.60960333262415e-02f));
    __m512 q = _mm512_set1_ps(-1.45660718464996e-05f);
    q = _mm512_fmadd_ps(q, s, _mm512_set1_ps(-2.13374055278905e-04f));
    q = _mm512_fmadd_ps(q, s, _mm512_set1_ps(-1.68282697438203e-03f));
    q = _mm512_fmadd_ps(q, s, _mm512_set1_ps(-7.37332916720468e-03f));
    q = _mm512_fmadd_ps(q, s, _mm512_set1_ps(-1.42647390514189e-02f));
    __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
    return _mm512_fmadd_ps(half, _mm512_div_ps(_mm512_mul_ps(z, p), q), half);
}

/* ---- rows: normalize, quantize ------------------------------------------ */

/* One row to int8 with one scale, around the middle of its values: what GELU leaves lies to one side
 * of 0. `sum` is that of the quantized values. A row with a NaN gets NaN as its scale, and so do all of
 * its products. */
INLINE void quantize_row(const bf16 *x, int64_t size, int8_t *q, float *scale, float *middle, int32_t *sum) {
    __m512 least = widen(x), most = least;
    __mmask16 unordered = _mm512_cmp_ps_mask(least, least, _CMP_UNORD_Q);
    for (int64_t i = 16; i < size; i += 16) {
        __m512 value = widen(x + i);
        unordered |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        least = _mm512_min_ps(least, value);
        most = _mm512_max_ps(most, value);
    }
    float low = _mm512_reduce_min_ps(least), high = _mm512_reduce_max_ps(most), half = (high - low) / 2;
    *middle = low + half;
    *scale = unordered ? NAN : half / 127.0f;
    __m512 inverse = _mm512_set1_ps(half > 0 ? 127.0f / half : 0.0f);
    __m512 centre = _mm512_mul_ps(_mm512_set1_ps(*middle), inverse);
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = 0; i < size && !unordered; i += 16) {
        __m512i value = _mm512_cvtps_epi32(_mm512_fmsub_ps(widen(x + i), inverse, centre));
        total = _mm512_add_epi32(total, value);
        _mm_storeu_si128((void *)(q + i), _mm512_cvtsepi32_epi8(value));
    }
    *sum = _mm512_reduce_add_epi32(total);
}

/* x [rows, size] to int8 with a scale and a middle for each row; size is a multiple of 16. */
void quantize(const bf16 *x, int64_t rows, int64_t size, int8_t *q, float *scale, float *middle, int32_t *sum,
              int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        quantize_row(x + r * size, size, q + r * size, scale + r, middle + r, sum + r);
}

/* out = layer_norm(x + residual), rows by rows. */
void add_norm(const bf16 *x, const bf16 *residual, const float *weight, const float *bias, float epsilon,
              int64_t rows, int64_t size, bf16 *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *a = x + r * size, *b = residual + r * size;
        bf16 *y = out + r * size;
        __m512 total = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        for (int64_t i = 0; i < size; i += 16) total = _mm512_add_ps(total, _mm512_add_ps(widen(a + i), widen(b + i)));
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / size);
        for (int64_t i = 0; i < size; i += 16) {
            __m512 d = _mm512_sub_ps(_mm512_add_ps(widen(a + i), widen(b + i)), mean);
            squares = _mm512_fmadd_ps(d, d, squares);
        }
        __m512 inverse = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / size + epsilon));
        for (int64_t i = 0; i < size; i += 16) {
            __m512 d = _mm512_sub_ps(_mm512_add_ps(widen(a + i), widen(b + i)), mean);
            d = _mm512_mul_ps(d, inverse);
            narrow(y + i, _mm512_fmadd_ps(d, _mm512_loadu_ps(weight + i), _mm512_loadu_ps(bias + i)));
        }
    }
}

/* ---- int8 product ---------------------------------------------------------- */

/* Weights [n, k] int8 as panels [n / 64][k / 4][64][4], shifted by 128 to unsigned. */
void pack_int8(const int8_t *w, int64_t n, int64_t k, uint8_t *packed) {
    for (int64_t p = 0; p < n; p += PANEL)
        for (int64_t i = 0; i < k; i += 4)
            for (int64_t c = 0; c < PANEL; c++)
                for (int64_t j = 0; j < 4; j++) *packed++ = (uint8_t)(w[(p + c) * k + i + j] + 128);
}

INLINE void tile_int8(const int rows, const int8_t *x, const uint8_t *w, int64_t k, __m512i sums[TILE][4]) {
    __m512i acc[TILE][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < 4; c++) acc[r][c] = _mm512_setzero_si512();
    for (int64_t i = 0; i < k; i += 4) {
        __m512i b[4];
        UNROLL for (int c = 0; c < 4; c++) b[c] = _mm512_load_si512(w + i * PANEL + c * 64);
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * k + i, 4);
            __m512i a = _mm512_set1_epi32(four);
            UNROLL for (int c = 0; c < 4; c++) acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], b[c], a);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < 4; c++) sums[r][c] = acc[r][c];
}

/* out [m, n] = act(scale[m] w_scale[n] (x wᵀ) + middle[m] w_sum[n] + bias); n is a multiple of 64, k of 4. */
void linear_int8(const int8_t *x, const float *scale, const float *middle, const int32_t *sum, const uint8_t *w,
                 const float *w_scale, const float *w_sum, const float *bias, bf16 *out, int64_t m, int64_t n,
                 int64_t k, int act, int threads) {
    int64_t chunks = (m + CHUNK - 1) / CHUNK, panels = n / PANEL;
    /* Few rows: the columns are shared out as well, so that every thread has work. */
    int64_t parts = chunks >= 4 * threads ? 1 : least(panels, (4 * threads + chunks - 1) / chunks);
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic, 1)
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        for (int64_t part = 0; part < parts; part++)
            for (int64_t p = panels * part / parts; p < panels * (part + 1) / parts; p++)
                for (int64_t r = chunk * CHUNK; r < least(m, (chunk + 1) * CHUNK); r += TILE) {
                    __m512i sums[TILE][4];
                    const int8_t *a = x + r * k;
                    const uint8_t *b = w + p * PANEL * k;
                    int rows = (int)least(TILE, least(m, (chunk + 1) * CHUNK) - r);
                    switch (rows) {
                    case 1: tile_int8(1, a, b, k, sums); break;
                    case 2: tile_int8(2, a, b, k, sums); break;
                    case 3: tile_int8(3, a, b, k, sums); break;
                    case 4: tile_int8(4, a, b, k, sums); break;
                    case 5: tile_int8(5, a, b, k, sums); break;
                    default: tile_int8(6, a, b, k, sums);
                    }
                    for (int j = 0; j < rows; j++) {
                        __m512i shift = _mm512_set1_epi32((int32_t)(128u * (uint32_t)sum[r + j]));
                        __m512 row = _mm512_set1_ps(scale[r + j]), centre = _mm512_set1_ps(middle[r + j]);
                        for (int c = 0; c < 4; c++) {
                            int64_t at = p * PANEL + 16 * c;
                            __m512 y = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[j][c], shift));
                            __m512 rest = _mm512_fmadd_ps(centre, _mm512_loadu_ps(w_sum + at),
                                                          _mm512_loadu_ps(bias + at));
                            y = _mm512_fmadd_ps(y, _mm512_mul_ps(row, _mm512_loadu_ps(w_scale + at)), rest);
                            narrow(out + (r + j) * n + at, act ? gelu(y) : y);
                        }
                    }
                }
}

/* ---- attention -------------------------------------------------------------- */

/* Keys [count, size] as panels [count / 16][size / 2][16][2]; rows past the last are 0. */
INLINE void pack_keys(const bf16 *k, int64_t stride, int64_t count, int64_t size, uint32_t *packed) {
    for (int64_t block = 0; block < count; block += 16)
        for (int64_t key = 0; key < 16; key++) {
            uint32_t *to = packed + block * (size / 2) + key;
            if (block + key >= count) {
                for (int64_t i = 0; i < size / 2; i++) to[16 * i] = 0;
                continue;
            }
            const bf16 *row = k + (block + key) * stride;
            for (int64_t i = 0; i < size / 2; i++) memcpy(to + 16 * i, row + 2 * i, 4);
        }
}

/* Values [count, size] as [count / 2][size][2]: two keys side by side. */
INLINE void pack_values(const bf16 *v, int64_t stride, int64_t count, int64_t size, uint32_t *packed) {
    for (int64_t key = 0; key < count; key += 2)
        for (int64_t i = 0; i < size; i += 16) {
            __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(v + key * stride + i)));
            if (key + 1 < count) {
                const bf16 *next = v + (key + 1) * stride + i;
                __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)next));
                even = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
            }
            _mm512_store_si512(packed + (key / 2) * size + i, even);
        }
}

/* A tile of a product of bf16 pairs: rows × 16·columns; `step` is from one pair of a panel to the next. */
INLINE void tile_bf16(const int rows, const int columns, const bf16 *a, int64_t a_stride, const uint32_t *b,
                      int64_t b_step, int64_t b_stride, int64_t pairs, float *out, int64_t out_stride) {
    __m512 acc[TILE][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++) acc[r][c] = _mm512_setzero_ps();
    for (int64_t i = 0; i < pairs; i++) {
        __m512i weights[4];
        UNROLL for (int c = 0; c < columns; c++) weights[c] = _mm512_load_si512(b + i * b_step + c * b_stride);
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, a + r * a_stride + 2 * i, 4);
            __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
            UNROLL for (int c = 0; c < columns; c++)
                acc[r][c] = _mm512_dpbf16_ps(acc[r][c], value, (__m512bh)weights[c]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++) _mm512_storeu_ps(out + r * out_stride + 16 * c, acc[r][c]);
}

#define ROWS(columns, ...)                                  \
    switch (rows) {                                         \
    case 1: tile_bf16(1, columns, __VA_ARGS__); break;      \
    case 2: tile_bf16(2, columns, __VA_ARGS__); break;      \
    case 3: tile_bf16(3, columns, __VA_ARGS__); break;      \
    case 4: tile_bf16(4, columns, __VA_ARGS__); break;      \
    case 5: tile_bf16(5, columns, __VA_ARGS__); break;      \
    default: tile_bf16(6, columns, __VA_ARGS__);            \
    }

#define TILES(columns, ...)                                 \
    switch (columns) {                                      \
    case 1: ROWS(1, __VA_ARGS__); break;                    \
    case 2: ROWS(2, __VA_ARGS__); break;                    \
    case 3: ROWS(3, __VA_ARGS__); break;                    \
    default: ROWS(4, __VA_ARGS__);                          \
    }

static __attribute__((noinline)) void tile_any(int rows, int columns, const bf16 *a, int64_t a_stride,
                                               const uint32_t *b, int64_t b_step, int64_t b_stride,
                                               int64_t pairs, float *out, int64_t out_stride) {
    TILES(columns, a, a_stride, b, b_step, b_stride, pairs, out, out_stride)
}

/* Scores of one query row to weights: exp(scale (s - max)) in bf16, in place over s; returns their sum. */
INLINE float softmax_row(float *s, int64_t count, int64_t padded, float scale) {
    __m512 most = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    __mmask16 last = (__mmask16)((1u << (count - (padded - 16))) - 1);
    for (int64_t i = 0; i < padded; i += 16) {
        __mmask16 mask = i == padded - 16 ? last : 0xffff;
        most = _mm512_mask_max_ps(most, mask, most, _mm512_loadu_ps(s + i));
    }
    __m512 factor = _mm512_set1_ps(scale), top = _mm512_set1_ps(-_mm512_reduce_max_ps(most) * scale);
    for (int64_t i = 0; i < padded; i += 16) {
        __mmask16 mask = i == padded - 16 ? last : 0xffff;
        __m512 e = exponential(_mm512_fmadd_ps(_mm512_loadu_ps(s + i), factor, top));
        e = _mm512_maskz_mov_ps(mask, e);
        total = _mm512_add_ps(total, e);
        narrow((bf16 *)s + i, e);
    }
    return _mm512_reduce_add_ps(total);
}

/* Attention within each sequence, both ways, for each head.
 * Sequence i has queries q_starts[i] to q_starts[i + 1] and keys k_starts[i] to k_starts[i + 1];
 * rows are *_stride apart; size, that of a head, is 16, 32, 48 or 64. Returns 0, or 1 if memory ran out. */
int attention(const bf16 *q, int64_t q_stride, const bf16 *k, const bf16 *v, int64_t kv_stride, bf16 *out,
              int64_t out_stride, const int32_t *q_starts, const int32_t *k_starts, int64_t sequences,
              int64_t heads, int64_t size, float scale, int threads) {
    int64_t longest = 0;
    for (int64_t i = 0; i < sequences; i++)
        if (k_starts[i + 1] - k_starts[i] > longest) longest = k_starts[i + 1] - k_starts[i];
    longest = (longest + 15) / 16 * 16;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        uint32_t *keys = aligned_alloc(64, longest * size * 2), *values = aligned_alloc(64, longest * size * 2);
        float *scores = aligned_alloc(64, (TILE * longest + TILE * 64) * 4);
        if (!keys || !values || !scores) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for collapse(2) schedule(dynamic, 1)
        for (int64_t i = 0; i < sequences; i++)
            for (int64_t head = 0; head < heads; head++) {
                if (failed) continue;
                int64_t first = k_starts[i], count = k_starts[i + 1] - first, padded = (count + 15) / 16 * 16;
                pack_keys(k + first * kv_stride + head * size, kv_stride, count, size, keys);
                pack_values(v + first * kv_stride + head * size, kv_stride, count, size, values);
                float *sums = scores + TILE * longest;
                for (int64_t row = q_starts[i]; row < q_starts[i + 1]; row += TILE) {
                    int rows = (int)least(TILE, q_starts[i + 1] - row);
                    const bf16 *query = q + row * q_stride + head * size;
                    for (int64_t at = 0; at < padded; at += 64)
                        tile_any(rows, (int)least(4, (padded - at) / 16), query, q_stride, keys + at * (size / 2),
                                 16, 16 * (size / 2), size / 2, scores + at, longest);
                    float totals[TILE];
                    for (int r = 0; r < rows; r++)
                        totals[r] = softmax_row(scores + r * longest, count, padded, scale);
                    tile_any(rows, (int)(size / 16), (bf16 *)scores, 2 * longest, values, size, 16,
                             (count + 1) / 2, sums, size);
                    for (int r = 0; r < rows; r++)
                        for (int64_t c = 0; c < size; c += 16)
                            narrow(out + (row + r) * out_stride + head * size + c,
                                   _mm512_mul_ps(_mm512_loadu_ps(sums + r * size + c),
                                                 _mm512_set1_ps(1.0f / totals[r])));
                }
            }
        free(keys);
        free(values);
        free(scores);
    }
    return failed;
}
