/* Streams, events, launches, copies, and graphs of them. */
#define _GNU_SOURCE
#include "fake.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct event {
    struct stream *stream; /* where it was recorded last */
    size_t place;          /* how many operations of that stream must have run */
    long times, happened;  /* how often it was recorded, and which of these has happened */
    unsigned flags;
    double when;
};

struct op {
    enum { COPY, SET, KERNEL, FUNCTION, RECORD, WAIT } type;
    void *target;
    const void *source;
    size_t size;
    int value, way;
    uint32_t grid[3], block[3], shared;
    const char *name;
    CUhostFn function;
    struct event *event;
    struct stream *stream;
    long times; /* of an event: which of its records; of a host function: which run of its context */
};

struct list {
    struct op *ops;
    size_t count, room;
};

struct stream {
    struct list list;
    size_t done;
    double now; /* milliseconds, with a clock of its own */
    int flags, bit, eager; /* eager: runs as soon as nothing that it waits for is missing; otherwise as late as can be */
    struct stream *next;
};

struct stream *fake_capturing;
static struct stream *streams;
static struct list recording;
static struct context { void *data; long started, run; } contexts[4096]; /* execution contexts of engines */
static int spoilt;

static void append(struct list *list, struct op op) {
    if (list->count == list->room) {
        list->room = list->room ? 2 * list->room : 64;
        list->ops = realloc(list->ops, list->room * sizeof op);
    }
    list->ops[list->count++] = op;
}

static void run(struct stream *stream, size_t until);

/* Whether both ends of a copy are live memory: of the GPU, page-locked, or (staged) plain memory of the program. */
static CUresult check(const void *address, size_t size, const char *what) {
    if (fake_is_valid(address, size)) return CUDA_SUCCESS;
    fake_complain("%s of %zu bytes at %p, which is not live memory", what, size, address);
    return CUDA_ERROR_ILLEGAL_ADDRESS;
}

static struct context *context_of(void *data) {
    struct context *found = contexts;
    while (found->data && found->data != data) found++;
    return found->data = data, found;
}

/* Where events do not have the time of day: when it is done with this operation. */
static double keep_time(struct stream *stream, const struct op *op) {
    static double busy_until;
    if (op->type == WAIT && op->event->when > stream->now) stream->now = op->event->when;
    if (op->type == FUNCTION) {
        if (fake_settings.clock == 1 && busy_until > stream->now) stream->now = busy_until;
        busy_until = ++stream->now;
    }
    return stream->now;
}

static CUresult execute(struct stream *stream, const struct op *op) {
    CUresult status = CUDA_SUCCESS;
    struct timespec now;
    if (op->type == KERNEL || op->type == FUNCTION) {
        if (fake_settings.fail_after == 0) return CUDA_ERROR_ILLEGAL_ADDRESS;
        if (fake_settings.fail_after > 0) fake_settings.fail_after--;
    }
    switch (op->type) {
        case COPY:
            fake_counted[op->way]++, fake_counted[op->way + BYTES_IN - COPIES_IN] += (long long)op->size;
            if (op->value & 1) status = check(op->source, op->size, "copy from");
            if (!status && (op->value & 2)) status = check(op->target, op->size, "copy to");
            if (!status) memcpy(op->target, op->source, op->size);
            break;
        case SET:
            fake_counted[SETS]++;
            status = check(op->target, op->size, "set");
            if (!status) memset(op->target, op->value, op->size);
            break;
        case KERNEL: fake_counted[KERNELS]++; status = fake_run_kernel(op->name, op->grid, op->block, op->source, op->shared); break;
        case FUNCTION:
            fake_counted[ENGINES]++;
            if (op->times != ++context_of(op->target)->run) fake_complain("an execution context is at work on two streams");
            op->function(op->target);
            break;
        case RECORD:
            fake_counted[RECORDS]++;
            clock_gettime(CLOCK_MONOTONIC, &now);
            op->event->when = fake_settings.clock ? stream->now : 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
            op->event->happened = op->times;
            break;
        case WAIT: fake_counted[FOLLOWS]++; run(op->stream, op->size); break;
    }
    return status;
}

static void run(struct stream *stream, size_t until) {
    while (stream->done < until && fake_sticky == CUDA_SUCCESS) {
        struct op op = stream->list.ops[stream->done];
        CUresult status = execute(stream, &op);
        if (fake_settings.clock) keep_time(stream, &op);
        stream->done++;
        if (status != CUDA_SUCCESS) fake_sticky = status;
    }
}

