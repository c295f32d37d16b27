/* Keys and values laid out as panels of bf16 pairs, and products with them tile by tile. */
#pragma once

#include "vectors.h"

#define LARGEST_HEAD 256

/* Keys [count, size], turned if there are cosines [count, size / 2], as panels
 * [count / 16][size / 2][16][2]; rows past the last are 0. */
void pack_keys(const bf16 *keys, int64_t stride, int64_t count, int64_t size, const float *cosines,
               const float *sines, uint32_t *packed);

/* Values [count, size] as [count / 2][size][2]: two keys side by side. */
void pack_values(const bf16 *values, int64_t stride, int64_t count, int64_t size, uint32_t *packed);

/* out [rows, count] = queries [rows, size] times packed keys, count of them; both counts to the next 16. */
void score_keys(int rows, const bf16 *queries, int64_t size, const uint32_t *keys, int64_t count, float *out,
                int64_t out_stride);

/* out [rows, size] = weights [rows, count] times packed values, added to `out` if `adds`. */
void mix_values(int rows, const bf16 *weights, int64_t stride, const uint32_t *values, int64_t count, int64_t size,
                int adds, float *out);
