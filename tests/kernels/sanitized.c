/* Runs every function over random shapes, each array exactly as long as it must be: for sanitizers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#define ROUNDS 60

static int64_t below(int64_t count) { return count > 0 ? rand() % count : 0; }

static int64_t lengths[] = {0, 1, 2, 5, 6, 7, 15, 16, 17, 31, 33, 63, 64, 65, 97, 130};
static int64_t length(void) { return lengths[below(sizeof lengths / sizeof *lengths)]; }

static void *bytes(int64_t count) {
    unsigned char *made = malloc((size_t)count);
    for (int64_t i = 0; i < count; i++) made[i] = (unsigned char)rand();
    return made;
}

/* Numbers of any size, infinite ones and NaN among them, or small ones. */
static bf16 *numbers(int64_t count) {
    bf16 *made = bytes(count * 2);
    if (below(4))
        for (int64_t i = 0; i < count; i++) made[i] = (bf16)((made[i] & 0x80ff) | 0x3f00);
    return made;
}

static float *floats_of(int64_t count) {
    float *made = malloc((size_t)count * 4);
    for (int64_t i = 0; i < count; i++) made[i] = (float)(rand() % 2001 - 1000) / 1000;
    return made;
}

static void rows(int threads) {
    int64_t count = length(), size = 16 * (1 + below(9)), heads = 1 + below(3), stride = heads * size + below(20);
    bf16 *added = numbers(count * size), *residual = numbers(count * size), *out = numbers(count * size);
    float *weight = floats_of(size), *bias = floats_of(size);
    norm(below(2) ? added : NULL, residual, weight, below(2) ? bias : NULL, 1e-5f, count, size, (int)below(2),
         (int)below(2), out, threads);
    bf16 *wide = numbers(count * 2 * size);
    gate(wide, count, size, (int)below(3), out, threads);
    bf16 *turned = numbers(count ? (count - 1) * stride + heads * size : 0);
    float *cosines = floats_of(count * size / 2), *sines = floats_of(count * size / 2);
    turn(turned, stride, count, heads, size, below(2) ? weight : NULL, 1e-6f, cosines, sines, threads);
    void *made[] = {added, residual, out, weight, bias, wide, turned, cosines, sines};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) free(made[i]);
}

static void int8(int threads) {
    int64_t m = length(), n = 64 * (1 + below(4)), k = 16 * (1 + below(8)); /* 64 and 128 too, which AMX takes */
    int8_t *weight = bytes(n * k);
    code *q = bytes(m * k * (int64_t)sizeof *q);
    uint8_t *packed = aligned_alloc(64, (size_t)(n * k));
    bf16 *x = numbers(m * k), *out = numbers(m * n);
    float *scale = floats_of(m), *middle = floats_of(m), *w_scale = floats_of(n), *w_sum = floats_of(n);
    float *bias = floats_of(n);
    int32_t *sum = bytes(m * 4);
    pack_int8(weight, n, k, packed);
    quantize(x, m, k, q, scale, middle, sum, threads);
    linear_int8(q, scale, middle, sum, packed, w_scale, w_sum, bias, out, m, n, k, (int)below(2), threads);
    void *made[] = {weight, q, packed, x, out, scale, middle, w_scale, w_sum, bias, sum};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) free(made[i]);
}

/* Where parts begin, and the end: each has as many rows as `like` says, or one, or any number. */
static int32_t *starts(int64_t parts, const int32_t *like, int64_t kind) {
    int32_t *made = malloc((size_t)(parts + 1) * 4);
    made[0] = 0;
    for (int64_t i = 0; i < parts; i++)
        made[i + 1] = made[i] + (int32_t)(!like || kind == 2 ? length() : kind ? 1 : like[i + 1] - like[i]);
    return made;
}

static int attend(int threads) {
    int64_t parts = below(7), prefixes = below(4), key_heads = 1 + below(3), heads = key_heads * (1 + below(3));
    int64_t size = 16 * (1 + below(16)), half = size / 2, gap = below(20);
    int32_t *key_starts = starts(parts, NULL, 0), *query_starts = starts(parts, key_starts, below(3));
    int32_t *continued = malloc((size_t)parts * 4);
    for (int64_t i = 0; i < parts; i++) continued[i] = (int32_t)(below(prefixes + 1) - 1);
    int64_t keys = key_starts[parts], queries = query_starts[parts], width = key_heads * size;
    int64_t query_stride = heads * size + gap, key_stride = width + gap;
    bf16 *query = numbers(queries ? (queries - 1) * query_stride + heads * size : 0);
    bf16 *key = numbers(keys ? (keys - 1) * key_stride + width : 0);
    bf16 *value = numbers(keys ? (keys - 1) * key_stride + width : 0), *out = numbers(queries * heads * size);
    float *cosines[] = {floats_of(queries * half), floats_of(queries * half), floats_of(keys * half),
                        floats_of(keys * half)};
    struct prefix kept[4];
    for (int64_t i = 0; i < prefixes; i++) {
        int64_t tokens = length();
        kept[i] = (struct prefix){numbers(tokens * width), numbers(tokens * width), width, size, width, size, tokens};
    }
    struct attention call = {query, key, value, out, query_stride, key_stride, key_stride, query_starts, key_starts,
                             parts, heads, key_heads, size, NULL, NULL, NULL, NULL, kept, continued, prefixes,
                             below(2) ? length() : 0, 0.1f, (int32_t)below(2), threads};
    if (below(2)) {
        call.query_cosines = cosines[0];
        call.query_sines = cosines[1];
        call.key_cosines = cosines[2];
        call.key_sines = cosines[3];
    }
    if (below(2)) {
        call.continued = NULL;
        call.prefixes = NULL;
        call.prefix_count = 0;
    }
    int failed = attention(&call);
    for (int64_t i = 0; i < prefixes; i++) {
        free((void *)kept[i].key);
        free((void *)kept[i].value);
    }
    void *made[] = {key_starts, query_starts, continued, query, key, value, out, cosines[0], cosines[1], cosines[2],
                    cosines[3]};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) free(made[i]);
    return failed;
}

int main(void) {
    srand(1);
    for (int round = 0; round < ROUNDS; round++) {
        int threads = 1 + round % 3;
        rows(threads);
        int8(threads);
        if (attend(threads) || attend(threads)) return 2;
    }
    puts("clean");
    return 0;
}
