/* The tail of a decoder in one pass over its pixels: small maps in, logits out.
 *
 * logits = classify relu(bias + project direct + sum of maps, each resized bilinearly) + class_bias, where classify and
 * project are 1x1 convolutions.  What lies between, as wide as the decoder and as large as the logits, is never written.
 *
 * One arithmetic for tail.c and tail.cuh, in float32 and in this order, so that both give the same bits:
 *   v[c]      = bias[c], then fused v[c] + project[j][c] direct[j] for every j from 0 on, then for every map in its order
 *               fused v[c] + left (1 - lambda), then + right lambda; left and right are tail_mix of the rows above and below
 *   logit[k]  = class_bias[k], then fused logit[k] + classify[c][k] relu(v[c]) for every c from 0 on
 */
#ifndef EDGESEG_TAIL_H
#define EDGESEG_TAIL_H

#include "tile.h"

#define TAIL_MAPS 5    /* resized maps at most; engines/tiling/tail.py has the same */
#define TAIL_PIXELS 64 /* of one row, worked on at once on a CPU */
#define TAIL_CHUNK 32  /* channels worked on at once */

/* What a run takes; engines/gpu/tail.py and engines/tiling/tail.py write the same layout.  Maps lie pixel by pixel, the
 * channels of a pixel together: (windows, rows, columns, channels).  No map is larger than the logits.  inputs and
 * channels: multiples of 4.  padded: classes in a row of classify, a multiple of 8; what is beyond `classes` is not used. */
typedef struct {
    const void *direct; /* (windows, height, width, inputs), or null where inputs is 0 */
    const void *maps[TAIL_MAPS]; /* (windows, map_h, map_w, channels) each */
    const float *project;    /* (inputs, channels) */
    const float *bias;       /* (channels) */
    const float *classify;   /* (channels, padded) */
    const float *class_bias; /* (padded) */
    float *logits;           /* (windows, classes, height, width) */
    int32_t map_h[TAIL_MAPS], map_w[TAIL_MAPS];
    int32_t count, windows, height, width, inputs, channels, classes, padded;
} tail_launch;

/* a * b + c, rounded once. */
TILE_FN float tail_fma(float a, float b, float c)
{
#ifdef __CUDA_ARCH__
    return __fmaf_rn(a, b, c);
#else
    return __builtin_fmaf(a, b, c);
#endif
}

/* Between the rows above and below: la is 1 - lambda, lb is lambda. */
TILE_FN float tail_mix(float above, float below, float la, float lb) { return tail_fma(below, lb, above * la); }

/* NaN stays NaN, so that stitch finds it. */
TILE_FN float tail_relu(float v) { return v < 0.0f ? 0.0f : v; }

#endif
