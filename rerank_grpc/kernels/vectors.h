/* Sixteen numbers at a time: bf16 in memory, fp32 in registers, on every CPU that the kernels run on.
 *
 * Rows are tokens, all matrices are row-major, and bf16 values travel as uint16_t. What differs between levels of
 * instructions stands in the header of each, and the compiler's own macros say which one is compiled for. Each has:
 *
 * - f32x16, i32x16, i16x16: sixteen numbers. COLUMNS: how many sixteens of sums a tile has in a row.
 * - lanes: some of the sixteen. keep() leaves 0 in the others, maximum_where() the first operand. The functions with
 *   a count take the first 8 or all 16 numbers, and neither read nor write beside them.
 * - minimum() and maximum() give the second operand where either is NaN; to_bf16() rounds to the nearest, ties to even.
 * - times_power_of_two(): times 2^whole, for -126 <= whole <= 0. times_where_negative(): times the factor where the
 *   sign is below 0. inverse(): 1 / x to the last bits.
 * - Pairs of bf16 in 32 bits, the first in the lower half. Where ADDS_PAIRS is defined, add_pairs() adds the products
 *   of pairs; else firsts() and seconds() widen them. zip() makes 16 pairs of two rows, the second 0 if it is NULL.
 *   transpose() makes [depth][16] of `depth` pairs of each of 16 rows, depth 8 or 16.
 * - code: a row's number, quantized. load_weights() reads DEPTH weights for each of 16 outputs, which pack_int8 has
 *   raised by WEIGHT_SHIFT to unsigned; add_products() adds their products with DEPTH codes, which lie in 32 bits.
 * - ordered(): bf16 as integers of the same order, and back: those of negative numbers are the greater the smaller
 *   they are. */
#pragma once

#include <math.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define TILE 6 /* rows of a register tile */

typedef uint16_t bf16;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t sixteens(int64_t count) { return (count + 15) / 16 * 16; }

#if defined(__AVX512F__)
#include "vectors_avx512.h"
#elif defined(__AVX2__)
#include "vectors_avx2.h"
#else
#error "the kernels are written for AVX-512 and AVX2"
#endif

#define PANEL (16 * COLUMNS) /* columns of a register tile */

/* 2^x for x <= 0, to 3e-6 of the result; of NaN, NaN. */
INLINE f32x16 power_of_two(f32x16 x) {
    x = maximum(splat(-126.0f), x);
    f32x16 whole = nearest_whole(x);
    f32x16 part = sub(x, whole);
    f32x16 y = splat(9.58285319e-3f);
    y = fmadd(y, part, splat(5.59064265e-2f));
    y = fmadd(y, part, splat(2.40240986e-1f));
    y = fmadd(y, part, splat(6.93124193e-1f));
    y = fmadd(y, part, splat(1.0f));
    return times_power_of_two(y, whole);
}

/* x/2 (1 + erf(x/sqrt 2)), to 6e-6: erf as a quotient of polynomials of x^2, fitted up to 4.8. Below -4.8 the
 * result is that of -4.8, nearly 0. */
INLINE f32x16 gelu(f32x16 x) {
    f32x16 low = maximum(splat(-4.8f), x);
    f32x16 z = minimum(splat(4.8f), low);
    f32x16 s = mul(z, z);
    f32x16 p = splat(6.29573483e-5f);
    p = fmadd(p, s, splat(7.57296777e-3f));
    p = fmadd(p, s, splat(5.68320908e-2f));
    p = fmadd(p, s, splat(7.97810998e-1f));
    f32x16 q = splat(1.12647418e-3f);
    q = fmadd(q, s, splat(2.42113070e-2f));
    q = fmadd(q, s, splat(2.37720501e-1f));
    q = fmadd(q, s, splat(1.0f));
    f32x16 half = mul(low, splat(0.5f));
    return fmadd(mul(half, mul(z, p)), inverse(q), half);
}

#define LOG2_E 1.44269504088896341f

/* x / (1 + 2^-z), by the power of what is not positive. */
INLINE f32x16 times_sigmoid(f32x16 x, f32x16 z) {
    f32x16 e = power_of_two(sub(zeros(), magnitude(z)));
    f32x16 sigmoid = inverse(add(splat(1.0f), e));
    return mul(x, times_where_negative(z, sigmoid, e));
}

INLINE f32x16 silu(f32x16 x) { return times_sigmoid(x, mul(x, splat(LOG2_E))); }

/* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): tanh written as a sigmoid. */
INLINE f32x16 gelu_tanh(f32x16 x) {
    f32x16 square = mul(x, x), slope = splat(1.59576912161f * LOG2_E);
    f32x16 factor = fmadd(square, splat(0.0713548162726f * LOG2_E), slope);
    return times_sigmoid(x, mul(x, factor));
}
