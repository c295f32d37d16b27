/* Sixteen numbers at a time: bf16 in memory, fp32 in registers, on CPUs with AVX-512 BF16.
 *
 * Rows are tokens, all matrices are row-major, and bf16 values travel as uint16_t.
 */
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define TILE 6 /* rows of a register tile: with 4 columns of registers, 24 sums stay in registers */

typedef uint16_t bf16;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t sixteens(int64_t count) { return (count + 15) / 16 * 16; }

INLINE __m512 floats(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

INLINE __m512 widen(const bf16 *x) { return floats(_mm256_loadu_si256((const void *)x)); }

INLINE void narrow(bf16 *to, __m512 x) { _mm256_storeu_si256((void *)to, (__m256i)_mm512_cvtneps_pbh(x)); }

/* The same for the numbers of a mask: nothing else is read or written. */
INLINE __m512 widen_some(__mmask16 some, const bf16 *x) { return floats(_mm256_maskz_loadu_epi16(some, x)); }

INLINE void narrow_some(bf16 *to, __mmask16 some, __m512 x) {
    _mm256_mask_storeu_epi16(to, some, (__m256i)_mm512_cvtneps_pbh(x));
}

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

/* x / (1 + exp(-z)), by the exponential of what is not positive. */
INLINE __m512 times_sigmoid(__m512 x, __m512 z) {
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(z)));
    __m512 sigmoid = _mm512_div_ps(one, _mm512_add_ps(one, e));
    __mmask16 negative = _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_mul_ps(sigmoid, negative, sigmoid, e));
}

INLINE __m512 silu(__m512 x) { return times_sigmoid(x, x); }

/* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): tanh written as a sigmoid. */
INLINE __m512 gelu_tanh(__m512 x) {
    __m512 square = _mm512_mul_ps(x, x);
    __m512 factor = _mm512_fmadd_ps(square, _mm512_set1_ps(0.0713548162726f), _mm512_set1_ps(1.59576912161f));
    return times_sigmoid(x, _mm512_mul_ps(x, factor));
}
