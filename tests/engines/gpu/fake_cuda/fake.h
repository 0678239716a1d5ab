/* A CUDA driver without a GPU: the part of libcuda.so.1 that pycuda and engines/gpu use, on the CPU's memory.
 *
 * It is stricter than a GPU where that finds mistakes: device memory ends at a page that may not be touched, freed memory
 * may not be touched at all, and fresh memory is full of NaN.  Streams run at once, or as late as
 * the program's own waiting allows, or some so and some so, as is drawn: a missing wait gives a wrong result, and an
 * execution context (the data of a host function) that is at work on two streams at once is reported.
 *
 * Settings, from the environment when it is loaded (FAKE_CUDA_MEMORY ...) or by fake_set at any time:
 *   memory        bytes that the GPU has                         integrated  1: shares memory with the CPU
 *   lazy          1: streams run as late as possible, 2 and more: drawn by that      devices     how many GPUs there are
 *   coherent      1: caches what it reads of the host's memory      old_kernels  1: modules have no kernels of views
 *   refuse_capture  1: nothing can be recorded, 2: no host function can be, 3: no graph is instantiated
 *   clock         0: events have the time of day; 1: an engine takes 1 ms and others nothing, one engine at a time;
 *                 2: engines of several streams side by side
 *   fail_after    this many launches from now, counted once it is set, an illegal address breaks the context; -1 never
 */
#ifndef FAKE_H
#define FAKE_H

#include <cuda.h>
#include <stddef.h>
#include <stdint.h>

typedef int (*fake_launcher)(const char *kernel, const uint32_t *grid, const uint32_t *block, const void *argument,
                             unsigned shared);

struct settings {
    long long memory, integrated, lazy, fail_after, refuse_capture, devices, coherent, old_kernels, clock;
};
extern struct settings fake_settings;
extern CUresult fake_sticky; /* what broke the context, or CUDA_SUCCESS */

/* Objects of the context, for the report of what was never freed. */
enum kind { DEVICE, HOST, MODULE, STREAM, EVENT, GRAPH, KINDS };
extern long fake_alive[KINDS];

/* What the program asked of the driver, by kind, since it was loaded: `fake_counts`.  Bytes of copies by direction; what a
 * graph holds counts as it runs. */
enum count { KERNELS, ENGINES, GRAPHS, SETS, RECORDS, FOLLOWS, HOST_WAITS, SPINS, COPIES_IN, COPIES_OUT, COPIES_WITHIN,
             BYTES_IN, BYTES_OUT, BYTES_WITHIN, COUNTS };
extern long long fake_counted[COUNTS];

struct stream;
extern struct stream *fake_capturing; /* the stream that is being recorded, at most one at a time */
void fake_run_all(void);              /* everything that any stream still has to do */
void fake_spoil_capture(void);
int fake_is_host(const void *address);                         /* page-locked: copied when the stream gets there */
int fake_is_valid(const void *address, size_t size);           /* within live memory of the GPU, or page-locked */
CUresult fake_run_kernel(const char *name, const uint32_t *grid, const uint32_t *block, const void *argument,
                         unsigned shared);
const char *fake_function_name(CUfunction function);
int fake_state(long *alive);
void fake_complain(const char *format, ...);

/* First line of every call: a broken context answers everything alike, and most calls need a context. */
CUresult fake_enter(int needs_context);
#define ENTER(needs_context)                          \
    do {                                              \
        CUresult status_ = fake_enter(needs_context); \
        if (status_ != CUDA_SUCCESS) return status_;  \
    } while (0)

#endif
