/* The threads of the C library.  They are started when they are first needed, and sleep between calls: a large machine
 * would else start and end 63 of them for each window.
 *
 * The one global of the library.  A child that is forked starts with no threads, and starts its own; at the end of the
 * process they sleep, and hold nothing but their stacks.
 */
#if !defined(_POSIX_C_SOURCE) && !defined(_GNU_SOURCE)
#define _POSIX_C_SOURCE 200809L /* sigset_t, also where the compiler is held to ISO C and told nothing of threads */
#endif
#include "tile_threads.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#define TILE_MAX_BLOCK 32 /* rows a thread takes at once */
#ifndef TILE_WORTH
#define TILE_WORTH 30000 /* steps that a further thread has to save: waking one up takes some ten microseconds */
#endif

/* One call: lies on its caller's stack, in the list of the pool until its rows are handed out. */
typedef struct tile_call {
    tile_task task;
    void *arg;
    atomic_int next;
    int32_t end, block;
    int32_t threads, taken; /* that may work on it, and that have begun to; the caller is the first */
    int32_t running;        /* of the pool's */
    int status;
    pthread_cond_t done;
    struct tile_call *older;
} tile_call;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t work;
    tile_call *calls;
    int32_t threads;
} tile_pool = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, NULL, 0};

static int tile_worse(int a, int b) { return a == TILE_OK || (b != TILE_OK && b < a) ? b : a; }

/* Rows are handed out block by block, so that a slow or busy core does not keep the others waiting. */
static int tile_share(tile_call *call, int32_t thread)
{
    int status = TILE_OK;
    for (int32_t begin; (begin = atomic_fetch_add(&call->next, call->block)) < call->end;) {
        int32_t end = call->end - begin < call->block ? call->end : begin + call->block;
        status = tile_worse(status, call->task(call->arg, begin, end, thread));
    }
    return status;
}

static tile_call *tile_wanting(void)
{
    tile_call *call = tile_pool.calls;
    while (call && (call->taken == call->threads || atomic_load(&call->next) >= call->end))
        call = call->older;
    return call;
}

static void *tile_worker(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&tile_pool.lock);
    for (;;) {
        tile_call *call = tile_wanting();
        if (!call) {
            pthread_cond_wait(&tile_pool.work, &tile_pool.lock);
            continue;
        }
        int32_t thread = call->taken++;
        call->running++;
        pthread_mutex_unlock(&tile_pool.lock);
        int status = tile_share(call, thread);
        pthread_mutex_lock(&tile_pool.lock);
        call->status = tile_worse(call->status, status);
        if (--call->running == 0)
            pthread_cond_signal(&call->done);
    }
    return NULL;
}

static void tile_before_fork(void) { pthread_mutex_lock(&tile_pool.lock); }

static void tile_in_parent(void) { pthread_mutex_unlock(&tile_pool.lock); }

static void tile_in_child(void)
{
    pthread_mutex_init(&tile_pool.lock, NULL);
    pthread_cond_init(&tile_pool.work, NULL);
    tile_pool.calls = NULL;
    tile_pool.threads = 0;
}

static void tile_heed_forks(void) { pthread_atfork(tile_before_fork, tile_in_parent, tile_in_child); }

/* With the lock: makes sure that the pool has `count` threads. */
static int tile_start(int32_t count)
{
    pthread_attr_t detached;
    sigset_t all, before;
    if (tile_pool.threads >= count)
        return TILE_OK;
    if (pthread_attr_init(&detached) != 0)
        return TILE_E_THREAD;
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    sigfillset(&all); /* signals are for the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int status = TILE_OK;
    while (status == TILE_OK && tile_pool.threads < count) {
        pthread_t handle;
        if (pthread_create(&handle, &detached, tile_worker, NULL) == 0)
            tile_pool.threads++;
        else
            status = TILE_E_THREAD;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&detached);
    return status;
}

static int tile_together(tile_call *call)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, tile_heed_forks);
    pthread_mutex_lock(&tile_pool.lock);
    int status = tile_start(call->threads - 1);
    if (status != TILE_OK) {
        pthread_mutex_unlock(&tile_pool.lock);
        return status;
    }
    pthread_cond_init(&call->done, NULL);
    call->older = tile_pool.calls;
    tile_pool.calls = call;
    for (int32_t i = 1; i < call->threads; i++)
        pthread_cond_signal(&tile_pool.work);
    pthread_mutex_unlock(&tile_pool.lock);
    status = tile_share(call, 0);
    pthread_mutex_lock(&tile_pool.lock);
    tile_call **place = &tile_pool.calls;
    while (*place != call)
        place = &(*place)->older;
    *place = call->older;
    while (call->running)
        pthread_cond_wait(&call->done, &tile_pool.lock);
    status = tile_worse(status, call->status);
    pthread_mutex_unlock(&tile_pool.lock);
    pthread_cond_destroy(&call->done);
    return status;
}

int tile_parallel(tile_task task, void *arg, int32_t begin, int32_t end, int32_t threads, int64_t steps)
{
    int64_t worth = (end - begin) * (steps < 1 ? 1 : steps) / TILE_WORTH;
    if (threads > worth)
        threads = worth < 1 ? 1 : (int32_t)worth;
    if (threads > end - begin)
        threads = end - begin;
    int32_t block = (end - begin) / (8 * (threads < 1 ? 1 : threads));
    tile_call call = {.task = task, .arg = arg, .next = begin, .end = end, .threads = threads, .taken = 1,
                      .block = block < 1 ? 1 : block > TILE_MAX_BLOCK ? TILE_MAX_BLOCK : block, .status = TILE_OK};
    return threads > 1 ? tile_together(&call) : tile_share(&call, 0);
}
