/* What the kernels that make and merge views of an image take; engines/gpu/views/launches.py writes the same layouts. */
#ifndef EDGESEG_TILE_VIEWS_H
#define EDGESEG_TILE_VIEWS_H

#include "tile.h"

enum { VIEWS_MEAN = 0, VIEWS_MAX = 1 }; /* how views are merged, here and in views.c */
enum { TILE_VIEWS_FIRST = 1, TILE_VIEWS_LAST = 2 }; /* both: there is one view */

/* An image (height, width, channels) becomes one of out_h x out_w, contiguous.  Strides in bytes, may be negative. */
typedef struct {
    const uint8_t *image;
    uint8_t *out;
    int64_t stride_y, stride_x, stride_c;
    int32_t height, width, out_h, out_w, channels;
} tile_resize_launch;

/* One view's part in rows [row0, row1) of an image of height x width.  means: its mean logits (classes, rows, view_w),
 * of which row first_row of the view is the first; plane: elements from class to class.  merged: (classes, row1 - row0,
 * width), what the views before add up to.  turn: bits of TILE_VIEWS.  The last one writes labels and confidence (or
 * null), which point to row0; labels_stride in bytes, confidence_stride in elements.  share, cut and threshold as in
 * views.c.  status: bits of TILE_STATUS. */
typedef struct {
    const float *means;
    float *merged;
    uint8_t *labels;
    float *confidence;
    int32_t *status;
    int64_t plane, labels_stride, confidence_stride;
    int32_t height, width, view_h, view_w, mirror, first_row, row0, row1, classes, merge, turn;
    float share, cut, threshold;
} tile_views_launch;

#endif
