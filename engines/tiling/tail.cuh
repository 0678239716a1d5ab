/* The tail of a decoder on a GPU, see tail.h: a block of threads makes some pixels of one row, all classes.
 *
 * Bound by arithmetic, so laid out as a matrix product: a thread keeps 8 pixels times some channels of the hidden layer in
 * registers, and 8 pixels times some classes, so that each value that it loads feeds many multiply-adds.  A warp makes 64
 * pixels: its lanes are 8 eights of pixels beside each other times 4 quads of channels, then of classes.
 * Channels are worked on TAIL_CHUNK at once.  Their weights are copied to shared memory meanwhile: those of the classes
 * during the hidden layer, those of the next channels during the classes, with a barrier between.
 * Shared memory is laid out so that no two lanes meet in a bank. */
#ifndef EDGESEG_TAIL_CUH
#define EDGESEG_TAIL_CUH

#include "tail.h"
#include "tail_sample.cuh"

/* GROUPS: warps that share the channels and the classes of 64 pixels.  One alone has another beside it, for the next 64,
 * so that two read the same weights.  engines/tiling/tail.py has the same numbers. */
template <int GROUPS, int CLASSES> struct tail_sizes {
    enum {
        BESIDE = GROUPS == 1 ? 2 : 1,
        WARPS = GROUPS * BESIDE,
        PIXELS = 64 * BESIDE,                   /* of a block */
        PITCH = PIXELS + 4,                     /* of a row of pixels in shared memory */
        OWN = 8 / GROUPS,                       /* channels of a chunk that a thread makes */
        PADDED = CLASSES,
        SCORES = CLASSES / 4 / GROUPS,          /* classes that a thread adds up */
        STAGE = CLASSES > 80 ? 16 : TAIL_CHUNK, /* channels whose weights of classes are held at once */
    };
};

/* One block's part of a launch, where things lie in its shared memory, and a thread's part of it. */
struct tail_part {
    int32_t x0, n, y; /* pixels x0..x0+n of row y */
    float *direct;    /* (inputs, PITCH): pixels in the order of tail_pixel */
    float *project;   /* (inputs, TAIL_CHUNK) */
    float *classify;  /* (STAGE, CLASSES) */
    float *hidden;    /* (TAIL_CHUNK, PITCH) where several groups share it; pixels as in direct */
    tail_rows *rows;  /* of each map */
    int32_t warp, lane, eight, quad, group;
    int32_t pixel, at; /* a thread's first pixel in the block, and where it lies in a row of direct */
};

/* The pixel at a place in a row of shared memory: the first four of all eights of a warp come first. */
TILE_DEVICE int32_t tail_pixel(int32_t place)
{
    return (place & ~63) + (place & 28) * 2 + (place & 32) / 8 + (place & 3);
}

/* A thread's part.  Made again for every step of the work: kept, it takes registers that the sums need. */
template <typename SIZES> TILE_DEVICE tail_part tail_mine(const tail_launch &a)
{
    extern __shared__ float4 tail_shared[]; /* of the type that it is read in: aligned */
    int32_t thread = (int32_t)threadIdx.x;
    TILE_KEEP_INT(thread);
    tail_part b;
    b.x0 = (int32_t)blockIdx.x * SIZES::PIXELS;
    b.n = tile_min(SIZES::PIXELS, a.width - b.x0);
    b.y = (int32_t)blockIdx.y;
    b.direct = reinterpret_cast<float *>(tail_shared);
    b.project = b.direct + a.inputs * SIZES::PITCH;
    b.classify = b.project + a.inputs * TAIL_CHUNK;
    b.hidden = b.classify + SIZES::STAGE * SIZES::PADDED;
    b.rows = reinterpret_cast<tail_rows *>(b.hidden + (SIZES::BESIDE > 1 ? 0 : TAIL_CHUNK * SIZES::PITCH));
    b.warp = thread / 32;
    b.lane = thread % 32;
    b.quad = (b.lane & 1) | (b.lane & 4) / 2; /* so, lanes that read the same are neighbours in either way */
    b.eight = (b.lane & 2) / 2 | (b.lane & 24) / 4;
    b.group = SIZES::BESIDE > 1 ? 0 : b.warp;
    b.pixel = (SIZES::BESIDE > 1 ? 64 * b.warp : 0) + 8 * b.eight;
    b.at = (SIZES::BESIDE > 1 ? 64 * b.warp : 0) + 4 * b.eight;
    return b;
}

