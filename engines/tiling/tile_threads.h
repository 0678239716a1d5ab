/* What the functions of the C library share: their status, and rows of work spread over threads. */
#ifndef EDGESEG_TILE_THREADS_H
#define EDGESEG_TILE_THREADS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

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
#define TILE_MAX_BLOCK 32 /* rows a thread takes at once */

typedef enum {
    TILE_OK = 0,
    TILE_E_ARGUMENT = 1,   /* a size, stride or count is out of range */
    TILE_E_UNCOVERED = 2,  /* a pixel lies in no window */
    TILE_E_NOT_FINITE = 3, /* a logit or their sum is NaN or infinite; labels are below K, but mean nothing */
    TILE_E_THREAD = 4      /* the system refused a thread */
} tile_status;

typedef int (*tile_task)(void *arg, int32_t begin, int32_t end, int32_t thread);

/* Rows are handed out block by block, so that a slow or busy core does not keep the others waiting. */
typedef struct {
    tile_task task;
    void *arg;
    atomic_int next;
    int32_t end, block;
} tile_queue;

typedef struct {
    tile_queue *queue;
    int32_t thread;
    int status;
} tile_job;

static int tile_worse(int a, int b) { return a == TILE_OK || (b != TILE_OK && b < a) ? b : a; }

static void *tile_thread(void *p)
{
    tile_job *job = p;
    tile_queue *q = job->queue;
    for (int32_t begin; (begin = atomic_fetch_add(&q->next, q->block)) < q->end;) {
        int32_t end = q->end - begin < q->block ? q->end : begin + q->block;
        job->status = tile_worse(job->status, q->task(q->arg, begin, end, job->thread));
    }
    return NULL;
}

/* Runs begin..end on `threads` threads, this one among them.  Of several errors the one of the lowest number is
 * returned, whichever thread met it. */
static int tile_parallel(tile_task task, void *arg, int32_t begin, int32_t end, int32_t threads)
{
    tile_job jobs[TILE_MAX_THREADS];
    pthread_t handles[TILE_MAX_THREADS];
    int32_t block = (end - begin) / (8 * threads);
    tile_queue queue = {task, arg, begin, end, block < 1 ? 1 : block > TILE_MAX_BLOCK ? TILE_MAX_BLOCK : block};
    if (threads > end - begin)
        threads = end - begin;
    int status = TILE_OK;
    int32_t started = 1;
    for (int32_t t = 0; t < threads; t++)
        jobs[t] = (tile_job){&queue, t, TILE_OK};
    for (; started < threads; started++) {
        if (pthread_create(&handles[started], NULL, tile_thread, &jobs[started]) != 0) {
            status = TILE_E_THREAD;
            atomic_store(&queue.next, end);
            break;
        }
    }
    tile_thread(&jobs[0]);
    for (int32_t t = 1; t < started; t++)
        pthread_join(handles[t], NULL);
    for (int32_t t = 0; t < started; t++)
        status = tile_worse(status, jobs[t].status);
    return status;
}

#endif
