/* The int8 product: rows quantized on the way, weights laid out once. */
#include <string.h>

#include "amx.h"
#include "kernels.h"

#define CHUNK 96 /* rows that share a panel of weights while it is in the L2 cache; whole blocks */
#define UNITS 16 /* units of work for a thread, at least where the columns suffice */

/* ---- rows to int8 ---------------------------------------------------------- */

/* The number that an integer of ordered() stands for. */
INLINE float in_order(int16_t x) {
    uint32_t bits = (uint32_t)(uint16_t)(x < 0 ? x ^ 0x7fff : x) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The least and the greatest of a row; NaN lies beyond the infinities. */
INLINE void extremes(const bf16 *x, int64_t size, float *low, float *high) {
    i16x16 lowest = ordered(load_shorts(x)), highest = lowest;
    for (int64_t i = 16; i < size; i += 16) {
        i16x16 value = ordered(load_shorts(x + i));
        lowest = lower(lowest, value);
        highest = greater(highest, value);
    }
    *low = in_order(least_of(lowest));
    *high = in_order(greatest_of(highest));
}

/* One row to int8 with one scale, around the middle of its values: what GELU leaves lies to one side
 * of 0. `sum` is that of the quantized values. A row that is not finite gets NaN as its scale, and
 * so do all of its products. */
INLINE void quantize_row(const bf16 *x, int64_t size, code *q, float *scale, float *middle, int32_t *sum) {
    float low, high;
    extremes(x, size, &low, &high);
    float half = (high - low) / 2;
    int finite = isfinite(half);
    *middle = low + half;
    *scale = finite ? half / 127.0f : NAN;
    f32x16 factor = splat(half > 0 ? 127.0f / half : 0.0f);
    f32x16 centre = mul(splat(*middle), factor);
    i32x16 total = splat_int(0);
    for (int64_t i = 0; i < size && finite; i += 16) {
        i32x16 value = rounded(fmsub(widen(x + i), factor, centre));
        total = add_ints(total, value);
        store_codes(q + i, value);
    }
    *sum = sum_of_ints(total);
}

/* The bytes of a quantized number. */
int code_bytes(void) { return sizeof(code); }

/* x [rows, size] to codes [rows, size] with a scale and a middle for each row; size is a multiple of 16. */
void quantize(const bf16 *x, int64_t rows, int64_t size, void *q, float *scale, float *middle, int32_t *sum,
              int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        quantize_row(x + r * size, size, (code *)q + r * size, scale + r, middle + r, sum + r);
}

/* ---- product -------------------------------------------------------------- */

/* Weights [n, k] int8 as panels [n / PANEL][k / DEPTH][PANEL][DEPTH]. */
void pack_int8(const int8_t *w, int64_t n, int64_t k, uint8_t *packed) {
    for (int64_t p = 0; p < n; p += PANEL)
        for (int64_t i = 0; i < k; i += DEPTH)
            for (int64_t c = 0; c < PANEL; c++)
                for (int64_t j = 0; j < DEPTH; j++) *packed++ = (uint8_t)(w[(p + c) * k + i + j] + WEIGHT_SHIFT);
}

INLINE void tile_int8(const int rows, const code *x, const uint8_t *w, int64_t k, i32x16 sums[TILE][COLUMNS]) {
    i32x16 acc[TILE][COLUMNS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < COLUMNS; c++) acc[r][c] = splat_int(0);
    for (int64_t i = 0; i < k; i += DEPTH) {
        i32x16 weights[COLUMNS];
        UNROLL for (int c = 0; c < COLUMNS; c++) weights[c] = load_weights(w + i * PANEL + c * 16 * DEPTH);
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t some;
            memcpy(&some, x + r * k + i, sizeof some);
            i32x16 row = splat_int(some);
            UNROLL for (int c = 0; c < COLUMNS; c++) acc[r][c] = add_products(acc[r][c], weights[c], row);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < COLUMNS; c++) sums[r][c] = acc[r][c];
}

INLINE void any_tile(int rows, const code *x, const uint8_t *w, int64_t k, i32x16 sums[TILE][COLUMNS]) {
    switch (rows) {
    case 1: tile_int8(1, x, w, k, sums); break;
    case 2: tile_int8(2, x, w, k, sums); break;
    case 3: tile_int8(3, x, w, k, sums); break;
    case 4: tile_int8(4, x, w, k, sums); break;
    case 5: tile_int8(5, x, w, k, sums); break;
    default: tile_int8(6, x, w, k, sums);
    }
}

/* A panel's columns of one row: sums of products, of which the row's own, times the shift, are from that of the
 * weights, to bf16. The last three arrays begin at the panel. */
INLINE void store_row(const i32x16 sums[COLUMNS], int32_t sum, float scale, float middle, int act, const float *w_scale,
                      const float *w_sum, const float *bias, bf16 *out) {
    i32x16 shift = splat_int((int32_t)((uint32_t)WEIGHT_SHIFT * (uint32_t)sum));
    f32x16 row = splat(scale), centre = splat(middle);
    for (int c = 0; c < PANEL; c += 16) {
        f32x16 y = from_ints(sub_ints(sums[c / 16], shift));
        f32x16 rest = fmadd(centre, load(w_sum + c), load(bias + c));
        y = fmadd(y, mul(row, load(w_scale + c)), rest);
        narrow(out + c, act ? gelu(y) : y);
    }
}

/* Sums of products of up to BLOCK rows and a panel. */
INLINE void sum_block(int tiled, int64_t rows, const code *x, const uint8_t *w, int64_t k, i32x16 sums[BLOCK][COLUMNS]) {
#ifdef __AMX_INT8__
    if (takes_block(tiled, rows, k)) {
        block_int8(x, w, k, sums);
        return;
    }
#else
    (void)tiled;
#endif
    for (int64_t r = 0; r < rows; r += TILE) any_tile((int)least(TILE, rows - r), x + r * k, w, k, sums + r);
}

/* out [m, n] = act(scale[m] w_scale[n] (x wᵀ) + middle[m] w_sum[n] + bias); n is a multiple of PANEL, k of DEPTH. */
void linear_int8(const void *x, const float *scale, const float *middle, const int32_t *sum, const uint8_t *w,
                 const float *w_scale, const float *w_sum, const float *bias, bf16 *out, int64_t m, int64_t n,
                 int64_t k, int act, int threads) {
    int64_t chunks = (m + CHUNK - 1) / CHUNK, panels = n / PANEL;
    /* The columns are shared out as well: with few units for a thread, one waits for the other at the end. */
    int64_t parts = least(panels, (UNITS * threads + chunks - 1) / most(1, chunks));
#pragma omp parallel num_threads(threads)
    {
        int tiled = begin_blocks();
#pragma omp for collapse(2) schedule(dynamic, 1)
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            for (int64_t part = 0; part < parts; part++)
                for (int64_t p = panels * part / parts; p < panels * (part + 1) / parts; p++)
                    for (int64_t r = chunk * CHUNK, end = least(m, r + CHUNK); r < end; r += BLOCK) {
                        i32x16 sums[BLOCK][COLUMNS];
                        int64_t at = p * PANEL, rows = least(BLOCK, end - r);
                        sum_block(tiled, rows, (const code *)x + r * k, w + at * k, k, sums);
                        for (int64_t j = 0; j < rows; j++)
                            store_row(sums[j], sum[r + j], scale[r + j], middle[r + j], act, w_scale + at, w_sum + at,
                                      bias + at, out + (r + j) * n + at);
                    }
        end_blocks(tiled);
    }
}
