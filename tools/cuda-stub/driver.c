// A CUDA driver without a card, which counts calls. Every call succeeds, addresses have no memory behind them, and all that
// is read back is zeros. So a program runs to its end, the real NVRTC compiles its kernels for the card that this file
// pretends to be, and the requests to the card are counted: launches, waits, bytes, memory. No kernel is executed, so
// nothing is checked of the numbers that kernels compute.
//
//     cc -shared -fPIC -O1 -o libcuda.so.1 driver.c
//
// `CUDA_STUB_ARCH` (90) is the compute capability, `CUDA_STUB_MEMORY_GB` (140) the memory, `CUDA_STUB_DEVICES` (1) the
// number of cards. `stub_counts` gives the counts to the program itself; `CUDA_STUB_KERNELS=FILE` writes the launches of
// each kernel at the end.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t address;
enum { OK = 0, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500 };

// What a program asked for since it began; `peak` since the last `stub_mark`.
struct counts {
    uint64_t launches, graph_launches, waits;
    uint64_t uploads, uploaded_bytes, reads, read_bytes, copies, copied_bytes;
    uint64_t kernels, allocations, live_bytes, peak_bytes;
};
static struct counts counts;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
#define LOCKED(code) do { pthread_mutex_lock(&lock); code; pthread_mutex_unlock(&lock); } while (0)

void stub_counts(struct counts *out) { LOCKED(*out = counts); }
void stub_mark(void) { LOCKED(counts.peak_bytes = counts.live_bytes); }

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtol(text, NULL, 10) : otherwise;
}
static uint64_t memory(void) { return (uint64_t)setting("CUDA_STUB_MEMORY_GB", 140) * 1000000000ull; }

// ---- Kernels

struct kernel { char name[160]; uint64_t launches; struct kernel *next; };
static struct kernel *kernels;

static void report(void) {
    const char *path = getenv("CUDA_STUB_KERNELS");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    for (struct kernel *k = kernels; k; k = k->next)
        if (k->launches) fprintf(file, "%llu\t%s\n", (unsigned long long)k->launches, k->name);
    fclose(file);
}
__attribute__((constructor)) static void begin(void) { atexit(report); }

static void *handle(void) {
    static uintptr_t last = 0x1000;
    void *made;
    LOCKED(made = (void *)(last += 16));
    return made;
}
int cuModuleLoadData(void **module, const void *image) { (void)image; *module = handle(); return OK; }
int cuModuleUnload(void *module) { (void)module; return OK; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    (void)module;
    struct kernel *k = calloc(1, sizeof *k);
    snprintf(k->name, sizeof k->name, "%s", name);
    LOCKED(k->next = kernels; kernels = k; counts.kernels++);
    *function = k;
    return OK;
}
int cuFuncSetAttribute(void *function, int attribute, int value) { (void)function; (void)attribute; (void)value; return OK; }
static int launch(struct kernel *k) { LOCKED(counts.launches++; k->launches++); return OK; }
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **arguments, void **extra) {
    (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared, (void)stream, (void)arguments, (void)extra;
    return launch(function);
}
int cuLaunchKernelEx(const void *config, void *function, void **arguments, void **extra) {
    (void)config, (void)arguments, (void)extra;
    return launch(function);
}

// ---- Graphs: what is launched while one is captured is counted once, and each replay as one launch.

int cuStreamBeginCapture_v2(void *stream, int mode) { (void)stream, (void)mode; return OK; }
int cuStreamEndCapture(void *stream, void **graph) { (void)stream; *graph = handle(); return OK; }
int cuGraphGetNodes(void *graph, void **nodes, size_t *count) { (void)graph, (void)nodes; *count = 0; return OK; }
int cuGraphNodeGetType(void *node, int *type) { (void)node; *type = 0; return OK; }
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    (void)graph, (void)flags;
    *executable = handle();
    return OK;
}
int cuGraphUpload(void *executable, void *stream) { (void)executable, (void)stream; return OK; }
int cuGraphLaunch(void *executable, void *stream) { (void)executable, (void)stream; LOCKED(counts.graph_launches++); return OK; }
int cuGraphDestroy(void *graph) { (void)graph; return OK; }
int cuGraphExecDestroy(void *executable) { (void)executable; return OK; }

// ---- Memory: addresses of blocks in a hash table, so that what is freed is known.

