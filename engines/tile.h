/* The per-pixel arithmetic of gather and stitch, shared by the C library and by CUDA kernels.
 *
 * Everything here is exact in the same way on every host: built with -ffp-contract=off (nvcc: --fmad=false), the same
 * inputs give the same bits on x86-64, ARM64 and a GPU.
 */
#ifndef EDGESEG_TILE_H
#define EDGESEG_TILE_H

#include <stdint.h>

#ifdef __CUDACC__
#define TILE_FN static __host__ __device__ __forceinline__
#else
#define TILE_FN static inline
#endif

enum { TILE_PAD_ZERO = 0, TILE_PAD_EDGE = 1, TILE_PAD_REFLECT = 2 };

/* One channel of one pixel: (v - mean) / std with scale = 1/std and bias = -mean/std. */
TILE_FN float tile_normalise(uint8_t v, float scale, float bias) { return (float)v * scale + bias; }

/* Index into 0..n-1 for position i >= 0, which may lie beyond the end; -1 means "zero".  Reflection does not repeat
 * the border pixel (numpy's mode="reflect") and goes to and fro for positions more than n beyond the end. */
TILE_FN int32_t tile_pad_index(int32_t i, int32_t n, int32_t padding)
{
    if (i < n)
        return i;
    if (padding == TILE_PAD_ZERO)
        return -1;
    if (padding == TILE_PAD_EDGE || n == 1)
        return n - 1;
    int32_t period = 2 * (n - 1), r = i % period;
    return r < n ? r : period - r;
}

/* Where output position i (of `out`) samples an input of length `in`: bilinear, half-pixel centres, clamped at the
 * edges; in float32 as PyTorch computes it for interpolate(mode="bilinear", align_corners=False).
 * The value is in[*i0] * (1 - lambda) + in[*i1] * lambda. */
TILE_FN float tile_source(int32_t i, int32_t in, int32_t out, int32_t *i0, int32_t *i1)
{
    float scale = (float)in / (float)out;
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

typedef union {
    float value;
    int32_t integer;
    uint32_t bits;
} tile_word;

/* exp(x) for x <= 0 to about 1e-7 relative, never below exp(-87) = 1.6e-38.
 * Range reduction x = n ln2 + r with |r| <= ln2 / 2, then the Taylor polynomial of degree 7 in r.  The clamp compares
 * bits (negative floats order as unsigned integers) because compilers vectorise a minimum of integers everywhere. */
TILE_FN float tile_exp(float x)
{
    tile_word word = {x}, power;
    word.bits = word.bits > 0xc2ae0000u ? 0xc2ae0000u : word.bits; /* -87.0f */
    float clamped = word.value;
    int32_t n = (int32_t)(clamped * 1.44269504f - 0.5f); /* truncation rounds n + 1/2 to the nearest for x <= 0 */
    float whole = (float)n;
    float r = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.98412698e-4f;
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    power.integer = (n + 127) << 23;
    return p * power.value;
}

/* 1 when v is NaN or infinite, by its bits, so that no compiler option can optimise the question away. */
TILE_FN uint32_t tile_not_finite(float v)
{
    tile_word word = {v};
    return (word.bits & 0x7f800000u) == 0x7f800000u;
}

#endif
