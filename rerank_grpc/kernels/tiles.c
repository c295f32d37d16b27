#include "tiles.h"

#include <string.h>

#include "heads.h"

/* ---- panels ---------------------------------------------------------------- */

/* `depth` pairs of each of 16 rows, transposed: to [depth][16]; depth is 8 or 16. */
INLINE void transpose(const int depth, const bf16 *rows, int64_t stride, uint32_t *to) {
    __m512i a[16], b[16];
    UNROLL for (int i = 0; i < 16; i++)
        a[i] = depth == 16 ? _mm512_loadu_si512(rows + i * stride)
                           : _mm512_castsi256_si512(_mm256_loadu_si256((const void *)(rows + i * stride)));
    UNROLL for (int i = 0; i < 16; i += 2) { /* pairs of rows */
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) { /* fours of rows: a[i + j] holds the columns j, 4 + j, 8 + j, 12 + j */
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    UNROLL for (int j = 0; j < 4; j++) { /* eights of rows: columns j and 8 + j, then 4 + j and 12 + j */
        b[j] = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88);
        b[4 + j] = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
        b[8 + j] = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
        b[12 + j] = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
    }
    UNROLL for (int j = 0; j < 8; j++) {
        _mm512_store_si512(to + 16 * j, _mm512_shuffle_i32x4(b[j], b[8 + j], 0x88));
        if (depth == 16) _mm512_store_si512(to + 16 * (8 + j), _mm512_shuffle_i32x4(b[j], b[8 + j], 0xdd));
    }
}

void pack_keys(const bf16 *keys, int64_t stride, int64_t count, int64_t size, const float *cosines,
               const float *sines, uint32_t *packed) {
    bf16 block[16 * LARGEST_HEAD];
    for (int64_t first = 0; first < count; first += 16, packed += 8 * size) {
        const bf16 *from = keys + first * stride;
        int64_t step = stride, rows = least(16, count - first);
        if (cosines || rows < 16) {
            for (int64_t r = 0; r < rows; r++)
                if (cosines)
                    turn_head(from + r * stride, size, NULL, 1.0f, cosines + (first + r) * (size / 2),
                              sines + (first + r) * (size / 2), block + r * size);
                else
                    copy_head(from + r * stride, size, block + r * size);
            memset(block + rows * size, 0, (size_t)((16 - rows) * size) * sizeof(bf16));
            from = block;
            step = size;
        }
        int64_t i = 0;
        for (; i + 32 <= size; i += 32) transpose(16, from + i, step, packed + 8 * i);
        if (i < size) transpose(8, from + i, step, packed + 8 * i);
    }
}

void pack_values(const bf16 *values, int64_t stride, int64_t count, int64_t size, uint32_t *packed) {
    for (int64_t key = 0; key < count; key += 2)
        for (int64_t i = 0; i < size; i += 16) {
            __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(values + key * stride + i)));
            if (key + 1 < count) {
                const bf16 *next = values + (key + 1) * stride + i;
                __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)next));
                even = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
            }
            _mm512_store_si512(packed + (key / 2) * size + i, even);
        }
}

/* ---- products -------------------------------------------------------------- */

/* A tile of a product of bf16 pairs: rows × 16·columns, added to `out` if `adds`. From one pair of a panel to
 * the next it is b_step, from one register of columns to the next b_stride. */
INLINE void tile(const int rows, const int columns, const bf16 *a, int64_t a_stride, const uint32_t *b,
                 int64_t b_step, int64_t b_stride, int64_t pairs, int adds, float *out, int64_t out_stride) {
    __m512 acc[TILE][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++)
            acc[r][c] = adds ? _mm512_loadu_ps(out + r * out_stride + 16 * c) : _mm512_setzero_ps();
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

#define ROWS(columns, ...)                             \
    switch (rows) {                                    \
    case 1: tile(1, columns, __VA_ARGS__); break;      \
    case 2: tile(2, columns, __VA_ARGS__); break;      \
    case 3: tile(3, columns, __VA_ARGS__); break;      \
    case 4: tile(4, columns, __VA_ARGS__); break;      \
    case 5: tile(5, columns, __VA_ARGS__); break;      \
    default: tile(6, columns, __VA_ARGS__);            \
    }

#define TILES(columns, ...)                            \
    switch (columns) {                                 \
    case 1: ROWS(1, __VA_ARGS__); break;               \
    case 2: ROWS(2, __VA_ARGS__); break;               \
    case 3: ROWS(3, __VA_ARGS__); break;               \
    default: ROWS(4, __VA_ARGS__);                     \
    }

static __attribute__((noinline)) void any_tile(int rows, int columns, const bf16 *a, int64_t a_stride,
                                               const uint32_t *b, int64_t b_step, int64_t b_stride, int64_t pairs,
                                               int adds, float *out, int64_t out_stride) {
    TILES(columns, a, a_stride, b, b_step, b_stride, pairs, adds, out, out_stride)
}

void score_keys(int rows, const bf16 *queries, int64_t size, const uint32_t *keys, int64_t count, float *out,
                int64_t out_stride) {
    for (int64_t at = 0; at < count; at += PANEL) {
        int columns = (int)(sixteens(least(PANEL, count - at)) / 16);
        any_tile(rows, columns, queries, size, keys + at * (size / 2), 16, 8 * size, size / 2, 0, out + at, out_stride);
    }
}

void mix_values(int rows, const bf16 *weights, int64_t stride, const uint32_t *values, int64_t count, int64_t size,
                int adds, float *out) {
    for (int64_t c = 0; c < size; c += PANEL) {
        int columns = (int)(least(PANEL, size - c) / 16);
        any_tile(rows, columns, weights, stride, values + c, size, 16, (count + 1) / 2, adds, out + c, size);
    }
}