enum { SLOTS = 1 << 20 };
static struct { address at; uint64_t bytes; } slots[SLOTS];

static size_t slot(address at) {
    size_t i = (size_t)(at >> 9) * 0x9e3779b97f4a7c15ull % SLOTS;
    while (slots[i].at && slots[i].at != at) i = (i + 1) % SLOTS;
    return i;
}
static int allocate(address *at, size_t bytes) {
    static address next = 1ull << 32;
    int outcome = OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    if (counts.live_bytes + bytes <= memory()) {
        *at = next;
        next += (bytes + 1023) / 512 * 512;
        size_t i = slot(*at);
        slots[i].at = *at;
        slots[i].bytes = bytes;
        counts.allocations++;
        counts.live_bytes += bytes;
        if (counts.live_bytes > counts.peak_bytes) counts.peak_bytes = counts.live_bytes;
        outcome = OK;
    }
    pthread_mutex_unlock(&lock);
    return outcome;
}
static int release(address at) {
    LOCKED(size_t i = slot(at); counts.live_bytes -= slots[i].bytes; slots[i].bytes = 0);
    return OK;
}
int cuMemAlloc_v2(address *at, size_t bytes) { return allocate(at, bytes); }
int cuMemAllocAsync(address *at, size_t bytes, void *stream) { (void)stream; return allocate(at, bytes); }
int cuMemFree_v2(address at) { return release(at); }
int cuMemFreeAsync(address at, void *stream) { (void)stream; return release(at); }
int cuMemGetInfo_v2(size_t *available, size_t *total) {
    *total = memory();
    LOCKED(*available = *total - counts.live_bytes);
    return OK;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = memory(); return OK; }
static int host_block(void **at, size_t bytes) { return posix_memalign(at, 4096, bytes ? bytes : 1) ? OUT_OF_MEMORY : OK; }
int cuMemAllocHost_v2(void **at, size_t bytes) { return host_block(at, bytes); }
int cuMemHostAlloc(void **at, size_t bytes, unsigned flags) { (void)flags; return host_block(at, bytes); }
int cuMemFreeHost(void *at) { free(at); return OK; }

// ---- Transfers

static int upload(size_t bytes) { LOCKED(counts.uploads++; counts.uploaded_bytes += bytes); return OK; }
static int read_back(void *to, size_t bytes) {
    memset(to, 0, bytes);
    LOCKED(counts.reads++; counts.read_bytes += bytes);
    return OK;
}
static int copy(size_t bytes) { LOCKED(counts.copies++; counts.copied_bytes += bytes); return OK; }
int cuMemcpyHtoD_v2(address to, const void *from, size_t bytes) { (void)to, (void)from; return upload(bytes); }
int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, void *stream) {
    (void)to, (void)from, (void)stream;
    return upload(bytes);
}
int cuMemcpyDtoH_v2(void *to, address from, size_t bytes) { (void)from; return read_back(to, bytes); }
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t bytes, void *stream) { (void)from, (void)stream; return read_back(to, bytes); }
int cuMemcpyDtoDAsync_v2(address to, address from, size_t bytes, void *stream) {
    (void)to, (void)from, (void)stream;
    return copy(bytes);
}
int cuMemsetD8Async(address at, unsigned char value, size_t bytes, void *stream) {
    (void)at, (void)value, (void)bytes, (void)stream;
    return OK;
}
// CUDA_MEMCPY2D; a memory type of 1 is the host.
struct rectangle {
    size_t from_x, from_y; int from_type; const void *from_host; address from_device; void *from_array; size_t from_pitch;
    size_t to_x, to_y; int to_type; void *to_host; address to_device; void *to_array; size_t to_pitch;
    size_t width, height;
};
int cuMemcpy2DAsync_v2(const struct rectangle *r, void *stream) {
    (void)stream;
    size_t bytes = r->width * r->height;
    if (r->to_type != 1) return r->from_type == 1 ? upload(bytes) : copy(bytes);
    size_t pitch = r->to_pitch ? r->to_pitch : r->width;
    for (size_t row = 0; row < r->height; row++) memset((char *)r->to_host + r->to_x + (r->to_y + row) * pitch, 0, r->width);
    LOCKED(counts.reads++; counts.read_bytes += bytes);
    return OK;
}
int cuTensorMapEncodeTiled(void) { return OK; }
int cuTensorMapEncodeIm2col(void) { return OK; }

