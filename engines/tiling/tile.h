/* The per-pixel arithmetic of gather and stitch, shared by the C library and by CUDA kernels.
 *
 * Everything here is exact in the same way on every host: built with -ffp-contract=off (nvcc: --fmad=false), the same
 * inputs give the same bits on x86-64, ARM64 and a GPU.
 */
#ifndef EDGESEG_TILE_H
#define EDGESEG_TILE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define TILE_FN static __host__ __device__ __forceinline__
#define TILE_RESTRICT __restrict__
#elif defined(__GNUC__) /* inlined into the functions that are compiled for several instruction sets */
#define TILE_FN static inline __attribute__((always_inline))
#define TILE_RESTRICT __restrict__
#else
#define TILE_FN static inline
#define TILE_RESTRICT restrict
#endif

enum { TILE_PAD_ZERO = 0, TILE_PAD_EDGE = 1, TILE_PAD_REFLECT = 2 };

/* ---- what the kernels of tile.cu take; engines/gpu/kernels.py writes the same layouts -------------------------- */

#define TILE_MAX_WINDOWS 64 /* of one launch */
#define TILE_MAX_BANDS 64   /* channels of an image: engines/spec.py, MAX_BANDS */

/* One window of a launch: where it lies, and where its logits go.  Places are read from memory of the GPU, so that one
 * recorded launch serves every window.  The rows of the image from first_row on lie at `image`; null for a window that
 * is run for nothing.  Strides in bytes.  arrived: counts the windows whose logits are there. */
typedef struct {
    const uint8_t *image;
    void *logits;
    int32_t *arrived;
    int64_t stride_y, stride_x, stride_c;
    int32_t height, width, first_row, top, left;
} tile_window;

/* The windows of `places`.  plane, scale, bias: by channel of the image: the plane of a window that it becomes, and its
 * normalisation. */
typedef struct {
    const tile_window *places;
    void *out; /* (windows, channels, window_h, window_w), float or half */
    int32_t plane[TILE_MAX_BANDS];
    float scale[TILE_MAX_BANDS], bias[TILE_MAX_BANDS];
    int32_t channels, window_h, window_w, padding, windows;
} tile_gather_launch;

/* Logits (windows, elements), float or half, to where `places` want them. */
typedef struct {
    const tile_window *places;
    const void *logits;
    int64_t elements;
    int32_t windows;
} tile_scatter_launch;

/* Rows [row0, row1) of an image.  Windows lie where Tiling.placements puts them: `rows` x `columns` of them.  Logits
 * of window (r, c) are (classes, logits_h, logits_w) elements at (r % ring * pitch + c) times as many, for the rows of
 * windows held0 <= r < held1 only.  weight_y (window_h) and weight_x (window_w), or both null.  labels and confidence
 * (or null) point to row0; labels_stride in bytes, confidence_stride in elements.  status: bits of TILE_STATUS.
 * cut: of one class alone, see tile_above. */
typedef struct {
    const void *logits;
    const float *weight_y, *weight_x;
    uint8_t *labels;
    float *confidence;
    int32_t *status;
    int64_t labels_stride, confidence_stride;
    int32_t height, width, window_h, window_w, stride_h, stride_w, rows, columns;
    int32_t logits_h, logits_w, classes, ring, pitch, held0, held1, row0, row1;
    int32_t ratio_log2_h, ratio_log2_w; /* where window / logits is a power of two, else -1 */
    float cut;
} tile_stitch_launch;

enum { TILE_STATUS_NOT_FINITE = 1, TILE_STATUS_UNCOVERED = 2 };
#define TILE_MEANS_CLASSES 8 /* of mean logits for each blockIdx.z */

/* One channel of one pixel: (v - mean) / std with scale = 1/std and bias = -mean/std. */
TILE_FN float tile_normalise(uint8_t v, float scale, float bias) { return (float)v * scale + bias; }

/* Index into 0..n-1 for position i, which may lie before the beginning or beyond the end; -1 means "zero".  Reflection
 * does not repeat the border pixel (numpy's mode="reflect") and goes to and fro for positions more than n outside. */
TILE_FN int32_t tile_pad_index(int32_t i, int32_t n, int32_t padding)
{
    if (i >= 0 && i < n)
        return i;
    if (padding == TILE_PAD_ZERO)
        return -1;
    if (padding == TILE_PAD_EDGE || n == 1)
        return i < 0 ? 0 : n - 1;
    int32_t period = 2 * (n - 1), r = (i < 0 ? -i : i) % period; /* the same on both sides of 0 */
    return r < n ? r : period - r;
}

/* Where output position i (of `out`) samples an input of length `in`: bilinear, half-pixel centres, clamped at the
 * edges; in float32 as PyTorch computes it for interpolate(mode="bilinear", align_corners=False).
 * The value is in[*i0] * (1 - lambda) + in[*i1] * lambda. */
TILE_FN float tile_source_by(int32_t i, float scale, int32_t in, int32_t *i0, int32_t *i1)
{
    float position = ((float)i + 0.5f) * scale - 0.5f;
    if (position < 0.0f)
        position = 0.0f;
    int32_t low = (int32_t)position;
    if (low > in - 1)
        low = in - 1;
    *i0 = low;
    *i1 = low < in - 1 ? low + 1 : low;
    float lambda = position - (float)low;
    return lambda < 1.0f ? lambda : 1.0f;
}

