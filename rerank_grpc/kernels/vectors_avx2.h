/* Sixteen numbers in two registers, by AVX2 and FMA, with or without AVX-VNNI. */
#pragma once

#include "vectors_x86.h"

#define COLUMNS 1 /* sixteens in a row of a tile: with its 6 rows 12 sums stay in registers, of 16 */

typedef struct {
    __m256 low, high;
} f32x16;

typedef struct {
    __m256i low, high;
} i32x16;

typedef f32x16 lanes; /* all bits of a lane, or none */

/* An instruction on both registers. */
#define ONE(type, f, a) ((type){f((a).low), f((a).high)})
#define TWO(type, f, a, b) ((type){f((a).low, (b).low), f((a).high, (b).high)})
#define THREE(type, f, a, b, c) ((type){f((a).low, (b).low, (c).low), f((a).high, (b).high, (c).high)})

/* ---- fp32 ------------------------------------------------------------------ */

INLINE f32x16 splat(float x) { return (f32x16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE f32x16 zeros(void) { return (f32x16){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE f32x16 load(const float *x) { return (f32x16){_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
INLINE f32x16 add(f32x16 a, f32x16 b) { return TWO(f32x16, _mm256_add_ps, a, b); }
INLINE f32x16 sub(f32x16 a, f32x16 b) { return TWO(f32x16, _mm256_sub_ps, a, b); }
INLINE f32x16 mul(f32x16 a, f32x16 b) { return TWO(f32x16, _mm256_mul_ps, a, b); }
INLINE f32x16 fmadd(f32x16 a, f32x16 b, f32x16 c) { return THREE(f32x16, _mm256_fmadd_ps, a, b, c); }
INLINE f32x16 fmsub(f32x16 a, f32x16 b, f32x16 c) { return THREE(f32x16, _mm256_fmsub_ps, a, b, c); }
INLINE f32x16 minimum(f32x16 a, f32x16 b) { return TWO(f32x16, _mm256_min_ps, a, b); }
INLINE f32x16 maximum(f32x16 a, f32x16 b) { return TWO(f32x16, _mm256_max_ps, a, b); }
INLINE f32x16 magnitude(f32x16 x) { return TWO(f32x16, _mm256_andnot_ps, splat(-0.0f), x); }

INLINE void store(float *to, f32x16 x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
}

INLINE float sum_of(f32x16 x) {
    __m256 eight = _mm256_add_ps(x.low, x.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

INLINE float highest_of(f32x16 x) {
    __m256 eight = _mm256_max_ps(x.low, x.high);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

INLINE __m256 nearest_whole_8(__m256 x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

INLINE f32x16 nearest_whole(f32x16 x) { return ONE(f32x16, nearest_whole_8, x); }

INLINE __m256 power_of_two_8(__m256 whole) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}

INLINE f32x16 times_power_of_two(f32x16 x, f32x16 whole) { return mul(x, ONE(f32x16, power_of_two_8, whole)); }

/* One step of Newton's from 12 right bits. */
INLINE f32x16 inverse(f32x16 x) {
    f32x16 y = ONE(f32x16, _mm256_rcp_ps, x);
    return mul(y, THREE(f32x16, _mm256_fnmadd_ps, x, y, splat(2.0f)));
}

INLINE f32x16 times_where_negative(f32x16 sign, f32x16 x, f32x16 factor) {
    return THREE(f32x16, _mm256_blendv_ps, x, mul(x, factor), sign);
}

/* ---- some lanes ------------------------------------------------------------ */

INLINE lanes lanes_between(int64_t first, int64_t end) {
    __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
    __m256i before = _mm256_set1_epi32((int32_t)most(first, 0) - 1), behind = _mm256_set1_epi32((int32_t)least(end, 16));
    low = _mm256_and_si256(_mm256_cmpgt_epi32(low, before), _mm256_cmpgt_epi32(behind, low));
    high = _mm256_and_si256(_mm256_cmpgt_epi32(high, before), _mm256_cmpgt_epi32(behind, high));
    return (lanes){_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)};
}

INLINE f32x16 keep(lanes some, f32x16 x) { return TWO(f32x16, _mm256_and_ps, some, x); }

INLINE f32x16 maximum_where(lanes some, f32x16 a, f32x16 b) {
    return THREE(f32x16, _mm256_blendv_ps, a, maximum(a, b), some);
}

INLINE f32x16 load_some(int64_t count, const float *x) {
    return (f32x16){_mm256_loadu_ps(x), count < 16 ? _mm256_setzero_ps() : _mm256_loadu_ps(x + 8)};
}

/* ---- bf16 ------------------------------------------------------------------ */

INLINE __m256 from_bf16_8(const bf16 *x) {
    __m128i eight = _mm_loadu_si128((const void *)x);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
}

/* In the low half of each lane. */
INLINE __m256i to_bf16_8(__m256 x) {
    __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), quiet, nan);
}

/* Packing leaves each quarter's numbers beside those of the other register. */
INLINE i16x16 to_bf16(f32x16 x) {
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(to_bf16_8(x.low), to_bf16_8(x.high)), 0xd8);
}

INLINE f32x16 widen(const bf16 *x) { return (f32x16){from_bf16_8(x), from_bf16_8(x + 8)}; }
INLINE void narrow(bf16 *to, f32x16 x) { store_shorts(to, to_bf16(x)); }

INLINE f32x16 widen_some(int64_t count, const bf16 *x) {
    return (f32x16){from_bf16_8(x), count < 16 ? _mm256_setzero_ps() : from_bf16_8(x + 8)};
}

INLINE void narrow_some(bf16 *to, int64_t count, f32x16 x) {
    i16x16 all = to_bf16(x);
    _mm_storeu_si128((void *)to, _mm256_castsi256_si128(all));
    if (count == 16) _mm_storeu_si128((void *)(to + 8), _mm256_extracti128_si256(all, 1));
}

/* ---- pairs of bf16 --------------------------------------------------------- */

INLINE i32x16 load_ints(const void *x) {
    const __m256i *from = x;
    return (i32x16){_mm256_load_si256(from), _mm256_load_si256(from + 1)};
}

INLINE __m256 firsts_8(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }

INLINE __m256 seconds_8(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int32_t)0xffff0000)));
}

INLINE f32x16 firsts(i32x16 pairs) { return ONE(f32x16, firsts_8, pairs); }
INLINE f32x16 seconds(i32x16 pairs) { return ONE(f32x16, seconds_8, pairs); }

INLINE void zip(const bf16 *first, const bf16 *second, uint32_t *to) {
    i16x16 a = load_shorts(first), b = second ? load_shorts(second) : _mm256_setzero_si256();
    i16x16 low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
    _mm256_store_si256((void *)to, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_store_si256((void *)(to + 8), _mm256_permute2x128_si256(low, high, 0x31));
}

/* Eight pairs of each of eight rows, transposed. */
INLINE void transpose_8(const bf16 *rows, int64_t stride, uint32_t *to) {
    __m256i a[8], b[8];
    UNROLL for (int i = 0; i < 8; i++) a[i] = load_shorts(rows + i * stride);
    UNROLL for (int i = 0; i < 8; i += 2) { /* pairs of rows */
        b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4) { /* fours of rows: a[i + j] holds the columns j and 4 + j */
        a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    UNROLL for (int j = 0; j < 4; j++) {
        _mm256_store_si256((void *)(to + 16 * j), _mm256_permute2x128_si256(a[j], a[4 + j], 0x20));
        _mm256_store_si256((void *)(to + 16 * (4 + j)), _mm256_permute2x128_si256(a[j], a[4 + j], 0x31));
    }
}

INLINE void transpose(const int depth, const bf16 *rows, int64_t stride, uint32_t *to) {
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < depth; j += 8) transpose_8(rows + i * stride + 2 * j, stride, to + 16 * j + i);
}

/* ---- integers -------------------------------------------------------------- */

INLINE i32x16 splat_int(int32_t x) { return (i32x16){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
INLINE i32x16 add_ints(i32x16 a, i32x16 b) { return TWO(i32x16, _mm256_add_epi32, a, b); }
INLINE i32x16 sub_ints(i32x16 a, i32x16 b) { return TWO(i32x16, _mm256_sub_epi32, a, b); }
INLINE i32x16 rounded(f32x16 x) { return ONE(i32x16, _mm256_cvtps_epi32, x); }
INLINE f32x16 from_ints(i32x16 x) { return ONE(f32x16, _mm256_cvtepi32_ps, x); }

INLINE int32_t sum_of_ints(i32x16 x) {
    __m256i eight = _mm256_add_epi32(x.low, x.high);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 1)));
}

INLINE i16x16 to_shorts(i32x16 x) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xd8); }

