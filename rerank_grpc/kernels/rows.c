/* Operations on each row by itself: norms, gates, rotations. */
#include "heads.h"
#include "kernels.h"

/* ---- norm ------------------------------------------------------------------ */

/* Sixteen places of the sum of two rows, or of the second alone. */
INLINE f32x16 summed(const int adds, const bf16 *added, const bf16 *residual, int64_t i) {
    return adds ? add(widen(added + i), widen(residual + i)) : widen(residual + i);
}

/* One row normalized: to a mean of 0 and a variance of 1, or with `rms` to a mean square of 1. */
INLINE void norm_row(const int rms, const int adds, const bf16 *added, const bf16 *residual, const float *weight,
                     const float *bias, float epsilon, int64_t size, bf16 *out) {
    f32x16 mean = zeros(), squares = zeros();
    if (!rms) {
        f32x16 total = zeros();
        for (int64_t i = 0; i < size; i += 16) total = add(total, summed(adds, added, residual, i));
        mean = splat(sum_of(total) / size);
    }
    for (int64_t i = 0; i < size; i += 16) {
        f32x16 d = sub(summed(adds, added, residual, i), mean);
        squares = fmadd(d, d, squares);
    }
    f32x16 inverse = splat(1.0f / sqrtf(sum_of(squares) / size + epsilon));
    for (int64_t i = 0; i < size; i += 16) {
        f32x16 d = mul(sub(summed(adds, added, residual, i), mean), inverse);
        d = bias ? fmadd(d, load(weight + i), load(bias + i))
                 : mul(d, load(weight + i));
        narrow(out + i, d);
    }
}

/* out = norm(residual + added), row by row. With keeps_sum the sum, rounded to bf16, replaces the residual
 * and is normalized as rounded. added and bias may be NULL; size is a multiple of 16. */
void norm(const bf16 *added, bf16 *residual, const float *weight, const float *bias, float epsilon, int64_t rows,
          int64_t size, int rms, int keeps_sum, bf16 *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *a = added ? added + r * size : NULL;
        bf16 *b = residual + r * size, *y = out + r * size;
        if (a && keeps_sum) {
            for (int64_t i = 0; i < size; i += 16) narrow(b + i, summed(1, a, b, i));
            a = NULL;
        }
        switch (2 * !!rms + !!a) {
        case 0: norm_row(0, 0, a, b, weight, bias, epsilon, size, y); break;
        case 1: norm_row(0, 1, a, b, weight, bias, epsilon, size, y); break;
        case 2: norm_row(1, 0, a, b, weight, bias, epsilon, size, y); break;
        default: norm_row(1, 1, a, b, weight, bias, epsilon, size, y);
        }
    }
}

/* ---- gate ------------------------------------------------------------------ */

INLINE void gate_row(const enum activation kind, const bf16 *x, int64_t width, bf16 *out) {
    for (int64_t i = 0; i < width; i += 16) {
        f32x16 value = widen(x + i);
        value = kind == GELU ? gelu(value) : kind == GELU_TANH ? gelu_tanh(value) : silu(value);
        narrow(out + i, mul(value, widen(x + width + i)));
    }
}

/* out [rows, width] = activation(x[:, :width]) * x[:, width:]; width is a multiple of 16. */
void gate(const bf16 *x, int64_t rows, int64_t width, int kind, bf16 *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *from = x + r * 2 * width;
        bf16 *to = out + r * width;
        switch (kind) {
        case GELU: gate_row(GELU, from, width, to); break;
        case GELU_TANH: gate_row(GELU_TANH, from, width, to); break;
        default: gate_row(SILU, from, width, to);
        }
    }
}

/* ---- turn ------------------------------------------------------------------ */

/* Each head of each row, in place: normalized if there is a weight [size], then turned by the row's cosines
 * and sines [size / 2]. Rows are `stride` apart; size is a multiple of 16. */
void turn(bf16 *x, int64_t stride, int64_t rows, int64_t heads, int64_t size, const float *weight, float epsilon,
          const float *cosines, const float *sines, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t head = 0; head < heads; head++) {
            bf16 *at = x + r * stride + head * size;
            const float *cosine = cosines + r * (size / 2), *sine = sines + r * (size / 2);
            float inverse = weight ? inverse_rms(at, size, epsilon) : 1.0f;
            turn_head(at, size, weight, inverse, cosine, sine, at);
        }
}
