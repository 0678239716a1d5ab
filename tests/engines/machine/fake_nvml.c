/* Stands for libnvidia-ml.so.1: the functions of the NVML API that engines/machine/nvml.py calls, with their documented types.
 * One GPU, or as many as FAKE_NVML_GPUS says.  Power 250 W; every reading of the energy counter is 5 J after the last.
 * FAKE_NVML_NO_ENERGY: a GPU before Volta.  FAKE_NVML_NOTHING: a GPU that tells neither.  FAKE_NVML_BROKEN: no driver. */
#include <stdlib.h>
#include <string.h>

#define SUCCESS 0
#define INVALID 2
#define NOT_SUPPORTED 3
#define DRIVER_NOT_LOADED 9

typedef struct { int index; } device;
static device devices[8];
static unsigned long long energy = 1000000;

static unsigned gpus(void) { const char *n = getenv("FAKE_NVML_GPUS"); return n ? (unsigned)atoi(n) : 1; }

int nvmlInit_v2(void) { return getenv("FAKE_NVML_BROKEN") ? DRIVER_NOT_LOADED : SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *count) { *count = gpus(); return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device **out) {
    if (index >= gpus()) return INVALID;
    devices[index].index = (int)index;
    *out = &devices[index];
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device **out) {
    if (strcmp(uuid, "GPU-fake-1")) return INVALID;
    devices[1].index = 1;
    *out = &devices[1];
    return SUCCESS;
}

int nvmlDeviceGetName(device *d, char *name, unsigned length) {
    strncpy(name, d->index == 0 ? "NVIDIA Fake A" : "NVIDIA Fake B", length);
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(device *d, unsigned *milliwatts) {
    *milliwatts = 250000 + (unsigned)d->index;
    return getenv("FAKE_NVML_NOTHING") ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(device *d, unsigned long long *millijoules) {
    (void)d;
    *millijoules = energy += 5000;
    return getenv("FAKE_NVML_NO_ENERGY") || getenv("FAKE_NVML_NOTHING") ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetEnforcedPowerLimit(device *d, unsigned *milliwatts) { (void)d; *milliwatts = 700000; return SUCCESS; }

int nvmlDeviceGetClockInfo(device *d, int type, unsigned *mhz) {
    (void)d;
    *mhz = type == 0 ? 1755 : 2619;
    return SUCCESS;
}

int nvmlDeviceGetMaxClockInfo(device *d, int type, unsigned *mhz) { (void)d; (void)type; *mhz = 1980; return SUCCESS; }

int nvmlDeviceGetTemperature(device *d, int sensor, unsigned *degrees) {
    (void)d; (void)sensor;
    *degrees = 41;
    return NOT_SUPPORTED;
}