/* By minpos of unsigned numbers, whose order is that of signed ones with the sign flipped. */
INLINE int16_t least_of(i16x16 x) {
    __m128i eight = _mm_min_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    eight = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(INT16_MIN)));
    return (int16_t)(_mm_cvtsi128_si32(eight) ^ 0x8000);
}

INLINE int16_t greatest_of(i16x16 x) { return (int16_t)~least_of(_mm256_xor_si256(x, _mm256_set1_epi16(-1))); }

/* ---- int8 products --------------------------------------------------------- */

#ifdef __AVXVNNI__

typedef int8_t code;
#define DEPTH 4
#define WEIGHT_SHIFT 128 /* dpbusd multiplies unsigned by signed numbers: the former are the weights, as in AVX-512 */

INLINE void store_codes(code *to, i32x16 x) {
    i16x16 shorts = to_shorts(x);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1));
    _mm_storeu_si128((void *)to, bytes);
}

INLINE i32x16 load_weights(const uint8_t *x) { return load_ints(x); }

INLINE i32x16 add_products(i32x16 sums, i32x16 weights, i32x16 row) {
    return THREE(i32x16, _mm256_dpbusd_avx_epi32, sums, weights, row);
}

#else

/* In pairs of 16 bits: the instruction for fours of 8 bits adds them in 16, where the sum does not fit. */
typedef int16_t code;
#define DEPTH 2
#define WEIGHT_SHIFT 0

INLINE void store_codes(code *to, i32x16 x) { store_shorts(to, to_shorts(x)); }

INLINE i32x16 load_weights(const uint8_t *x) {
    const __m128i *from = (const void *)x;
    return (i32x16){_mm256_cvtepi8_epi16(_mm_load_si128(from)), _mm256_cvtepi8_epi16(_mm_load_si128(from + 1))};
}

INLINE i32x16 add_products(i32x16 sums, i32x16 weights, i32x16 row) {
    return add_ints(sums, TWO(i32x16, _mm256_madd_epi16, weights, row));
}

#endif
