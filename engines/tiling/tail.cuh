/* The tail of a decoder on a GPU, see tail.h: a block of threads makes TAIL_PIXELS pixels of one row, all classes.
 *
 * Channels are worked on TAIL_CHUNK at once: the columns of the maps that the pixels sample are mixed from their two rows
 * into shared memory, each thread makes 4 channels of 4 pixels of them, and then adds a part of a pixel's classes up.
 * Weights come through the read-only cache, where a warp reads one or two lines.  What shared memory holds is laid out so
 * that no two lanes meet in a bank: pixels' channels in rows of TAIL_CHUNK + 4. */
#ifndef EDGESEG_TAIL_CUH
#define EDGESEG_TAIL_CUH

#include "tail.h"
#include "tile_device.cuh"

enum {
    TAIL_FOURS = TAIL_CHUNK / 4, /* threads beside each other in a chunk's channels */
    TAIL_PITCH = TAIL_CHUNK + 4
};

TILE_DEVICE void tail_load4(const float *p, float (&v)[4])
{
    float4 four = __ldg(reinterpret_cast<const float4 *>(p));
    v[0] = four.x;
    v[1] = four.y;
    v[2] = four.z;
    v[3] = four.w;
}

TILE_DEVICE void tail_load4(const tile_half *p, float (&v)[4])
{
    uint2 four = __ldg(reinterpret_cast<const uint2 *>(p));
    v[0] = tile_half_to_float((uint16_t)four.x);
    v[1] = tile_half_to_float((uint16_t)(four.x >> 16));
    v[2] = tile_half_to_float((uint16_t)four.y);
    v[3] = tile_half_to_float((uint16_t)(four.y >> 16));
}

TILE_DEVICE void tail_shared4(const float *p, float (&v)[4])
{
    float4 four = *reinterpret_cast<const float4 *>(p);
    v[0] = four.x;
    v[1] = four.y;
    v[2] = four.z;
    v[3] = four.w;
}

/* One block's part of a launch, and where things lie in its shared memory. */
struct tail_part {
    int32_t x0, n, y; /* pixels x0..x0+n of row y */
    float *direct;    /* (TAIL_PIXELS, inputs) */
    float *mixed;     /* (span, TAIL_CHUNK): the maps' columns, one map after the other */
    float *hidden;    /* (TAIL_PIXELS, TAIL_PITCH) */
    int32_t *left, *right; /* (maps, TAIL_PIXELS): rows of mixed */
    float *lambda;
};

/* Where the pixels sample the maps, and their own channels: once a block. */
template <typename T> TILE_DEVICE void tail_begin(const tail_launch &a, const tail_part &b)
{
    int32_t thread = (int32_t)threadIdx.x, start = 0;
    for (int32_t i = 0; i < a.count; i++) {
        int32_t first, last, unused;
        tile_source(b.x0, a.map_w[i], a.width, &first, &unused);
        tile_source(b.x0 + b.n - 1, a.map_w[i], a.width, &unused, &last);
        for (int32_t p = thread; p < TAIL_PIXELS; p += (int32_t)blockDim.x) {
            int32_t left, right;
            float lambda = tile_source(tile_min(b.x0 + p, b.x0 + b.n - 1), a.map_w[i], a.width, &left, &right);
            b.left[i * TAIL_PIXELS + p] = start + left - first;
            b.right[i * TAIL_PIXELS + p] = start + right - first;
            b.lambda[i * TAIL_PIXELS + p] = lambda;
        }
        start += last - first + 1;
    }
    size_t pixel = ((size_t)blockIdx.z * (size_t)a.height + (size_t)b.y) * (size_t)a.width + (size_t)b.x0;
    const T *from = static_cast<const T *>(a.direct) + pixel * (size_t)a.inputs;
    for (int32_t at = 4 * thread; at < TAIL_PIXELS * a.inputs; at += 4 * (int32_t)blockDim.x) {
        float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (at < b.n * a.inputs)
            tail_load4(from + at, v);
        tile_store4(b.direct + at, v);
    }
}

/* The columns of all maps between their rows above and below, channels c0 on. */
template <typename T> TILE_DEVICE void tail_mix_columns(const tail_launch &a, const tail_part &b, int32_t c0)
{
    int32_t four = (int32_t)threadIdx.x % TAIL_FOURS * 4, start = 0;
    for (int32_t i = 0; i < a.count; i++) {
        int32_t first, last, y0, y1, unused;
        tile_source(b.x0, a.map_w[i], a.width, &first, &unused);
        tile_source(b.x0 + b.n - 1, a.map_w[i], a.width, &unused, &last);
        float lambda = tile_source(b.y, a.map_h[i], a.height, &y0, &y1), la = 1.0f - lambda;
        size_t columns = (size_t)a.map_w[i], channels = (size_t)a.channels;
        const T *map = static_cast<const T *>(a.maps[i]) + (size_t)blockIdx.z * (size_t)a.map_h[i] * columns * channels;
        const T *above = map + ((size_t)y0 * columns + (size_t)first) * channels + (size_t)(c0 + four);
        const T *below = map + ((size_t)y1 * columns + (size_t)first) * channels + (size_t)(c0 + four);
        if (c0 + four < a.channels)
            for (int32_t e = (int32_t)threadIdx.x / TAIL_FOURS; e <= last - first; e += (int32_t)blockDim.x / TAIL_FOURS) {
                float up[4], down[4];
                tail_load4(above + (size_t)e * channels, up);
                tail_load4(below + (size_t)e * channels, down);
#pragma unroll
                for (int c = 0; c < 4; c++)
                    up[c] = tail_mix(up[c], down[c], la, lambda);
                tile_store4(b.mixed + (start + e) * TAIL_CHUNK + four, up);
            }
        start += last - first + 1;
    }
}

