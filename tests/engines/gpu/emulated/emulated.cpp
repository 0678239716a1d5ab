/* tile.cu on the CPU: the same source, the same launches, one thread after the other; where they share memory, each up
 * to the next barrier, in an order that changes from one to the next.
 *
 * g++ -std=c++17 -O2 -ffp-contract=off -Wno-unknown-pragmas -shared -fPIC emulated.cpp -o emulated.so
 */
#include "cuda_words.h"

#include "../../../../engines/tiling/tile.cu"

#include <cstdlib>
#include <cstring>
#include <ucontext.h>

float4 tail_shared[48 * 1024 / sizeof(float4)]; /* what a block may share without asking for more */

namespace {

/* The threads of a block that waits at barriers: each has a stack. */
constexpr unsigned MOST = 1024;
constexpr size_t STACK = 64 * 1024;
struct Fiber {
    ucontext_t at;
    dim3 index;
    bool done;
    unsigned exchanges;
} fibers[MOST];
ucontext_t scheduler;
unsigned running;
char *stacks;
void (*body)();

void begin()
{
    body();
    fibers[running].done = true;
}

void prepare(Fiber &fiber, char *stack, dim3 index)
{
    getcontext(&fiber.at);
    fiber.at.uc_stack.ss_sp = stack;
    fiber.at.uc_stack.ss_size = STACK;
    fiber.at.uc_link = &scheduler;
    fiber.index = index;
    fiber.done = false;
    fiber.exchanges = 0;
    makecontext(&fiber.at, begin, 0);
}

/* Runs all threads of a block until they are done.  False where some ended and others wait at a barrier. */
bool together(const unsigned block[3])
{
    unsigned threads = block[0] * block[1] * block[2];
    if (!stacks)
        stacks = static_cast<char *>(std::malloc(MOST * STACK));
    for (unsigned t = 0; t < threads; t++)
        prepare(fibers[t], stacks + t * STACK, {t % block[0], t / block[0] % block[1], t / block[0] / block[1]});
    for (bool backwards = false;; backwards = !backwards) {
        unsigned ended = 0;
        for (unsigned i = 0; i < threads; i++) {
            running = backwards ? threads - 1 - i : i;
            threadIdx = fibers[running].index;
            swapcontext(&scheduler, &fibers[running].at);
            ended += fibers[running].done;
        }
        if (ended)
            return ended == threads;
    }
}

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

/* As `run`, for kernels whose threads share memory, which holds anything at first.  False at a barrier that some miss. */
template <typename ARGS>
bool run_together(void (*kernel)(ARGS), const unsigned grid[3], const unsigned block[3], const void *at, unsigned shared)
{
    static ARGS args;
    static void (*called)(ARGS);
    std::memcpy(&args, at, sizeof args);
    called = kernel;
    body = [] { called(args); };
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    char *bytes = reinterpret_cast<char *>(tail_shared);
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++) {
                std::memset(bytes, 0xff, sizeof tail_shared);
                if (!together(block))
                    return false;
                for (size_t i = shared; i < sizeof tail_shared; i++)
                    if (bytes[i] != (char)0xff)
                        return false; /* written beyond what the launch asked for */
            }
    return true;
}

struct Gather {
    const char *name;
    void (*kernel)(tile_gather_launch);
};
struct Scatter {
    const char *name;
    void (*kernel)(tile_scatter_launch);
};
struct Stitch {
    const char *name;
    void (*kernel)(tile_stitch_launch);
};

struct Resize {
    const char *name;
    void (*kernel)(tile_resize_launch);
};
struct Views {
    const char *name;
    void (*kernel)(tile_views_launch);
};
struct Confidence {
    const char *name;
    void (*kernel)(tile_confidence_launch);
};
struct Tail {
    const char *name;
    void (*kernel)(tail_launch);
};

#define NAMED(kernel) {#kernel, kernel}
#define KINDS(kind) NAMED(kind##_f32), NAMED(kind##_f16)
#define WAYS(way) KINDS(way), KINDS(way##_confidence), KINDS(way##_threshold), KINDS(way##_means)

const Gather GATHERS[] = {NAMED(tile_gather_f32), NAMED(tile_gather_f16), NAMED(tile_gather_bands_f32),
                         NAMED(tile_gather_bands_f16)};
const Scatter SCATTERS[] = {KINDS(tile_scatter)};
const Stitch STITCHES[] = {WAYS(tile_stitch_quarter), WAYS(tile_stitch_whole), WAYS(tile_stitch_whole_weighted),
                           WAYS(tile_stitch_any), WAYS(tile_stitch_any_weighted)};

const Resize RESIZES[] = {NAMED(tile_resize_u8)};
const Views VIEWS[] = {NAMED(tile_views_f32)};
const Confidence CONFIDENCES[] = {NAMED(tile_confidence_u8)};
const Tail TAILS[] = {KINDS(tail_to_8),  KINDS(tail_to_12), KINDS(tail_to_20), KINDS(tail_to_24),
                      KINDS(tail_to_48), KINDS(tail_to_80), KINDS(tail_to_160)};

} // namespace

void __syncthreads() { swapcontext(&fibers[running].at, &scheduler); }

/* All threads give before any takes.  Two rooms in turn: a thread may give again before the last one took. */
void emulated_exchange(const float *mine, int count, int lane, float *theirs)
{
    static float rooms[2][MOST][32];
    unsigned me = running, room = fibers[me].exchanges++ % 2;
    std::memcpy(rooms[room][me], mine, (size_t)count * sizeof *mine);
    __syncthreads();
    std::memcpy(theirs, rooms[room][me / 32 * 32 + (unsigned)lane % 32], (size_t)count * sizeof *mine);
}

/* 0: done.  1: no such kernel.  2: no such launch on any GPU.  3: shared memory or a barrier is used wrongly. */
extern "C" int emulated_launch(const char *kernel, const unsigned grid[3], const unsigned block[3], const void *args,
                               unsigned shared)
{
    if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 2147483647u || grid[1] > 65535 || grid[2] > 65535 || !block[0] ||
        !block[1] || !block[2] || block[0] * block[1] * block[2] > 1024)
        return 2;
    for (const Tail &known : TAILS)
        if (std::strcmp(known.name, kernel) == 0)
            return shared > sizeof tail_shared ? 2 : run_together(known.kernel, grid, block, args, shared) ? 0 : 3;
    if (shared)
        return 3;
    for (const Gather &known : GATHERS)
        if (std::strcmp(known.name, kernel) == 0)
            return run(known.kernel, grid, block, args), 0;
    for (const Scatter &known : SCATTERS)
        if (std::strcmp(known.name, kernel) == 0)
            return run(known.kernel, grid, block, args), 0;
    for (const Stitch &known : STITCHES)
        if (std::strcmp(known.name, kernel) == 0)
            return run(known.kernel, grid, block, args), 0;
    for (const Resize &known : RESIZES)
        if (std::strcmp(known.name, kernel) == 0)
            return run(known.kernel, grid, block, args), 0;
    for (const Confidence &known : CONFIDENCES)
        if (std::strcmp(known.name, kernel) == 0)
            return run(known.kernel, grid, block, args), 0;
    for (const Views &known : VIEWS)
        if (std::strcmp(known.name, kernel) == 0)
            return run(known.kernel, grid, block, args), 0;
    return 1;
}