/* 4 floats from global to shared memory, 16 bytes aligned, which are there once tail_arrived returns. */
TILE_DEVICE void tail_copy4(float *to, const float *from)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from)
                 : "memory");
#else
    *reinterpret_cast<float4 *>(to) = __ldg(reinterpret_cast<const float4 *>(from));
#endif
}

/* A barrier, after which the copies of all threads are there. */
TILE_DEVICE void tail_arrived()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    __syncthreads();
}

/* FOURS fours of floats of each of some rows, of which `used` are there; what stands for the others is not used. */
template <typename SIZES, int FOURS>
TILE_DEVICE void tail_copy_rows(float *to, const float *from, int32_t pitch, int32_t rows, int32_t used)
{
    constexpr int32_t at_once = 32 * SIZES::WARPS / FOURS;
    int32_t row = (int32_t)threadIdx.x / FOURS, four = (int32_t)threadIdx.x % FOURS;
    if (row >= at_once || four >= used)
        return;
    to += 4 * (int32_t)threadIdx.x;
    from += (size_t)row * (size_t)pitch + (size_t)(4 * four);
#pragma unroll 1
    for (; row < rows; row += at_once, to += 4 * FOURS * at_once, from += (size_t)at_once * (size_t)pitch)
        tail_copy4(to, from);
}

/* The weights of channels c0 on, where there are any. */
template <typename SIZES> TILE_DEVICE void tail_copy_project(const tail_launch &a, const tail_part &b, int32_t c0)
{
    tail_copy_rows<SIZES, TAIL_CHUNK / 4>(b.project, a.project + c0, a.channels, a.inputs, (a.channels - c0) / 4);
}

/* The classes' weights of channels c on. */
template <typename SIZES> TILE_DEVICE void tail_copy_classify(const tail_launch &a, const tail_part &b, int32_t c)
{
    constexpr int fours = SIZES::PADDED / 4;
    int32_t rows = tile_min(SIZES::STAGE, a.channels - c);
    tail_copy_rows<SIZES, fours>(b.classify, a.classify + (size_t)c * (size_t)a.padded, a.padded, rows, fours);
}

/* The pixels' own channels, and where the maps' rows lie: once a block.  A warp copies 2 fours of 16 pixels at once: whole
 * sectors of global memory, and no bank of shared memory twice. */
template <typename T, typename SIZES> TILE_DEVICE void tail_begin(const tail_launch &a, const tail_part &b)
{
    constexpr int32_t sixteens = SIZES::PIXELS / 16;
    size_t first = ((size_t)blockIdx.z * (size_t)a.height + (size_t)b.y) * (size_t)a.width + (size_t)b.x0;
    const T *from = static_cast<const T *>(a.direct) + first * (size_t)a.inputs;
    for (int32_t step = b.warp; step < (a.inputs + 7) / 8 * sixteens; step += SIZES::WARPS) {
        int32_t place = step % sixteens * 16 + b.lane % 16, j = step / sixteens * 8 + b.lane / 16 * 4;
        int32_t p = tail_pixel(place);
        float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (j >= a.inputs)
            continue;
        if (p < b.n)
            tail_load(from + (size_t)p * (size_t)a.inputs + (size_t)j, v);
#pragma unroll
        for (int i = 0; i < 4; i++)
            b.direct[(j + i) * SIZES::PITCH + place] = v[i];
    }
    if ((int32_t)threadIdx.x < a.count)
        tail_place_rows<T>(a, (int32_t)threadIdx.x, b.y, b.rows + threadIdx.x);
}

