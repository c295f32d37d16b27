/* One head of one row: its RMS norm, and its rotation by the angles of its place. */
#pragma once

#include "vectors.h"

INLINE void copy_head(const bf16 *x, int64_t size, bf16 *out) {
    for (int64_t i = 0; i < size; i += 16) store_shorts(out + i, load_shorts(x + i));
}

/* The factor that brings the root of the mean square of a head to 1. */
INLINE float inverse_rms(const bf16 *x, int64_t size, float epsilon) {
    f32x16 squares = zeros();
    for (int64_t i = 0; i < size; i += 16) squares = fmadd(widen(x + i), widen(x + i), squares);
    return 1.0f / sqrtf(sum_of(squares) / size + epsilon);
}

/* Turns the first half of a head against its second half; `weight`, if not NULL, times `inverse` scales
 * both before. cosine and sine are those of the row, size / 2 each. `out` may be `x`. */
INLINE void turn_head(const bf16 *x, int64_t size, const float *weight, float inverse, const float *cosine,
                      const float *sine, bf16 *out) {
    int64_t half = size / 2; /* a multiple of 8 */
    for (int64_t i = 0; i < half; i += 16) {
        int64_t some = least(16, half - i);
        f32x16 a = widen_some(some, x + i), b = widen_some(some, x + half + i);
        if (weight) {
            f32x16 factor = splat(inverse);
            a = mul(mul(a, factor), load_some(some, weight + i));
            b = mul(mul(b, factor), load_some(some, weight + half + i));
        }
        f32x16 c = load_some(some, cosine + i), s = load_some(some, sine + i);
        narrow_some(out + i, some, fmsub(a, c, mul(b, s)));
        narrow_some(out + half + i, some, fmadd(b, c, mul(a, s)));
    }
}
