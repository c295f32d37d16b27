/* One head of one row: its RMS norm, and its rotation by the angles of its place. */
#pragma once

#include "vectors.h"

INLINE void copy_head(const bf16 *x, int64_t size, bf16 *out) {
    for (int64_t i = 0; i < size; i += 16)
        _mm256_storeu_si256((void *)(out + i), _mm256_loadu_si256((const void *)(x + i)));
}

/* The factor that brings the root of the mean square of a head to 1. */
INLINE float inverse_rms(const bf16 *x, int64_t size, float epsilon) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 16) squares = _mm512_fmadd_ps(widen(x + i), widen(x + i), squares);
    return 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / size + epsilon);
}

/* Turns the first half of a head against its second half; `weight`, if not NULL, times `inverse` scales
 * both before. cosine and sine are those of the row, size / 2 each. `out` may be `x`. */
INLINE void turn_head(const bf16 *x, int64_t size, const float *weight, float inverse, const float *cosine,
                      const float *sine, bf16 *out) {
    int64_t half = size / 2; /* a multiple of 8 */
    for (int64_t i = 0; i < half; i += 16) {
        __mmask16 some = half - i < 16 ? 0x00ff : 0xffff;
        __m512 a = widen_some(some, x + i), b = widen_some(some, x + half + i);
        if (weight) {
            __m512 factor = _mm512_set1_ps(inverse);
            a = _mm512_mul_ps(_mm512_mul_ps(a, factor), _mm512_maskz_loadu_ps(some, weight + i));
            b = _mm512_mul_ps(_mm512_mul_ps(b, factor), _mm512_maskz_loadu_ps(some, weight + half + i));
        }
        __m512 c = _mm512_maskz_loadu_ps(some, cosine + i), s = _mm512_maskz_loadu_ps(some, sine + i);
        narrow_some(out + i, some, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
        narrow_some(out + half + i, some, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
    }
}