/* 4 channels of 4 pixels, by the first 128 threads. */
TILE_DEVICE void tail_hidden(const tail_launch &a, const tail_part &b, int32_t c0)
{
    int32_t four = (int32_t)threadIdx.x % TAIL_FOURS * 4, pixel = (int32_t)threadIdx.x / TAIL_FOURS * 4;
    if (c0 + four >= a.channels || pixel >= TAIL_PIXELS)
        return;
    float v[4][4], w[4];
    tail_load4(a.bias + c0 + four, w);
#pragma unroll
    for (int p = 0; p < 4; p++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            v[p][c] = w[c];
    const float *weights = a.project + c0 + four;
    for (int32_t j = 0; j < a.inputs; j += 4) {
        float x[4][4];
#pragma unroll
        for (int p = 0; p < 4; p++)
            tail_shared4(b.direct + (pixel + p) * a.inputs + j, x[p]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            tail_load4(weights + (size_t)(j + i) * (size_t)a.channels, w);
#pragma unroll
            for (int p = 0; p < 4; p++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    v[p][c] = tail_fma(w[c], x[p][i], v[p][c]);
        }
    }
    for (int32_t i = 0; i < a.count; i++)
#pragma unroll
        for (int p = 0; p < 4; p++) {
            int32_t at = i * TAIL_PIXELS + pixel + p;
            float left[4], right[4], lambda = b.lambda[at], la = 1.0f - lambda;
            tail_shared4(b.mixed + b.left[at] * TAIL_CHUNK + four, left);
            tail_shared4(b.mixed + b.right[at] * TAIL_CHUNK + four, right);
#pragma unroll
            for (int c = 0; c < 4; c++)
                v[p][c] = tail_fma(right[c], lambda, tail_fma(left[c], la, v[p][c]));
        }
#pragma unroll
    for (int p = 0; p < 4; p++) {
#pragma unroll
        for (int c = 0; c < 4; c++)
            v[p][c] = tail_relu(v[p][c]);
        tile_store4(b.hidden + (pixel + p) * TAIL_PITCH + four, v[p]);
    }
}

/* FOURS: fours of classes that a thread adds up.  PARTS: threads of a pixel, which share a.padded classes. */
template <typename T, int FOURS, int PARTS> TILE_DEVICE void tail(const tail_launch &a)
{
    extern __shared__ float4 tail_shared[]; /* of the type that it is read in: aligned */
    int32_t x0 = (int32_t)blockIdx.x * TAIL_PIXELS;
    tail_part b = {x0, tile_min(TAIL_PIXELS, a.width - x0), (int32_t)blockIdx.y, reinterpret_cast<float *>(tail_shared),
                   nullptr, nullptr, nullptr, nullptr, nullptr};
    b.mixed = b.direct + TAIL_PIXELS * a.inputs;
    b.hidden = b.mixed + a.span * TAIL_CHUNK;
    b.lambda = b.hidden + TAIL_PIXELS * TAIL_PITCH;
    b.left = reinterpret_cast<int32_t *>(b.lambda + a.count * TAIL_PIXELS);
    b.right = b.left + a.count * TAIL_PIXELS;
    tail_begin<T>(a, b);
    int32_t pixel = (int32_t)threadIdx.x % TAIL_PIXELS, part = (int32_t)threadIdx.x / TAIL_PIXELS * 4 * FOURS;
    float score[FOURS][4];
#pragma unroll
    for (int q = 0; q < FOURS; q++)
        tail_load4(a.class_bias + part + 4 * q, score[q]);
    for (int32_t c0 = 0; c0 < a.channels; c0 += TAIL_CHUNK) {
        tail_mix_columns<T>(a, b, c0);
        __syncthreads();
        tail_hidden(a, b, c0);
        __syncthreads();
        const float *weights = a.classify + (size_t)c0 * (size_t)(4 * FOURS * PARTS) + part;
#pragma unroll 1
        for (int32_t c = 0; c < tile_min(TAIL_CHUNK, a.channels - c0); c += 4) {
            float v[4];
            tail_shared4(b.hidden + pixel * TAIL_PITCH + c, v);
#pragma unroll
            for (int q = 0; q < FOURS; q++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float w[4];
                    tail_load4(weights + (c + i) * 4 * FOURS * PARTS + 4 * q, w);
#pragma unroll
                    for (int k = 0; k < 4; k++)
                        score[q][k] = tail_fma(w[k], v[i], score[q][k]);
                }
        }
    }
    if (pixel >= b.n)
        return;
    size_t plane = (size_t)a.height * (size_t)a.width;
    float *logits = a.logits + ((size_t)blockIdx.z * (size_t)a.classes * (size_t)a.height + (size_t)b.y) * (size_t)a.width +
                    (size_t)(x0 + pixel);
#pragma unroll
    for (int q = 0; q < FOURS; q++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (part + 4 * q + k < a.classes)
                logits[(size_t)(part + 4 * q + k) * plane] = score[q][k];
}

#endif
