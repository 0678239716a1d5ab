/* tile.cu on the CPU: the same source, the same launches, one thread after the other.
 *
 * g++ -std=c++17 -O2 -ffp-contract=off -Wno-unknown-pragmas -shared -fPIC emulated.cpp -o emulated.so
 */
#include "cuda_words.h"

#include "../../../../engines/tiling/tile.cu"

#include <cstring>

namespace {

/* A struct by value: the launch copies it, so that a kernel that reads beyond it is found. */
template <typename ARGS> void run(void (*kernel)(ARGS), const unsigned grid[3], const unsigned block[3], const void *at)
{
    ARGS args;
    std::memcpy(&args, at, sizeof args);
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++)
                for (threadIdx.z = 0; threadIdx.z < block[2]; threadIdx.z++)
                    for (threadIdx.y = 0; threadIdx.y < block[1]; threadIdx.y++)
                        for (threadIdx.x = 0; threadIdx.x < block[0]; threadIdx.x++)
                            kernel(args);
}

struct Gather {
    const char *name;
    void (*kernel)(tile_gather_launch);
};
struct Stitch {
    const char *name;
    void (*kernel)(tile_stitch_launch);
};

#define NAMED(kernel) {#kernel, kernel}
#define KINDS(kind) NAMED(kind##_f32), NAMED(kind##_f16)
#define WAYS(way) KINDS(way), KINDS(way##_confidence), KINDS(way##_threshold)

const Gather GATHERS[] = {NAMED(tile_gather_f32), NAMED(tile_gather_f16)};
const Stitch STITCHES[] = {WAYS(tile_stitch_quarter), WAYS(tile_stitch_whole), WAYS(tile_stitch_whole_weighted),
                           WAYS(tile_stitch_any), WAYS(tile_stitch_any_weighted)};

} // namespace

/* 0: done.  1: no such kernel.  2: no such launch on any GPU. */
extern "C" int emulated_launch(const char *kernel, const unsigned grid[3], const unsigned block[3], const void *args)
{
    if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 2147483647u || grid[1] > 65535 || grid[2] > 65535 || !block[0] ||
        !block[1] || !block[2] || block[0] * block[1] * block[2] > 1024)
        return 2;
    for (const Gather &known : GATHERS)
        if (std::strcmp(known.name, kernel) == 0)
            return run(known.kernel, grid, block, args), 0;
    for (const Stitch &known : STITCHES)
        if (std::strcmp(known.name, kernel) == 0)
            return run(known.kernel, grid, block, args), 0;
    return 1;
}