TILE_FN float tile_scale(int32_t in, int32_t out) { return (float)in / (float)out; }

TILE_FN float tile_source(int32_t i, int32_t in, int32_t out, int32_t *i0, int32_t *i1)
{
    return tile_source_by(i, tile_scale(in, out), in, i0, i1);
}

/* The same for a whole `ratio` = out / in, a power of two, where it repeats: output ratio * j + phase is
 * in[j + *shift] * (1 - lambda) + in[j + *shift + 1] * lambda, with in[-1] and in[n] repeating the edges.
 * A power of two only: there tile_source rounds nothing, so both give the same lambda. */
TILE_FN float tile_phase_source(int32_t phase, int32_t ratio, int32_t *shift)
{
    float position = ((float)phase + 0.5f) / (float)ratio - 0.5f;
    *shift = position < 0.0f ? -1 : 0;
    return position - (float)*shift;
}

/* Linear interpolation, along either axis; la is 1 - lambda, lb is lambda. */
TILE_FN float tile_lerp(float a, float b, float la, float lb) { return a * la + b * lb; }

typedef union {
    float value;
    int32_t integer;
    uint32_t bits;
} tile_word;

/* exp(-d) for d >= 0 to 1.4 units in the last place, never below exp(-87) = 1.6e-38; exp(-87) where d is NaN or
 * negative.  Range reduction -d = r - n ln2 with |r| <= ln2 / 2, then the minimax polynomial of degree 6 in r.  The
 * clamp compares bits (floats of 0 and more order as integers; NaN and negative ones come above 87) because compilers
 * vectorise a minimum of integers everywhere, and because a NaN must not reach the conversion to an integer. */
TILE_FN float tile_exp_minus(float d)
{
    tile_word word = {d}, power;
    word.bits = word.bits > 0x42ae0000u ? 0x42ae0000u : word.bits; /* 87.0f */
    float clamped = word.value;
    int32_t n = (int32_t)(clamped * 1.44269504f + 0.5f); /* truncation rounds to the nearest */
    float whole = (float)n;
    float r = (whole * 0.693359375f - clamped) - whole * 2.12194440e-4f; /* ln2 = 0.693359375 - 0.000212194440 */
    float p = 1.38436048e-3f;
    p = p * r + 8.37419555e-3f;
    p = p * r + 4.16680053e-2f;
    p = p * r + 1.66664302e-1f;
    p = p * r + 4.99999940e-1f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    power.integer = (127 - n) << 23;
    return p * power.value;
}

/* Of one class alone, which stands for two: 1 where its mean logit lies above the cut, log(t / (1 - t)) of the
 * threshold t, and so its probability 1 / (1 + exp(-mean)) above t. */
TILE_FN int32_t tile_above(float mean, float cut) { return mean > cut; }

/* The probability of that label: of the mean's sign the larger one, 1 / (1 + e) with e = exp(-|mean|), else e times it. */
TILE_FN float tile_probability(float mean, int32_t label)
{
    tile_word word = {mean};
    word.bits &= 0x7fffffffu;
    float e = tile_exp_minus(word.value), larger = 1.0f / (1.0f + e), smaller = e * larger;
    int32_t positive = mean > 0.0f;
    return positive == label ? larger : smaller;
}

/* 1 when v is NaN or infinite, by its bits, so that no compiler option can optimise the question away. */
TILE_FN uint32_t tile_not_finite(float v)
{
    tile_word word = {v};
    return (word.bits & 0x7f800000u) == 0x7f800000u;
}

/* IEEE 754 binary16 by its bits.  NaN stays a NaN of its sign. */
TILE_FN float tile_half_to_float(uint16_t half)
{
#ifdef __CUDA_ARCH__ /* written out, because NVRTC comes without cuda_fp16.h */
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
#else
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = (half >> 10) & 31u, fraction = half & 0x3ffu;
    tile_word word;
    if (exponent == 0)
        word.value = (float)fraction * 5.9604644775390625e-8f; /* 2^-24 */
    else if (exponent == 31)
        word.bits = 0x7f800000u | (fraction << 13);
    else
        word.bits = ((exponent + 112) << 23) | (fraction << 13);
    word.bits |= sign;
    return word.value;
#endif
}

/* The nearest binary16, ties to even; 65520 and more become infinite. */
TILE_FN uint16_t tile_float_to_half(float value)
{
#ifdef __CUDA_ARCH__
    uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
#else
    tile_word word = {value};
    uint32_t sign = (word.bits >> 16) & 0x8000u, result;
    word.bits &= 0x7fffffffu;
    if (word.bits > 0x7f800000u)
        result = 0x7e00u;
    else if (word.bits >= 0x477ff000u) /* 65520 */
        result = 0x7c00u;
    else if (word.bits < 0x38800000u) { /* below 2^-14: the unit in the last place of 0.5f + value is binary16's */
        word.value += 0.5f;
        result = word.bits - 0x3f000000u;
    } else
        result = (word.bits + 0xfffu + ((word.bits >> 13) & 1u) - (112u << 23)) >> 13;
    return (uint16_t)(sign | result);
#endif
}