/* As far as the eager ones get by themselves; who they are changes every few calls, by xorshift. */
static void run_eager(void) {
    static unsigned seed, drawn;
    if (seed != (unsigned)fake_settings.lazy) seed = drawn = (unsigned)fake_settings.lazy;
    drawn ^= drawn << 13, drawn ^= drawn >> 17, drawn ^= drawn << 5;
    if (drawn % 8 == 0)
        for (struct stream *stream = streams; stream; stream = stream->next) stream->eager = drawn >> (8 + stream->bit) & 1;
    for (int moved = 1; moved;) {
        moved = 0;
        for (struct stream *stream = streams; stream; stream = stream->next)
            while (stream->eager && stream->done < stream->list.count && fake_sticky == CUDA_SUCCESS) {
                const struct op *op = &stream->list.ops[stream->done];
                if (op->type == WAIT && op->stream->done < op->size) break;
                run(stream, stream->done + 1);
                moved = 1;
            }
    }
}

void fake_run_all(void) {
    for (struct stream *stream = streams; stream; stream = stream->next) run(stream, stream->list.count);
}

void fake_spoil_capture(void) { spoilt = 1; }

static CUresult start(CUstream handle, struct op op) {
    struct stream *stream = (struct stream *)handle;
    if (!stream) return fake_complain("something was started on the default stream"), CUDA_ERROR_INVALID_VALUE;
    if (stream == fake_capturing) {
        if (spoilt) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        if (op.type == RECORD || op.type == WAIT || (op.type == FUNCTION && fake_settings.refuse_capture == 2))
            return fake_spoil_capture(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        append(&recording, op);
        return CUDA_SUCCESS;
    }
    if (op.type == FUNCTION) op.times = ++context_of(op.target)->started;
    append(&stream->list, op);
    if (!fake_settings.lazy) run(stream, stream->list.count);
    if (fake_settings.lazy > 1) run_eager();
    return fake_sticky;
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    ENTER(1);
    struct stream *made = calloc(1, sizeof *made);
    static int number;
    made->flags = (int)flags;
    made->bit = number++ % 16;
    made->next = streams;
    streams = made;
    fake_alive[STREAM]++;
    return *stream = (CUstream)made, CUDA_SUCCESS;
}
CUresult cuStreamDestroy(CUstream handle) {
    ENTER(1);
    struct stream *stream = (struct stream *)handle;
    run(stream, stream->list.count);
    fake_alive[STREAM]--;
    return fake_sticky;
}
CUresult cuStreamSynchronize(CUstream handle) {
    ENTER(1);
    struct stream *stream = (struct stream *)handle;
    if (stream == fake_capturing) return fake_spoil_capture(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    fake_counted[HOST_WAITS]++, fake_counted[SPINS]++;
    run(stream, stream->list.count);
    return fake_sticky;
}
CUresult cuStreamQuery(CUstream handle) {
    ENTER(1);
    struct stream *stream = (struct stream *)handle;
    if (stream == fake_capturing) return fake_spoil_capture(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return stream->done == stream->list.count ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuEventCreate(CUevent *event, unsigned flags) {
    ENTER(1);
    struct event *made = calloc(1, sizeof *made);
    made->flags = flags;
    fake_alive[EVENT]++;
    return *event = (CUevent)made, CUDA_SUCCESS;
}
CUresult cuEventDestroy(CUevent event) {
    ENTER(1);
    (void)event;
    fake_alive[EVENT]--;
    return CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent handle, CUstream stream) {
    ENTER(1);
    struct event *event = (struct event *)handle;
    event->stream = (struct stream *)stream;
    event->place = event->stream ? event->stream->list.count + 1 : 0;
    return start(stream, (struct op){.type = RECORD, .event = event, .times = ++event->times});
}
CUresult cuStreamWaitEvent(CUstream stream, CUevent handle, unsigned flags) {
    ENTER(1);
    (void)flags;
    struct event *event = (struct event *)handle;
    if (!event->times) return CUDA_SUCCESS; /* never recorded: nothing to wait for */
    return start(stream, (struct op){.type = WAIT, .event = event, .stream = event->stream, .size = event->place});
}
CUresult cuEventSynchronize(CUevent handle) {
    ENTER(1);
    struct event *event = (struct event *)handle;
    fake_counted[HOST_WAITS]++;
    if (!(event->flags & CU_EVENT_BLOCKING_SYNC)) fake_counted[SPINS]++;
    if (event->stream) run(event->stream, event->place);
    return fake_sticky;
}
CUresult cuEventQuery(CUevent handle) {
    ENTER(1);
    struct event *event = (struct event *)handle;
    return event->happened == event->times ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult cuEventElapsedTime(float *milliseconds, CUevent first, CUevent second) {
    ENTER(1);
    struct event *start = (struct event *)first, *end = (struct event *)second;
    if (!start->times || !end->times || (start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) return CUDA_ERROR_INVALID_HANDLE;
    if (start->happened != start->times || end->happened != end->times) return CUDA_ERROR_NOT_READY;
    return *milliseconds = (float)(end->when - start->when), CUDA_SUCCESS;
}

static void *duplicate(const void *bytes, size_t size) { return memcpy(malloc(size), bytes, size); }

/* pycuda's calls set the block's shape before each launch, as CUDA 3 wanted it. */
CUresult cuFuncSetBlockShape(CUfunction function, int x, int y, int z) {
    ENTER(1);
    (void)function;
    return x > 0 && y > 0 && z > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void **parameters,
                        void **extra) {
    ENTER(1);
    if (parameters || extra[0] != CU_LAUNCH_PARAM_BUFFER_POINTER || extra[2] != CU_LAUNCH_PARAM_BUFFER_SIZE)
        return CUDA_ERROR_INVALID_VALUE;
    if (!grid_x || !grid_y || !grid_z || !block_x || !block_y || !block_z || block_x * block_y * block_z > 1024 ||
        grid_y > 65535 || grid_z > 65535 || shared > 48 * 1024)
        return fake_complain("a grid, a block or its shared memory out of range"), CUDA_ERROR_INVALID_VALUE;
    return start(stream, (struct op){.type = KERNEL, .name = fake_function_name(function),
                                     .source = duplicate(extra[1], *(size_t *)extra[3]),
                                     .grid = {grid_x, grid_y, grid_z}, .block = {block_x, block_y, block_z}, .shared = shared});
}
CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void *data) {
    ENTER(1);
    return start(stream, (struct op){.type = FUNCTION, .function = function, .target = data});
}
CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t size, CUstream stream) {
    ENTER(1);
    return start(stream, (struct op){.type = SET, .target = (void *)target, .size = size, .value = value});
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr target, CUdeviceptr source, size_t size, CUstream stream) {
    ENTER(1);
    return start(stream, (struct op){.type = COPY, .target = (void *)target, .source = (void *)source, .size = size,
                                     .value = 3, .way = COPIES_WITHIN});
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr target, const void *source, size_t size, CUstream stream) {
    ENTER(1);
    struct op op = {.type = COPY, .target = (void *)target, .source = source, .size = size, .value = 3,
                    .way = COPIES_IN};
    if (!fake_is_host(source)) { /* plain memory is staged before the call returns */
        op.source = duplicate(source, size);
        op.value = 2;
    }
    return start(stream, op);
}
CUresult cuMemcpyDtoHAsync(void *target, CUdeviceptr source, size_t size, CUstream stream) {
    ENTER(1);
    int locked = fake_is_host(target);
    struct op op = {.type = COPY, .target = target, .source = (void *)source, .size = size, .value = locked ? 3 : 1,
                    .way = COPIES_OUT};
    CUresult status = start(stream, op);
    if (!locked && !status) run((struct stream *)stream, ((struct stream *)stream)->list.count);
    return status ? status : fake_sticky;
}

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
    ENTER(1);
    if (fake_settings.refuse_capture == 1) return CUDA_ERROR_NOT_SUPPORTED;
    if (fake_capturing || mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) return CUDA_ERROR_ILLEGAL_STATE;
    fake_capturing = (struct stream *)stream;
    memset(&recording, 0, sizeof recording);
    spoilt = 0;
    return CUDA_SUCCESS;
}
/* A real driver may crash on the handles of a context that was released. */
static void check_released(const char *call) {
    long alive[KINDS + 1];
    fake_state(alive);
    if (!alive[KINDS]) fake_complain("%s after the context was released", call);
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    check_released("cuStreamEndCapture");
    ENTER(1);
    if (fake_capturing != (struct stream *)stream) return CUDA_ERROR_ILLEGAL_STATE;
    fake_capturing = NULL;
    *graph = NULL;
    if (spoilt) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    fake_alive[GRAPH]++;
    return *graph = duplicate(&recording, sizeof recording), CUDA_SUCCESS;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *made, CUgraph graph, unsigned long long flags) {
    ENTER(1);
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (fake_settings.refuse_capture == 3) return CUDA_ERROR_OUT_OF_MEMORY;
    fake_alive[GRAPH]++;
    return *made = duplicate(graph, sizeof(struct list)), CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec graph, CUstream stream) {
    ENTER(1);
    struct list *list = (struct list *)graph;
    CUresult status = CUDA_SUCCESS;
    fake_counted[GRAPHS]++;
    for (size_t i = 0; i < list->count && !status; i++) status = start(stream, list->ops[i]);
    return status;
}
CUresult cuGraphDestroy(CUgraph graph) { ENTER(1); return (void)graph, fake_alive[GRAPH]--, CUDA_SUCCESS; }
CUresult cuGraphExecDestroy(CUgraphExec graph) {
    check_released("cuGraphExecDestroy");
    ENTER(1);
    return (void)graph, fake_alive[GRAPH]--, CUDA_SUCCESS;
}
