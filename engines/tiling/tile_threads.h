/* What the functions of the C library share: rows of work spread over threads, which threads.c keeps. */
#ifndef EDGESEG_TILE_THREADS_H
#define EDGESEG_TILE_THREADS_H

#include "edgeseg_tiling.h"

/* Function multiversioning: one binary, the widest vectors of the CPU it runs on. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(TILE_NO_CLONES)
#define TILE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#define TILE_ISA "x86-64, avx2 and avx512f where present"
#elif defined(__aarch64__)
#define TILE_CLONES
#define TILE_ISA "arm64, neon"
#else
#define TILE_CLONES
#define TILE_ISA "portable"
#endif

#define TILE_MAX_THREADS 64

/* Rows begin..end of the work.  thread: below the number asked for, and nobody else's meanwhile. */
typedef int (*tile_task)(void *arg, int32_t begin, int32_t end, int32_t thread);

/* Runs begin..end on at most `threads` threads, this one among them, and on no more than the work is worth.
 * steps: what a row costs, in steps of a nanosecond or so.  Of several errors the one of the lowest number is returned,
 * whichever thread met it.  Any number of threads may call it at once, and a task may call it itself. */
int tile_parallel(tile_task task, void *arg, int32_t begin, int32_t end, int32_t threads, int64_t steps);

#endif