/* ---- rows: every array holds n or more contiguous floats ------------------------------------------------------- */

/* Vertical interpolation v[j] = above[j] a + below[j] b for j0 <= j < j1.  Returns 1 if one is not finite. */
TILE_FN uint32_t tile_row_vertical(const float *above, const float *below, float a, float b, int32_t j0, int32_t j1,
                                   float *TILE_RESTRICT v)
{
    uint32_t bad = 0;
    if (b == 0.0f) { /* full-resolution logits: half the reading */
        for (int32_t j = j0; j < j1; j++) {
            v[j] = above[j] * a;
            bad |= tile_not_finite(v[j]);
        }
    } else {
        for (int32_t j = j0; j < j1; j++) {
            v[j] = tile_lerp(above[j], below[j], a, b);
            bad |= tile_not_finite(v[j]);
        }
    }
    return bad;
}

/* out += one phase of a whole ratio: v[j] (1 - lambda) + v[j + 1] lambda, times w unless w is NULL. */
TILE_FN void tile_row_phase(const float *TILE_RESTRICT v, float lambda, const float *TILE_RESTRICT w, int32_t n,
                            float *TILE_RESTRICT out)
{
    float la = 1.0f - lambda;
    if (lambda == 0.0f && w) /* full-resolution logits */
        for (int32_t j = 0; j < n; j++)
            out[j] += v[j] * w[j];
    else if (lambda == 0.0f)
        for (int32_t j = 0; j < n; j++)
            out[j] += v[j];
    else if (w)
        for (int32_t j = 0; j < n; j++)
            out[j] += tile_lerp(v[j], v[j + 1], la, lambda) * w[j];
    else
        for (int32_t j = 0; j < n; j++)
            out[j] += tile_lerp(v[j], v[j + 1], la, lambda);
}

/* out += any ratio: v[i0] (1 - lambda) + v[i1] lambda through tables of n entries, times w unless w is NULL. */
TILE_FN void tile_row_table(const float *TILE_RESTRICT v, const int32_t *TILE_RESTRICT i0,
                            const int32_t *TILE_RESTRICT i1, const float *TILE_RESTRICT lambda,
                            const float *TILE_RESTRICT w, int32_t n, float *TILE_RESTRICT out)
{
    if (w)
        for (int32_t x = 0; x < n; x++)
            out[x] += tile_lerp(v[i0[x]], v[i1[x]], 1.0f - lambda[x], lambda[x]) * w[x];
    else
        for (int32_t x = 0; x < n; x++)
            out[x] += tile_lerp(v[i0[x]], v[i1[x]], 1.0f - lambda[x], lambda[x]);
}

/* Class k with these scores enters the running best and its label. */
TILE_FN void tile_row_argmax(const float *TILE_RESTRICT scores, int32_t k, int32_t n, float *TILE_RESTRICT best,
                             int32_t *TILE_RESTRICT label)
{
    for (int32_t x = 0; x < n; x++) {
        float score = scores[x], old = best[x];
        int32_t wins = -(score > old); /* strictly: the lowest class index wins a tie */
        best[x] = score > old ? score : old;
        label[x] = (k & wins) | (label[x] & ~wins); /* a select: GCC makes a branch of it, often mispredicted */
    }
}

/* Labels of one class alone, see tile_above; its weighted sums become their means. */
TILE_FN void tile_row_threshold(float cut, const float *TILE_RESTRICT weight, int32_t n, float *TILE_RESTRICT sums,
                                int32_t *TILE_RESTRICT label)
{
    for (int32_t x = 0; x < n; x++) {
        float mean = sums[x] / weight[x];
        label[x] = tile_above(mean, cut);
        sums[x] = mean;
    }
}

/* The probabilities of those labels, in place of the means. */
TILE_FN void tile_row_probability(const int32_t *TILE_RESTRICT label, int32_t n, float *TILE_RESTRICT means)
{
    for (int32_t x = 0; x < n; x++)
        means[x] = tile_probability(means[x], label[x]);
}

/* Softmax probability of the winner, into best: 1 / sum_k exp((best - scores_k) / weight).
 * scores: class k at scores + k * stride.  weight is overwritten; sum is scratch. */
TILE_FN void tile_row_confidence(const float *TILE_RESTRICT scores, size_t stride, int32_t classes, int32_t n,
                                 float *TILE_RESTRICT best, float *TILE_RESTRICT weight, float *TILE_RESTRICT sum)
{
    for (int32_t x = 0; x < n; x++) {
        weight[x] = 1.0f / weight[x];
        sum[x] = 0.0f;
    }
    for (int32_t k = 0; k < classes; k++) {
        const float *row = scores + (size_t)k * stride;
        for (int32_t x = 0; x < n; x++)
            sum[x] += tile_exp_minus((best[x] - row[x]) * weight[x]);
    }
    for (int32_t x = 0; x < n; x++)
        best[x] = 1.0f / sum[x];
}

#endif