/* A thread's 8 pixels of a row of shared memory. */
TILE_DEVICE void tail_eight(const float *row, float (&x)[8])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float4 four = *reinterpret_cast<const float4 *>(row + 32 * h);
        x[4 * h] = four.x;
        x[4 * h + 1] = four.y;
        x[4 * h + 2] = four.z;
        x[4 * h + 3] = four.w;
    }
}

/* A thread's N of a row that its warp's quads share: fours of each quad beside each other, then pairs, then ones. */
template <int N> TILE_DEVICE void tail_share(const float *row, int32_t quad, float (&w)[N])
{
    constexpr int fours = N / 4 * 4, pairs = N / 2 * 2;
#pragma unroll
    for (int n = 0; n < fours; n += 4) {
        float4 four = *reinterpret_cast<const float4 *>(row + 4 * n + 4 * quad);
        w[n] = four.x;
        w[n + 1] = four.y;
        w[n + 2] = four.z;
        w[n + 3] = four.w;
    }
    if (fours < pairs) {
        float2 two = *reinterpret_cast<const float2 *>(row + 4 * fours + 2 * quad);
        w[fours] = two.x;
        w[fours + 1] = two.y;
    }
    if (pairs < N)
        w[pairs] = row[4 * pairs + quad];
}

/* Where the n'th of them lies.  With masks: of n / 4 * 16 + n % 4 in a loop GCC 12 at -O2 makes n / 4 * 16. */
template <int N> TILE_DEVICE int32_t tail_place(int n, int32_t quad)
{
    constexpr int fours = N / 4 * 4, pairs = N / 2 * 2;
    return n < fours ? 4 * (n & ~3) + 4 * quad + (n & 3) : n < pairs ? 4 * fours + 2 * quad + n - fours : 4 * pairs + quad;
}

template <int N> TILE_DEVICE void tail_multiply(const float (&x)[8], const float (&w)[N], float (&v)[8][N])
{
#pragma unroll
    for (int p = 0; p < 8; p++)
#pragma unroll
        for (int n = 0; n < N; n++)
            v[p][n] = tail_fma(w[n], x[p], v[p][n]);
}

/* What one row of inputs adds to a thread's channels. */
template <int OWN> struct tail_operands {
    float x[8], w[OWN];
};

template <typename SIZES, int OWN>
TILE_DEVICE void tail_fetch(const float *x, const float *w, int32_t quad, int row, tail_operands<OWN> &o)
{
    tail_eight(x + row * SIZES::PITCH, o.x);
    tail_share(w + row * TAIL_CHUNK, quad, o.w);
}

/* The projected channels.  Inputs come in fours; the next row's operands are loaded before this row's are used. */
template <typename SIZES>
TILE_DEVICE void tail_project(const tail_launch &a, const tail_part &b, float (&v)[8][SIZES::OWN])
{
    const float *x = b.direct + b.at, *w = b.project + b.group * 4 * SIZES::OWN;
    tail_operands<SIZES::OWN> even, odd;
    tail_fetch<SIZES>(x, w, b.quad, 0, even);
#pragma unroll 1
    for (int32_t j = 4;; j += 4) {
        tail_fetch<SIZES>(x, w, b.quad, 1, odd);
        tail_multiply(even.x, even.w, v);
        tail_fetch<SIZES>(x, w, b.quad, 2, even);
        tail_multiply(odd.x, odd.w, v);
        tail_fetch<SIZES>(x, w, b.quad, 3, odd);
        tail_multiply(even.x, even.w, v);
        x += 4 * SIZES::PITCH;
        w += 4 * TAIL_CHUNK;
        if (j < a.inputs)
            tail_fetch<SIZES>(x, w, b.quad, 0, even);
        tail_multiply(odd.x, odd.w, v);
        if (j >= a.inputs)
            return;
    }
}