// ---- Streams and events. A wait for either is one.

static int wait_for(void) { LOCKED(counts.waits++); return OK; }
int cuStreamCreate(void **stream, unsigned flags) { (void)flags; *stream = handle(); return OK; }
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { (void)flags, (void)priority; *stream = handle(); return OK; }
int cuStreamDestroy_v2(void *stream) { (void)stream; return OK; }
int cuStreamSynchronize(void *stream) { (void)stream; return wait_for(); }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { (void)stream, (void)event, (void)flags; return OK; }
int cuEventCreate(void **event, unsigned flags) { (void)flags; *event = handle(); return OK; }
int cuEventRecord(void *event, void *stream) { (void)event, (void)stream; return OK; }
int cuEventQuery(void *event) { (void)event; return OK; }
int cuEventSynchronize(void *event) { (void)event; return wait_for(); }
int cuEventDestroy_v2(void *event) { (void)event; return OK; }
int cuEventElapsedTime(float *ms, void *from, void *to) { (void)from, (void)to; *ms = 0.01f; return OK; }
int cuEventElapsedTime_v2(float *ms, void *from, void *to) { (void)from, (void)to; *ms = 0.01f; return OK; }

// ---- The card

int cuInit(unsigned flags) { (void)flags; return OK; }
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGetCount(int *count) { *count = (int)setting("CUDA_STUB_DEVICES", 1); return OK; }
int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal >= 0 && ordinal < setting("CUDA_STUB_DEVICES", 1) ? OK : INVALID_DEVICE;
}
int cuDeviceGetName(char *name, int length, int device) { (void)device; snprintf(name, length, "NVIDIA H200 (stub)"); return OK; }
int cuDeviceGetPCIBusId(char *id, int length, int device) { snprintf(id, length, "0000:%02x:00.0", device + 1); return OK; }
int cuDeviceGetUuid(void *uuid, int device) { memset(uuid, device, 16); return OK; }
int cuDeviceGetUuid_v2(void *uuid, int device) { memset(uuid, device, 16); return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    long arch = setting("CUDA_STUB_ARCH", 90);
    switch (attribute) { // CUdevice_attribute: those that a program sizes its kernels by, as of an H200
    case 1: case 2: case 3: *value = 1024; break;   // threads a block, block's x and y
    case 4: *value = 64; break;                     // block's z
    case 5: *value = 2147483647; break;             // grid's x
    case 6: case 7: *value = 65535; break;          // grid's y and z
    case 8: *value = 49152; break;                  // shared memory a block
    case 10: *value = 32; break;                    // warp
    case 13: *value = 1980000; break;               // clock, kHz
    case 16: *value = 132; break;                   // multiprocessors
    case 36: *value = 3201000; break;               // memory clock, kHz
    case 37: *value = 6144; break;                  // bus, bits
    case 38: *value = 62914560; break;              // L2
    case 39: *value = 2048; break;                  // threads a multiprocessor
    case 75: *value = (int)(arch / 10); break;
    case 76: *value = (int)(arch % 10); break;
    case 81: *value = 233472; break;                // shared memory a multiprocessor
    case 82: *value = 65536; break;                 // registers a multiprocessor
    case 97: *value = arch >= 90 ? 232448 : 166912; break; // shared memory a block may opt into
    default: *value = 1;
    }
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(uintptr_t)(16 + device); return OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return OK; }
int cuCtxSetCurrent(void *context) { (void)context; return OK; }
int cuCtxGetCurrent(void **context) { *context = (void *)16; return OK; }
int cuCtxSynchronize(void) { return wait_for(); }
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return OK; }

// ---- Errors, and what cudarc looks up by name

int cuGetErrorName(int error, const char **text) { *text = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_STUB"; return OK; }
int cuGetErrorString(int error, const char **text) { *text = error == OUT_OF_MEMORY ? "out of memory" : "the stub has no such thing"; return OK; }
int cuGetExportTable(const void **table, const void *id) { (void)id; if (table) *table = NULL; return NOT_FOUND; }
int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    (void)name, (void)version, (void)flags;
    if (function) *function = NULL;
    return NOT_FOUND;
}
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, void *status) {
    (void)status;
    return cuGetProcAddress(name, function, version, flags);
}
