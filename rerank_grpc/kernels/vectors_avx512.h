/* Sixteen numbers in one register, by AVX-512, with or without its bf16 instructions. */
#pragma once

#include "vectors_x86.h"

#define COLUMNS 4 /* registers of sixteen in a row of a tile: with its 6 rows 24 sums stay in registers, of 32 */

typedef __m512 f32x16;
typedef __m512i i32x16;
typedef __mmask16 lanes;

/* ---- fp32 ------------------------------------------------------------------ */

INLINE f32x16 splat(float x) { return _mm512_set1_ps(x); }
INLINE f32x16 zeros(void) { return _mm512_setzero_ps(); }
INLINE f32x16 load(const float *x) { return _mm512_loadu_ps(x); }
INLINE void store(float *to, f32x16 x) { _mm512_storeu_ps(to, x); }
INLINE f32x16 add(f32x16 a, f32x16 b) { return _mm512_add_ps(a, b); }
INLINE f32x16 sub(f32x16 a, f32x16 b) { return _mm512_sub_ps(a, b); }
INLINE f32x16 mul(f32x16 a, f32x16 b) { return _mm512_mul_ps(a, b); }
INLINE f32x16 fmadd(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE f32x16 fmsub(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fmsub_ps(a, b, c); }
INLINE f32x16 minimum(f32x16 a, f32x16 b) { return _mm512_min_ps(a, b); }
INLINE f32x16 maximum(f32x16 a, f32x16 b) { return _mm512_max_ps(a, b); }
INLINE f32x16 magnitude(f32x16 x) { return _mm512_abs_ps(x); }
INLINE float sum_of(f32x16 x) { return _mm512_reduce_add_ps(x); }
INLINE float highest_of(f32x16 x) { return _mm512_reduce_max_ps(x); }

INLINE f32x16 nearest_whole(f32x16 x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

INLINE f32x16 times_power_of_two(f32x16 x, f32x16 whole) { return _mm512_scalef_ps(x, whole); }

/* One step of Newton's from 14 right bits, in a third of a division's time. */
INLINE f32x16 inverse(f32x16 x) {
    f32x16 y = _mm512_rcp14_ps(x);
    return mul(y, _mm512_fnmadd_ps(x, y, splat(2.0f)));
}

INLINE f32x16 times_where_negative(f32x16 sign, f32x16 x, f32x16 factor) {
    return _mm512_mask_mul_ps(x, _mm512_cmp_ps_mask(sign, zeros(), _CMP_LT_OQ), x, factor);
}

/* ---- some lanes ------------------------------------------------------------ */

INLINE lanes lanes_between(int64_t first, int64_t end) {
    uint32_t mask = 0xffff;
    if (first > 0) mask <<= first;
    if (end < 16) mask &= 0xffffu >> (16 - end);
    return (lanes)mask;
}

INLINE f32x16 keep(lanes some, f32x16 x) { return _mm512_maskz_mov_ps(some, x); }
INLINE f32x16 maximum_where(lanes some, f32x16 a, f32x16 b) { return _mm512_mask_max_ps(a, some, a, b); }

INLINE lanes first_lanes(int64_t count) { return count < 16 ? 0x00ff : 0xffff; }
INLINE f32x16 load_some(int64_t count, const float *x) { return _mm512_maskz_loadu_ps(first_lanes(count), x); }

/* ---- bf16 ------------------------------------------------------------------ */

INLINE f32x16 from_bf16(i16x16 x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

#ifdef __AVX512BF16__
INLINE i16x16 to_bf16(f32x16 x) { return (i16x16)_mm512_cvtneps_pbh(x); }
#else
INLINE i16x16 to_bf16(f32x16 x) {
    i32x16 bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
    i32x16 odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    i32x16 rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    i32x16 quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, quiet));
}
#endif

INLINE f32x16 widen(const bf16 *x) { return from_bf16(load_shorts(x)); }
INLINE void narrow(bf16 *to, f32x16 x) { store_shorts(to, to_bf16(x)); }

INLINE f32x16 widen_some(int64_t count, const bf16 *x) {
    return from_bf16(_mm256_maskz_loadu_epi16(first_lanes(count), x));
}

INLINE void narrow_some(bf16 *to, int64_t count, f32x16 x) {
    _mm256_mask_storeu_epi16(to, first_lanes(count), to_bf16(x));
}

/* ---- pairs of bf16 --------------------------------------------------------- */

INLINE i32x16 load_ints(const void *x) { return _mm512_load_si512(x); }

/* Intel's processors with AMX take two products of fp32 in less time than one of pairs of bf16. */
#if defined(__AVX512BF16__) && !defined(__AMX_TILE__)
#define ADDS_PAIRS
INLINE f32x16 add_pairs(f32x16 sums, i32x16 a, i32x16 b) { return _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b); }
#else
INLINE f32x16 firsts(i32x16 pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
INLINE f32x16 seconds(i32x16 pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int32_t)0xffff0000)));
}
#endif

INLINE void zip(const bf16 *first, const bf16 *second, uint32_t *to) {
    i32x16 pairs = _mm512_cvtepu16_epi32(load_shorts(first));
    if (second) {
        i32x16 high = _mm512_cvtepu16_epi32(load_shorts(second));
        pairs = _mm512_or_si512(pairs, _mm512_slli_epi32(high, 16));
    }
    _mm512_store_si512(to, pairs);
}

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

/* ---- integers -------------------------------------------------------------- */

INLINE i32x16 splat_int(int32_t x) { return _mm512_set1_epi32(x); }
INLINE i32x16 add_ints(i32x16 a, i32x16 b) { return _mm512_add_epi32(a, b); }
INLINE i32x16 sub_ints(i32x16 a, i32x16 b) { return _mm512_sub_epi32(a, b); }
INLINE int32_t sum_of_ints(i32x16 x) { return _mm512_reduce_add_epi32(x); }
INLINE i32x16 rounded(f32x16 x) { return _mm512_cvtps_epi32(x); }
INLINE f32x16 from_ints(i32x16 x) { return _mm512_cvtepi32_ps(x); }

/* As integers of 32 bits, because there is no instruction for those of 16. */
INLINE int16_t least_of(i16x16 x) { return (int16_t)_mm512_reduce_min_epi32(_mm512_cvtepi16_epi32(x)); }
INLINE int16_t greatest_of(i16x16 x) { return (int16_t)_mm512_reduce_max_epi32(_mm512_cvtepi16_epi32(x)); }

/* ---- int8 products --------------------------------------------------------- */

typedef int8_t code;
#define DEPTH 4
#define WEIGHT_SHIFT 128 /* dpbusd multiplies unsigned by signed numbers: the latter a broadcast row, by its encoding */

INLINE void store_codes(code *to, i32x16 x) { _mm_storeu_si128((void *)to, _mm512_cvtsepi32_epi8(x)); }
INLINE i32x16 load_weights(const uint8_t *x) { return load_ints(x); }
INLINE i32x16 add_products(i32x16 sums, i32x16 weights, i32x16 row) { return _mm512_dpbusd_epi32(sums, weights, row); }
