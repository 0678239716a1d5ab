/* What the GPU kernels share: loading, storing, small integers. */
#ifndef EDGESEG_TILE_DEVICE_CUH
#define EDGESEG_TILE_DEVICE_CUH

#include "tile.h"

#define TILE_DEVICE static __device__ __forceinline__

struct tile_half {
    uint16_t bits;
};

TILE_DEVICE float tile_load(const float *p) { return __ldg(p); }
TILE_DEVICE float tile_load(const tile_half *p) { return tile_half_to_float(__ldg(&p->bits)); }
TILE_DEVICE void tile_store(float *p, float v) { *p = v; }
TILE_DEVICE void tile_store(tile_half *p, float v) { p->bits = tile_float_to_half(v); }

TILE_DEVICE void tile_store4(float *p, const float (&v)[4])
{
    *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]);
}

TILE_DEVICE void tile_store4(tile_half *p, const float (&v)[4])
{
    uint32_t low = tile_float_to_half(v[0]) | (uint32_t)tile_float_to_half(v[1]) << 16;
    uint32_t high = tile_float_to_half(v[2]) | (uint32_t)tile_float_to_half(v[3]) << 16;
    *reinterpret_cast<uint2 *>(p) = make_uint2(low, high);
}

TILE_DEVICE bool tile_aligned(const void *p, size_t bytes) { return (reinterpret_cast<size_t>(p) & (bytes - 1)) == 0; }
TILE_DEVICE int32_t tile_min(int32_t a, int32_t b) { return a < b ? a : b; }
TILE_DEVICE int32_t tile_max(int32_t a, int32_t b) { return a > b ? a : b; }
TILE_DEVICE int32_t tile_clamp(int32_t i, int32_t n) { return tile_max(0, tile_min(i, n - 1)); }

/* What another lane of the warp has of the same values: every lane calls it. */
template <int N> TILE_DEVICE void tile_from_lane(const float (&mine)[N], int32_t lane, float (&theirs)[N])
{
#ifdef __CUDACC__
#pragma unroll
    for (int i = 0; i < N; i++)
        theirs[i] = __shfl_sync(0xffffffffu, mine[i], lane);
#else
    emulated_exchange(mine, N, lane, theirs);
#endif
}

/* Keeps p in a register of its own: reassociated, each of the addresses beside it takes 4 instructions instead of 1. */
#ifdef __CUDA_ARCH__
#define TILE_KEEP(p) asm("" : "+l"(p))
#define TILE_KEEP_INT(i) asm volatile("" : "+r"(i))
#else
#define TILE_KEEP(p) (void)(p)
#define TILE_KEEP_INT(i) (void)(i)
#endif

#endif
