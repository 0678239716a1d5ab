/* Confidences as they are written to files: one byte a pixel.  engines/gpu/kernels.py writes the same layout. */
#ifndef EDGESEG_TILE_CONFIDENCE_H
#define EDGESEG_TILE_CONFIDENCE_H

#include "tile.h"

/* 0..1 -> 0..255, rounded half up in single precision, NaN = 0: engines.images.write.confidence_bytes, bit by bit. */
TILE_FN uint8_t tile_confidence_byte(float c)
{
    c = c > 0.0f ? c : 0.0f;
    c = c < 1.0f ? c : 1.0f;
    return (uint8_t)(c * 255.0f + 0.5f);
}

typedef struct {
    const float *confidence;
    uint8_t *out;
    int64_t count;
} tile_confidence_launch;

#endif
