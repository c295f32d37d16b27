/* Sixteen integers of 16 bits in one register, on all x86 CPUs that the kernels run on. */
#pragma once

#include <immintrin.h>
#include <stdint.h>

typedef __m256i i16x16;

INLINE i16x16 load_shorts(const void *x) { return _mm256_loadu_si256(x); }
INLINE void store_shorts(void *to, i16x16 x) { _mm256_storeu_si256(to, x); }
INLINE i16x16 lower(i16x16 a, i16x16 b) { return _mm256_min_epi16(a, b); }
INLINE i16x16 greater(i16x16 a, i16x16 b) { return _mm256_max_epi16(a, b); }

INLINE i16x16 ordered(i16x16 x) {
    return _mm256_xor_si256(x, _mm256_and_si256(_mm256_srai_epi16(x, 15), _mm256_set1_epi16(0x7fff)));
}
