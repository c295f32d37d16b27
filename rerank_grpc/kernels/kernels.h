/* The functions that native.py calls; each says there what it takes. */
#pragma once

#include "vectors.h"

#define EXPORTED __attribute__((visibility("default")))

enum activation { GELU, GELU_TANH, SILU }; /* as ACTIVATIONS in native.py */

/* The kept keys and values of one prefix, turned; *_stride is from one token, *_head from one head to the next. */
struct prefix {
    const bf16 *key, *value;
    int64_t key_stride, key_head, value_stride, value_head, tokens;
};

/* The arguments of attention, in the order of _Attention in native.py.
 *
 * Part i has queries query_starts[i] to query_starts[i + 1], own keys key_starts[i] to key_starts[i + 1], and
 * before these the keys of prefixes[continued[i]], unless that is -1 or `continued` NULL. Cosines and sines,
 * one row of size / 2 for each row of query and key, turn these; NULL where they are turned already. */
struct attention {
    const bf16 *query, *key, *value;
    bf16 *out; /* [queries, heads * size] */
    int64_t query_stride, key_stride, value_stride;
    const int32_t *query_starts, *key_starts;
    int64_t parts, heads, key_heads, size;
    const float *query_cosines, *query_sines, *key_cosines, *key_sines;
    const struct prefix *prefixes;
    const int32_t *continued;
    int64_t prefix_count;
    int64_t window; /* a query sees what is nearer than this; 0 for no window */
    float scale;
    int32_t causal; /* whether a query sees up to its own place, the last that of the last key; else both ways */
    int32_t threads;
};

EXPORTED void norm(const bf16 *added, bf16 *residual, const float *weight, const float *bias, float epsilon,
                   int64_t rows, int64_t size, int rms, int keeps_sum, bf16 *out, int threads);
EXPORTED void gate(const bf16 *x, int64_t rows, int64_t width, int kind, bf16 *out, int threads);
EXPORTED void turn(bf16 *x, int64_t stride, int64_t rows, int64_t heads, int64_t size, const float *weight,
                   float epsilon, const float *cosines, const float *sines, int threads);

EXPORTED void pack_int8(const int8_t *w, int64_t n, int64_t k, uint8_t *packed);
EXPORTED int code_bytes(void);
EXPORTED void quantize(const bf16 *x, int64_t rows, int64_t size, void *q, float *scale, float *middle,
                       int32_t *sum, int threads);
EXPORTED void linear_int8(const void *x, const float *scale, const float *middle, const int32_t *sum,
                          const uint8_t *w, const float *w_scale, const float *w_sum, const float *bias, bf16 *out,
                          int64_t m, int64_t n, int64_t k, int act, int threads);

/* Returns 0, or 1 if memory ran out. */
EXPORTED int attention(const struct attention *call);
