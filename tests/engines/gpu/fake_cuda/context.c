/* Device, primary context, memory and modules. */
#define _GNU_SOURCE
#include "fake.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MAX_BLOCKS 65536
#define MAX_DEPTH 64
#define PAGE 4096u
#define EXPORT __attribute__((visibility("default")))

struct settings fake_settings = {1LL << 30, 0, 0, -1, 0, 1, 0, 0, 0};
CUresult fake_sticky = CUDA_SUCCESS;
long fake_alive[KINDS];
long long fake_counted[COUNTS];

static struct block {
    char *map, *start;
    size_t mapped, size;
    unsigned flags;
    int host, live;
} blocks[MAX_BLOCKS];
static int count;
static long long used;
static int retained, initialised, complaints;
static char context_object; /* its address is the context */
static __thread CUcontext stack[MAX_DEPTH];
static __thread int depth;
static fake_launcher launcher;

struct module {
    struct function {
        char name[64];
        struct function *next;
    } *functions;
};

void fake_complain(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("FAKE CUDA: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    complaints++;
}

EXPORT int fake_set(const char *name, long long value) {
    const struct { const char *name; long long *value; } known[] = {
        {"memory", &fake_settings.memory},         {"integrated", &fake_settings.integrated},
        {"lazy", &fake_settings.lazy},             {"fail_after", &fake_settings.fail_after},
        {"refuse_capture", &fake_settings.refuse_capture}, {"devices", &fake_settings.devices},
        {"clock", &fake_settings.clock},
        {"coherent", &fake_settings.coherent},     {"old_kernels", &fake_settings.old_kernels},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) {
            *known[i].value = value;
            return 0;
        }
    return 1;
}

EXPORT void fake_set_launcher(fake_launcher function) { launcher = function; }

/* Bytes of the GPU that are taken. */
EXPORT long long fake_used(void) { return used; }

EXPORT void fake_counts(long long *counts) { memcpy(counts, fake_counted, sizeof fake_counted); }

/* How often something was wrong, and what is alive now: device, host, modules, streams, events, graphs, contexts. */
EXPORT int fake_state(long *alive) {
    memcpy(alive, fake_alive, sizeof fake_alive);
    alive[KINDS] = retained;
    return complaints;
}

__attribute__((constructor)) static void read_environment(void) {
    const char *names[] = {"memory", "integrated", "lazy", "fail_after", "refuse_capture", "devices", "coherent", "old_kernels"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char variable[64] = "FAKE_CUDA_";
        for (size_t j = 0; names[i][j]; j++) variable[10 + j] = (char)(names[i][j] == '_' ? '_' : names[i][j] - 32);
        if (getenv(variable)) fake_set(names[i], atoll(getenv(variable)));
    }
}

__attribute__((destructor)) static void report(void) {
    const char *names[] = {"device blocks", "host blocks", "modules", "streams", "events", "graphs"};
    for (int kind = 0; kind < KINDS && fake_sticky == CUDA_SUCCESS; kind++)
        if (fake_alive[kind]) fake_complain("%ld %s were never freed", fake_alive[kind], names[kind]);
    if (retained) fake_complain("the primary context was never released");
}

CUresult fake_enter(int needs_context) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (!needs_context) return CUDA_SUCCESS;
    if (fake_sticky != CUDA_SUCCESS) return fake_sticky;
    if (!depth) return CUDA_ERROR_INVALID_CONTEXT;
    return retained ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

/* As CUDA_VISIBLE_DEVICES has it: up to the first that is not there. */
static int visible(void) {
    const char *seen = getenv("CUDA_VISIBLE_DEVICES");
    if (!seen) return (int)fake_settings.devices;
    int found = 0;
    for (char *end; *seen; seen = *end ? end + 1 : end, found++) {
        long index = strtol(seen, &end, 10);
        if (end == seen || index < 0 || index >= fake_settings.devices) break;
    }
    return found;
}

CUresult cuInit(unsigned flags) {
    if (!visible()) return CUDA_ERROR_NO_DEVICE;
    initialised = 1;
    return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int *version) { return *version = CUDA_VERSION, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *number) { ENTER(0); return *number = visible(), CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER(0);
    return *device = 0, ordinal ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
    (void)device;
    snprintf(name, (size_t)size, "Fake GPU");
    return CUDA_SUCCESS;
}
CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device) {
    (void)device;
    return *major = 8, *minor = 7, CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) {
    (void)device;
    return *bytes = (size_t)fake_settings.memory, CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    (void)device;
    *value = attribute == CU_DEVICE_ATTRIBUTE_INTEGRATED ? (int)fake_settings.integrated
             : attribute == CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES ? (int)fake_settings.coherent : 1;
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char **text) {
    switch (error) {
        case CUDA_ERROR_INVALID_VALUE: *text = "invalid argument"; break;
        case CUDA_ERROR_OUT_OF_MEMORY: *text = "out of memory"; break;
        case CUDA_ERROR_NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
        case CUDA_ERROR_INVALID_IMAGE: *text = "device kernel image is invalid"; break;
        case CUDA_ERROR_INVALID_CONTEXT: *text = "invalid device context"; break;
        case CUDA_ERROR_NO_BINARY_FOR_GPU: *text = "no kernel image is available for execution on the device"; break;
        case CUDA_ERROR_NOT_FOUND: *text = "named symbol not found"; break;
        case CUDA_ERROR_ILLEGAL_ADDRESS: *text = "an illegal memory access was encountered"; break;
        case CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: *text = "operation not permitted when stream is capturing"; break;
        case CUDA_ERROR_STREAM_CAPTURE_INVALIDATED: *text = "operation failed due to a previous error during capture"; break;
        default: *text = "some other error";
    }
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER(0);
    (void)device;
    retained++;
    return *context = (CUcontext)&context_object, CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    ENTER(0);
    (void)device;
    if (!retained) return fake_complain("the primary context was released too often"), CUDA_ERROR_INVALID_CONTEXT;
    retained--;
    return fake_sticky;
}
CUresult cuCtxPushCurrent(CUcontext context) {
    ENTER(0);
    if (context != (CUcontext)&context_object || depth == MAX_DEPTH) return CUDA_ERROR_INVALID_CONTEXT;
    stack[depth++] = context;
    return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent(CUcontext *context) {
    ENTER(0);
    if (!depth) return CUDA_ERROR_INVALID_CONTEXT;
    return *context = stack[--depth], CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *context) {
    ENTER(0);
    return *context = depth ? stack[depth - 1] : NULL, CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice *device) { ENTER(1); return *device = 0, CUDA_SUCCESS; }
CUresult cuCtxSynchronize(void) { ENTER(1); fake_counted[HOST_WAITS]++, fake_counted[SPINS]++; return fake_run_all(), fake_sticky; }

static CUresult take(void **address, size_t size, int host, unsigned flags) {
    ENTER(1);
    if (fake_capturing && !host) return fake_spoil_capture(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    long long counted = host && !fake_settings.integrated ? 0 : (long long)size;
    if (used + counted > fake_settings.memory || count == MAX_BLOCKS) return CUDA_ERROR_OUT_OF_MEMORY;
    size_t room = (size + 255) / 256 * 256, mapped = (room + PAGE - 1) / PAGE * PAGE + PAGE;
    char *map = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    mprotect(map + mapped - PAGE, PAGE, PROT_NONE);
    memset(map, 0xff, mapped - PAGE);
    blocks[count] = (struct block){map, map + mapped - PAGE - room, mapped, size, flags, host, 1};
    *address = blocks[count++].start;
    used += counted;
    fake_alive[host ? HOST : DEVICE]++;
    return CUDA_SUCCESS;
}

static struct block *find(const void *address, size_t size) {
    const char *at = address;
    for (int i = count; i--;)
        if (blocks[i].live && at >= blocks[i].start && at + size <= blocks[i].start + blocks[i].size) return &blocks[i];
    return NULL;
}
int fake_is_host(const void *address) {
    struct block *block = find(address, 1);
    return block && block->host;
}
int fake_is_valid(const void *address, size_t size) { return find(address, size) != NULL; }

static CUresult give_back(void *address, int host) {
    ENTER(1);
    fake_run_all();
    if (fake_sticky != CUDA_SUCCESS) return fake_sticky;
    struct block *block = find(address, 1);
    if (!block || block->start != address || block->host != host) {
        fake_complain("%p was freed, which is no %s block", address, host ? "host" : "device");
        return CUDA_ERROR_INVALID_VALUE;
    }
    block->live = 0;
    used -= host && !fake_settings.integrated ? 0 : (long long)block->size;
    fake_alive[host ? HOST : DEVICE]--;
    mprotect(block->map, block->mapped, PROT_NONE);
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr *address, size_t size) { return take((void **)address, size, 0, 0); }
CUresult cuMemFree(CUdeviceptr address) { return give_back((void *)address, 0); }
CUresult cuMemHostAlloc(void **address, size_t size, unsigned flags) { return take(address, size, 1, flags); }
CUresult cuMemFreeHost(void *address) { return give_back(address, 1); }
CUresult cuMemGetInfo(size_t *left, size_t *total) {
    ENTER(1);
    return *left = (size_t)(fake_settings.memory - used), *total = (size_t)fake_settings.memory, CUDA_SUCCESS;
}
CUresult cuMemHostGetDevicePointer(CUdeviceptr *device, void *address, unsigned flags) {
    ENTER(1);
    struct block *block = find(address, 1);
    if (flags || !block || !(block->flags & CU_MEMHOSTALLOC_DEVICEMAP)) return CUDA_ERROR_INVALID_VALUE;
    return *device = (CUdeviceptr)address, CUDA_SUCCESS;
}

/* "\x7f" "ELF" is taken for a cubin of this GPU, "OTHER" for one of another GPU. */
CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned options, CUjit_option *keys, void **values) {
    ENTER(1);
    for (unsigned i = 0; i < options; i++) {
        if (keys[i] == CU_JIT_INFO_LOG_BUFFER || keys[i] == CU_JIT_ERROR_LOG_BUFFER) *(char *)values[i] = 0;
        if (keys[i] == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES || keys[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) values[i] = 0;
    }
    if (!memcmp(image, "OTHER", 5)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    if (memcmp(image, "\x7f" "ELF", 4)) return CUDA_ERROR_INVALID_IMAGE;
    fake_alive[MODULE]++;
    return *module = calloc(1, sizeof(struct module)), CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule handle) {
    (void)handle;
    ENTER(1);
    fake_run_all();
    fake_alive[MODULE]--;
    return CUDA_SUCCESS; /* the names stay, for graphs that hold them */
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule handle, const char *name) {
    ENTER(1);
    if (!strncmp(name, "no_", 3) || (fake_settings.old_kernels && (strstr(name, "views") || strstr(name, "confidence_u8")))) return CUDA_ERROR_NOT_FOUND;
    struct module *module = (struct module *)handle;
    struct function *made = calloc(1, sizeof *made);
    snprintf(made->name, sizeof made->name, "%s", name);
    made->next = module->functions;
    module->functions = made;
    return *function = (CUfunction)made, CUDA_SUCCESS;
}
const char *fake_function_name(CUfunction function) { return ((struct function *)function)->name; }

CUresult fake_run_kernel(const char *name, const uint32_t *grid, const uint32_t *block, const void *argument,
                         unsigned shared) {
    if (!launcher && getenv("FAKE_CUDA_KERNELS")) {
        void *library = dlopen(getenv("FAKE_CUDA_KERNELS"), RTLD_NOW);
        if (library) launcher = (fake_launcher)dlsym(library, "emulated_launch");
    }
    if (!launcher || launcher(name, grid, block, argument, shared)) {
        fake_complain("kernel %s did not run", name);
        return CUDA_ERROR_LAUNCH_FAILED;
    }
    return CUDA_SUCCESS;
}