/* The channels of a chunk that a thread makes. */
template <typename SIZES> TILE_DEVICE tail_channels<SIZES::OWN> tail_chosen(const tail_launch &a, int32_t c0)
{
    typedef tail_channels<SIZES::OWN> channels;
    tail_part b = tail_mine<SIZES>(a);
    channels own;
#pragma unroll
    for (int i = 0; i < channels::PARTS; i++)
        own.at[i] = (uint32_t)tile_min(c0 + b.group * 4 * SIZES::OWN + tail_place<SIZES::OWN>(4 * i, b.quad),
                                       a.channels - channels::WIDTH);
    return own;
}

/* Channels c0.. of the hidden layer, OWN of them. */
template <typename T, typename SIZES>
TILE_DEVICE void tail_hidden(const tail_launch &a, int32_t c0, float (&v)[8][SIZES::OWN])
{
    constexpr int OWN = SIZES::OWN;
    tail_channels<OWN> own = tail_chosen<SIZES>(a, c0);
#pragma unroll
    for (int i = 0; i < tail_channels<OWN>::PARTS; i++) {
        float w[tail_channels<OWN>::WIDTH];
        tail_load(a.bias + own.at[i], w);
#pragma unroll
        for (int p = 0; p < 8; p++)
#pragma unroll
            for (int c = 0; c < tail_channels<OWN>::WIDTH; c++)
                v[p][4 * i + c] = w[c];
    }
    if (a.inputs)
        tail_project<SIZES>(a, tail_mine<SIZES>(a), v);
    own = tail_chosen<SIZES>(a, c0);
    tail_part b = tail_mine<SIZES>(a);
#pragma unroll 1
    for (int32_t i = 0; i < a.count; i++)
        tail_sample<T>(b.rows[i], b.x0 + b.pixel, a.width, (uint32_t)a.channels, own, v);
#pragma unroll
    for (int p = 0; p < 8; p++)
#pragma unroll
        for (int c = 0; c < OWN; c++)
            v[p][c] = tail_relu(v[p][c]);
}

/* Adds the classes up over `count` channels of a warp that made all of them: a lane's channels reach the others of its
 * pixels from register to register. */
template <typename SIZES>
TILE_DEVICE void tail_classify(const tail_part &b, const float (&v)[8][SIZES::OWN], int32_t count,
                               float (&score)[8][SIZES::SCORES])
{
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll 1
        for (int32_t quad = 0; quad < tile_min(4, count / 4 - 4 * half); quad++) {
            float mine[32], x[32];
#pragma unroll
            for (int i = 0; i < 32; i++)
                mine[i] = v[i % 8][(4 * half + i / 8) % SIZES::OWN];
            tile_from_lane(mine, (b.lane & ~5) | (quad & 1) | (quad & 2) << 1, x);
            const float *weights = b.classify + (16 * half + 4 * quad) * SIZES::PADDED;
#pragma unroll
            for (int c = 0; c < 4; c++) {
                float w[SIZES::SCORES], pixels[8];
                tail_share(weights + c * SIZES::PADDED, b.quad, w);
#pragma unroll
                for (int p = 0; p < 8; p++)
                    pixels[p] = x[8 * c + p];
                tail_multiply(pixels, w, score);
            }
        }
}

/* The same where several warps made them: through shared memory, a stage of weights after the other. */
template <typename SIZES>
TILE_DEVICE void tail_classify_shared(const tail_launch &a, const tail_part &b, int32_t c0, int32_t count,
                                      float (&score)[8][SIZES::SCORES])
{
    for (int32_t first = 0; first < count; first += SIZES::STAGE) {
        if (first) {
            __syncthreads();
            tail_copy_classify<SIZES>(a, b, c0 + first);
            tail_arrived();
        }
        const float *x = b.hidden + first * SIZES::PITCH + b.at, *weights = b.classify + b.warp * 4 * SIZES::SCORES;
#pragma unroll 2
        for (int32_t c = 0; c < tile_min(SIZES::STAGE, count - first); c++) {
            float w[SIZES::SCORES], pixels[8];
            tail_eight(x + c * SIZES::PITCH, pixels);
            tail_share(weights + c * SIZES::PADDED, b.quad, w);
            tail_multiply(pixels, w, score);
        }
    }
}

