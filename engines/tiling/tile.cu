/* gather, scatter, stitch, views and a decoder's tail on a GPU: the same bits as tile.c, views.c, resize.c and tail.c, if
 * compiled with --fmad=false.
 *
 * Every kernel takes one struct of tile.h, tile_views.h or tail.h by value, and no stack.  In all but the tail threads work alone; the
 * tail's share memory.
 * Compiled by nvcc, by NVRTC (which has no headers of its own), and as C++ by the tests.
 */
#include "tail.cuh"
#include "tile_gather.cuh"
#include "tile_stitch.cuh"
#include "tile_views.cuh"

/* threads: of a block, as in engines/gpu/kernels.py; blocks: that fit one multiprocessor, which limits registers. */
#define TILE_KERNEL(name, args, threads, blocks, ...) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ args a) \
    { \
        __VA_ARGS__(a); \
    }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 750 /* Turing: 1024 threads on a multiprocessor, others 1536 or more */
#define TILE_GATHER_BLOCKS 4
#else
#define TILE_GATHER_BLOCKS 6
#endif
TILE_KERNEL(tile_gather_f32, tile_gather_launch, 256, TILE_GATHER_BLOCKS, tile_gather<float, true>)
TILE_KERNEL(tile_gather_f16, tile_gather_launch, 256, TILE_GATHER_BLOCKS, tile_gather<tile_half, true>)
TILE_KERNEL(tile_gather_bands_f32, tile_gather_launch, 256, TILE_GATHER_BLOCKS, tile_gather<float, false>)
TILE_KERNEL(tile_gather_bands_f16, tile_gather_launch, 256, TILE_GATHER_BLOCKS, tile_gather<tile_half, false>)
TILE_KERNEL(tile_scatter_f32, tile_scatter_launch, 256, 4, tile_scatter<float>)
TILE_KERNEL(tile_scatter_f16, tile_scatter_launch, 256, 4, tile_scatter<tile_half>)

#define TILE_STITCH(way, suffix, blocks, sure, T, ...) \
    TILE_KERNEL(tile_stitch_##way##_##suffix, tile_stitch_launch, 128, blocks, tile_stitch<T, __VA_ARGS__, TILE_LABELS>) \
    TILE_KERNEL(tile_stitch_##way##_confidence_##suffix, tile_stitch_launch, 128, sure, \
                tile_stitch<T, __VA_ARGS__, TILE_CONFIDENCE>) \
    TILE_KERNEL(tile_stitch_##way##_threshold_##suffix, tile_stitch_launch, 128, sure, \
                tile_stitch<T, __VA_ARGS__, TILE_THRESHOLD>) \
    TILE_KERNEL(tile_stitch_##way##_means_##suffix, tile_stitch_launch, 128, sure, \
                tile_stitch<T, __VA_ARGS__, TILE_MEANS>)

#define TILE_STITCHES(suffix, T) \
    TILE_STITCH(quarter, suffix, 4, 4, T, tile_quarter<T>) \
    TILE_STITCH(whole, suffix, 4, 3, T, tile_whole<T, false>) \
    TILE_STITCH(whole_weighted, suffix, 3, 3, T, tile_whole<T, true>) \
    TILE_STITCH(any, suffix, 6, 5, T, tile_any<T, false>) \
    TILE_STITCH(any_weighted, suffix, 6, 5, T, tile_any<T, true>)

TILE_STITCHES(f32, float)
TILE_STITCHES(f16, tile_half)

TILE_KERNEL(tile_confidence_u8, tile_confidence_launch, 256, 4, tile_confidence)
TILE_KERNEL(tile_resize_u8, tile_resize_launch, 128, 4, tile_resize)
TILE_KERNEL(tile_views_f32, tile_views_launch, 128, 8, tile_views)

/* By the classes that a thread block adds up, see engines/tiling/tail.py; warps that share 64 pixels; blocks. */
#define TAIL_KERNELS(classes, groups, threads, blocks) \
    TILE_KERNEL(tail_to_##classes##_f32, tail_launch, threads, blocks, tail<float, tail_sizes<groups, classes>>) \
    TILE_KERNEL(tail_to_##classes##_f16, tail_launch, threads, blocks, tail<tile_half, tail_sizes<groups, classes>>)

TAIL_KERNELS(8, 1, 64, 5)
TAIL_KERNELS(12, 1, 64, 5)
TAIL_KERNELS(20, 1, 64, 5)
TAIL_KERNELS(24, 1, 64, 4)
TAIL_KERNELS(48, 2, 64, 6)
TAIL_KERNELS(80, 2, 64, 4)
TAIL_KERNELS(160, 4, 128, 3)
