/* The int8 product: rows quantized on the way, weights laid out once, AVX-512 VNNI. */
#include <string.h>

#include "kernels.h"

#define PANEL 64 /* columns of a register tile: 4 registers of 16 */
#define CHUNK 96 /* rows that share a panel of weights while it is in the L2 cache */
#define UNITS 16 /* units of work for a thread, at least where the columns suffice */

/* ---- rows to int8 ---------------------------------------------------------- */

/* One row to int8 with one scale, around the middle of its values: what GELU leaves lies to one side
 * of 0. `sum` is that of the quantized values. A row that is not finite gets NaN as its scale, and
 * so do all of its products. */
INLINE void quantize_row(const bf16 *x, int64_t size, int8_t *q, float *scale, float *middle, int32_t *sum) {
    __m512 lowest = widen(x), highest = lowest;
    __mmask16 unordered = _mm512_cmp_ps_mask(lowest, lowest, _CMP_UNORD_Q);
    for (int64_t i = 16; i < size; i += 16) {
        __m512 value = widen(x + i);
        unordered |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        lowest = _mm512_min_ps(lowest, value);
        highest = _mm512_max_ps(highest, value);
    }
    float low = _mm512_reduce_min_ps(lowest), high = _mm512_reduce_max_ps(highest), half = (high - low) / 2;
    int finite = !unordered && isfinite(half);
    *middle = low + half;
    *scale = finite ? half / 127.0f : NAN;
    __m512 inverse = _mm512_set1_ps(half > 0 ? 127.0f / half : 0.0f);
    __m512 centre = _mm512_mul_ps(_mm512_set1_ps(*middle), inverse);
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = 0; i < size && finite; i += 16) {
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

/* ---- product -------------------------------------------------------------- */

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

INLINE void any_tile(int rows, const int8_t *x, const uint8_t *w, int64_t k, __m512i sums[TILE][4]) {
    switch (rows) {
    case 1: tile_int8(1, x, w, k, sums); break;
    case 2: tile_int8(2, x, w, k, sums); break;
    case 3: tile_int8(3, x, w, k, sums); break;
    case 4: tile_int8(4, x, w, k, sums); break;
    case 5: tile_int8(5, x, w, k, sums); break;
    default: tile_int8(6, x, w, k, sums);
    }
}

/* A panel's columns of one row: sums of products, of which 128 times the row's own are from the shift of the
 * weights, to bf16. The last three arrays begin at the panel. */
INLINE void store_row(const __m512i sums[4], int32_t sum, float scale, float middle, int act, const float *w_scale,
                      const float *w_sum, const float *bias, bf16 *out) {
    __m512i shift = _mm512_set1_epi32((int32_t)(128u * (uint32_t)sum));
    __m512 row = _mm512_set1_ps(scale), centre = _mm512_set1_ps(middle);
    for (int c = 0; c < PANEL; c += 16) {
        __m512 y = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[c / 16], shift));
        __m512 rest = _mm512_fmadd_ps(centre, _mm512_loadu_ps(w_sum + c), _mm512_loadu_ps(bias + c));
        y = _mm512_fmadd_ps(y, _mm512_mul_ps(row, _mm512_loadu_ps(w_scale + c)), rest);
        narrow(out + c, act ? gelu(y) : y);
    }
}

/* out [m, n] = act(scale[m] w_scale[n] (x wᵀ) + middle[m] w_sum[n] + bias); n is a multiple of 64, k of 4. */
void linear_int8(const int8_t *x, const float *scale, const float *middle, const int32_t *sum, const uint8_t *w,
                 const float *w_scale, const float *w_sum, const float *bias, bf16 *out, int64_t m, int64_t n,
                 int64_t k, int act, int threads) {
    int64_t chunks = (m + CHUNK - 1) / CHUNK, panels = n / PANEL;
    /* The columns are shared out as well: with few units for a thread, one waits for the other at the end. */
    int64_t parts = least(panels, (UNITS * threads + chunks - 1) / most(1, chunks));
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic, 1)
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        for (int64_t part = 0; part < parts; part++)
            for (int64_t p = panels * part / parts; p < panels * (part + 1) / parts; p++)
                for (int64_t r = chunk * CHUNK, end = least(m, r + CHUNK); r < end; r += TILE) {
                    __m512i sums[TILE][4];
                    int rows = (int)least(TILE, end - r);
                    int64_t at = p * PANEL;
                    any_tile(rows, x + r * k, w + at * k, k, sums);
                    for (int64_t j = 0; j < rows; j++)
                        store_row(sums[j], sum[r + j], scale[r + j], middle[r + j], act, w_scale + at, w_sum + at,
                                  bias + at, out + (r + j) * n + at);
                }
}