template <typename SIZES>
TILE_DEVICE void tail_keep(const tail_part &b, const float (&v)[8][SIZES::OWN])
{
#pragma unroll
    for (int c = 0; c < SIZES::OWN; c++) {
        float *row = b.hidden + (b.warp * 4 * SIZES::OWN + tail_place<SIZES::OWN>(c, b.quad)) * SIZES::PITCH + b.at;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float four[4] = {v[4 * h][c], v[4 * h + 1][c], v[4 * h + 2][c], v[4 * h + 3][c]};
            tile_store4(row + 32 * h, four);
        }
    }
}

template <typename SIZES>
TILE_DEVICE void tail_start(const tail_launch &a, const tail_part &b, float (&score)[8][SIZES::SCORES])
{
#pragma unroll
    for (int n = 0; n < SIZES::SCORES; n++)
#pragma unroll
        for (int p = 0; p < 8; p++)
            score[p][n] = __ldg(a.class_bias + b.group * 4 * SIZES::SCORES + tail_place<SIZES::SCORES>(n, b.quad));
}

/* A thread's 8 pixels of its classes. */
template <typename SIZES>
TILE_DEVICE void tail_store(const tail_launch &a, const tail_part &b, const float (&score)[8][SIZES::SCORES])
{
    size_t plane = (size_t)a.height * (size_t)a.width;
    size_t at = (size_t)blockIdx.z * (size_t)a.classes * plane + (size_t)b.y * (size_t)a.width + (size_t)(b.x0 + b.pixel);
#pragma unroll
    for (int n = 0; n < SIZES::SCORES; n++) {
        int32_t k = b.group * 4 * SIZES::SCORES + tail_place<SIZES::SCORES>(n, b.quad);
        if (k >= a.classes)
            continue;
        float *logits = a.logits + at + (size_t)k * plane;
#pragma unroll
        for (int h = 0; h < 8; h += 4) {
            float four[4] = {score[h][n], score[h + 1][n], score[h + 2][n], score[h + 3][n]};
            if (a.width % 4 == 0 && b.pixel + h < b.n)
                tile_store4(logits + h, four);
            else
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (b.pixel + h + i < b.n)
                        logits[h + i] = four[i];
        }
    }
}

template <typename T, typename SIZES> TILE_DEVICE void tail(const tail_launch &a)
{
    tail_copy_project<SIZES>(a, tail_mine<SIZES>(a), 0);
    tail_begin<T, SIZES>(a, tail_mine<SIZES>(a));
    float score[8][SIZES::SCORES];
    tail_start<SIZES>(a, tail_mine<SIZES>(a), score);
#pragma unroll 1
    for (int32_t c0 = 0; c0 < a.channels; c0 += TAIL_CHUNK) {
        int32_t count = tile_min(TAIL_CHUNK, a.channels - c0);
        float v[8][SIZES::OWN];
        tail_arrived();
        tail_copy_classify<SIZES>(a, tail_mine<SIZES>(a), c0);
        tail_hidden<T, SIZES>(a, c0, v);
        if (SIZES::BESIDE == 1)
            tail_keep<SIZES>(tail_mine<SIZES>(a), v);
        tail_arrived();
        tail_copy_project<SIZES>(a, tail_mine<SIZES>(a), c0 + TAIL_CHUNK);
        if (SIZES::BESIDE == 1)
            tail_classify_shared<SIZES>(a, tail_mine<SIZES>(a), c0, count, score);
        else
            tail_classify<SIZES>(tail_mine<SIZES>(a), v, count, score);
    }
    tail_store<SIZES>(a, tail_mine<SIZES>(a), score);
}

#endif
