/* What pycuda links against and the runtime never calls. */
#include <stdio.h>

#define STUB(name)                                                                 \
    int name(void) {                                                               \
        fprintf(stderr, "FAKE CUDA: " #name " was called, which is not there\n"); \
        return 801; /* CUDA_ERROR_NOT_SUPPORTED */                                 \
    }

STUB(cuArray3DCreate_v2) STUB(cuArray3DGetDescriptor_v2) STUB(cuArrayCreate_v2) STUB(cuArrayDestroy)
STUB(cuArrayGetDescriptor_v2) STUB(cuCtxAttach) STUB(cuCtxCreate_v4) STUB(cuCtxDetach) STUB(cuCtxDisablePeerAccess)
STUB(cuCtxEnablePeerAccess) STUB(cuCtxGetApiVersion) STUB(cuCtxGetCacheConfig) STUB(cuCtxGetLimit)
STUB(cuCtxGetSharedMemConfig) STUB(cuCtxSetCacheConfig) STUB(cuCtxSetLimit) STUB(cuCtxSetSharedMemConfig)
STUB(cuDeviceCanAccessPeer) STUB(cuDeviceGetByPCIBusId) STUB(cuDeviceGetPCIBusId) STUB(cuFuncGetAttribute)
STUB(cuFuncSetAttribute) STUB(cuFuncSetCacheConfig) STUB(cuFuncSetSharedSize) STUB(cuIpcCloseMemHandle)
STUB(cuIpcGetEventHandle) STUB(cuIpcGetMemHandle) STUB(cuIpcOpenEventHandle) STUB(cuIpcOpenMemHandle_v2)
STUB(cuLaunch) STUB(cuLaunchGrid) STUB(cuLaunchGridAsync) STUB(cuLinkAddData_v2) STUB(cuLinkAddFile_v2)
STUB(cuLinkComplete) STUB(cuLinkCreate_v2) STUB(cuLinkDestroy) STUB(cuMemAllocManaged) STUB(cuMemAllocPitch_v2)
STUB(cuMemGetAddressRange_v2) STUB(cuMemHostGetFlags) STUB(cuMemHostRegister_v2) STUB(cuMemHostUnregister)
STUB(cuMemcpy2DAsync_v2) STUB(cuMemcpy2DUnaligned_v2) STUB(cuMemcpy2D_v2) STUB(cuMemcpy3DAsync_v2)
STUB(cuMemcpy3DPeer) STUB(cuMemcpy3DPeerAsync) STUB(cuMemcpy3D_v2) STUB(cuMemcpyAtoA_v2) STUB(cuMemcpyAtoD_v2)
STUB(cuMemcpyAtoH_v2) STUB(cuMemcpyDtoA_v2) STUB(cuMemcpyDtoD_v2) STUB(cuMemcpyDtoH_v2) STUB(cuMemcpyHtoA_v2)
STUB(cuMemcpyHtoD_v2) STUB(cuMemcpyPeer) STUB(cuMemcpyPeerAsync) STUB(cuMemsetD16Async) STUB(cuMemsetD16_v2)
STUB(cuMemsetD2D16Async) STUB(cuMemsetD2D16_v2) STUB(cuMemsetD2D32Async) STUB(cuMemsetD2D32_v2)
STUB(cuMemsetD2D8Async) STUB(cuMemsetD2D8_v2) STUB(cuMemsetD32Async) STUB(cuMemsetD32_v2) STUB(cuMemsetD8_v2)
STUB(cuModuleGetGlobal_v2) STUB(cuModuleGetSurfRef) STUB(cuModuleGetTexRef) STUB(cuModuleLoad) STUB(cuModuleLoadData)
STUB(cuParamSetSize) STUB(cuParamSetTexRef) STUB(cuParamSetf) STUB(cuParamSeti) STUB(cuParamSetv)
STUB(cuProfilerInitialize) STUB(cuProfilerStart) STUB(cuProfilerStop) STUB(cuStreamAttachMemAsync)
STUB(cuSurfRefGetArray) STUB(cuSurfRefSetArray) STUB(cuTexRefCreate) STUB(cuTexRefDestroy)
STUB(cuTexRefGetAddressMode) STUB(cuTexRefGetAddress_v2) STUB(cuTexRefGetArray) STUB(cuTexRefGetFilterMode)
STUB(cuTexRefGetFlags) STUB(cuTexRefGetFormat) STUB(cuTexRefSetAddress2D_v3) STUB(cuTexRefSetAddressMode)
STUB(cuTexRefSetAddress_v2) STUB(cuTexRefSetArray) STUB(cuTexRefSetFilterMode) STUB(cuTexRefSetFlags)
STUB(cuTexRefSetFormat)
