#include "tiles.h"

#include <string.h>

#include "heads.h"

/* ---- panels ---------------------------------------------------------------- */

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
            const bf16 *first = values + key * stride + i;
            zip(first, key + 1 < count ? first + stride : NULL, packed + (key / 2) * size + i);
        }
}

/* ---- products -------------------------------------------------------------- */

INLINE i32x16 splat_pair(const bf16 *x) {
    int32_t pair;
    memcpy(&pair, x, 4);
    return splat_int(pair);
}

#ifdef ADDS_PAIRS

/* Adds the products of one pair of each row with the panel's. */
INLINE void add_step(const int rows, const int columns, const bf16 *a, int64_t a_stride, const uint32_t *b,
                     int64_t b_stride, f32x16 sums[TILE][COLUMNS]) {
    i32x16 weights[COLUMNS];
    UNROLL for (int c = 0; c < columns; c++) weights[c] = load_ints(b + c * b_stride);
    UNROLL for (int r = 0; r < rows; r++) {
        i32x16 value = splat_pair(a + r * a_stride);
        UNROLL for (int c = 0; c < columns; c++) sums[r][c] = add_pairs(sums[r][c], value, weights[c]);
    }
}

#else

/* The same for one half of the pairs: both at once would take more registers than there are. */
INLINE void add_half(const int second, const int rows, const int columns, const bf16 *a, int64_t a_stride,
                     const uint32_t *b, int64_t b_stride, f32x16 sums[TILE][COLUMNS]) {
    f32x16 weights[COLUMNS];
    UNROLL for (int c = 0; c < columns; c++) {
        i32x16 pairs = load_ints(b + c * b_stride);
        weights[c] = second ? seconds(pairs) : firsts(pairs);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        i32x16 pair = splat_pair(a + r * a_stride);
        f32x16 value = second ? seconds(pair) : firsts(pair);
        UNROLL for (int c = 0; c < columns; c++) sums[r][c] = fmadd(value, weights[c], sums[r][c]);
    }
}

INLINE void add_step(const int rows, const int columns, const bf16 *a, int64_t a_stride, const uint32_t *b,
                     int64_t b_stride, f32x16 sums[TILE][COLUMNS]) {
    add_half(0, rows, columns, a, a_stride, b, b_stride, sums);
    add_half(1, rows, columns, a, a_stride, b, b_stride, sums);
}

#endif

/* A tile of a product of bf16 pairs: rows × 16·columns, added to `out` if `adds`. From one pair of a panel to
 * the next it is b_step, from one register of columns to the next b_stride. */
INLINE void tile(const int rows, const int columns, const bf16 *a, int64_t a_stride, const uint32_t *b,
                 int64_t b_step, int64_t b_stride, int64_t pairs, int adds, float *out, int64_t out_stride) {
    f32x16 sums[TILE][COLUMNS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++) sums[r][c] = adds ? load(out + r * out_stride + 16 * c) : zeros();
    for (int64_t i = 0; i < pairs; i++) add_step(rows, columns, a + 2 * i, a_stride, b + i * b_step, b_stride, sums);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++) store(out + r * out_stride + 16 * c, sums[r][c]);
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

#if COLUMNS == 1
#define TILES(columns, ...) (void)columns; ROWS(1, __VA_ARGS__)
#else
#define TILES(columns, ...)                            \
    switch (columns) {                                 \
    case 1: ROWS(1, __VA_ARGS__); break;               \
    case 2: ROWS(2, __VA_ARGS__); break;               \
    case 3: ROWS(3, __VA_ARGS__); break;               \
    default: ROWS(4, __VA_ARGS__);                     \
    }
#endif

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
