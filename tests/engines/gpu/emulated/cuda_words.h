/* The words of CUDA C++ that tile.cu uses, for a C++ compiler: every thread runs after the other, or up to a barrier. */
#ifndef EDGESEG_EMULATED_CUDA_WORDS_H
#define EDGESEG_EMULATED_CUDA_WORDS_H

#include <cmath>
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __shared__
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
};
static thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

struct alignas(4) uchar4 {
    unsigned char x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

static inline uchar4 make_uchar4(unsigned char x, unsigned char y, unsigned char z, unsigned char w)
{
    return {x, y, z, w};
}
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift)
{
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}

void __syncthreads(); /* of emulated.cpp */
void emulated_exchange(const float *mine, int count, int lane, float *theirs); /* a shuffle of several values at once */

template <typename T> static inline T __ldg(const T *p) { return *p; }

static inline int atomicOr(int *address, int value) { return __atomic_fetch_or(address, value, __ATOMIC_RELAXED); }
static inline int atomicAdd(int *address, int value) { return __atomic_fetch_add(address, value, __ATOMIC_RELAXED); }

#endif
