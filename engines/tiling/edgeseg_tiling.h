/* Windows over images, for programs in C: place them, gather them from an image, stitch their logits into labels.
 *
 * What edgeseg runs with, bit for bit; link tile.c and threads.c of this folder with -lm and -pthread, and compile them
 * with -ffp-contract=off.  Nothing is allocated but the pool of threads.  Functions return a tile_status; what pointers
 * point to is not checked.  Sizes are in pixels, images (height, width, channels) uint8 with strides in bytes.
 * docs/tiling.c is an example.
 */
#ifndef EDGESEG_TILING_H
#define EDGESEG_TILING_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    TILE_OK = 0,
    TILE_E_ARGUMENT = 1,   /* a size, stride or count is out of range */
    TILE_E_UNCOVERED = 2,  /* a pixel lies in no window */
    TILE_E_NOT_FINITE = 3, /* a logit or their sum is NaN or infinite; labels are below K, but mean nothing */
    TILE_E_THREAD = 4      /* the system refused a thread */
} tile_status;

/* What tile_stitch is given and asked for. */
typedef struct {
    int32_t height, width;         /* image */
    int32_t window_h, window_w;    /* window, in pixels */
    int32_t logits_h, logits_w;    /* one window's logits */
    int32_t classes;               /* K, 1..255; one alone stands for two: label 1 is where its mean exceeds cut */
    int32_t windows;               /* number of windows passed */
    int32_t row0, row1;            /* rows to write */
    int32_t threads;               /* 1..64 */
    float cut;                     /* of one class alone: log(t / (1 - t)) for the probability t */
} tile_plan;

/* Where windows begin along an axis of `length` pixels, as mmsegmentation's slide mode has it: every `stride` pixels,
 * the last one moved back to end where the image does; one at 0 where the image is smaller.  starts: NULL, or room for
 * as many numbers as it returns.  Returns how many there are, 0 where a size is not positive or stride > window. */
int32_t tile_axis(int32_t length, int32_t window, int32_t stride, int32_t *starts);

/* Fills out (channels, window_h, window_w) float32 from the window at (top, left) of an image (height, width, channels)
 * uint8: value * scale + bias, which is (value - mean) / std with scale = 1 / std and bias = -mean / std.
 * scale, bias, order: of each output plane; order is the image's channel that it is made from.  channels: 1..64.
 * A part of the window must lie on the image.  padding: what lies beyond that: 0 zero after normalisation, 1 the edge's
 * pixels, 2 reflected ones.  threads: 1..64. */
int tile_gather(const uint8_t *image, int32_t height, int32_t width, ptrdiff_t stride_y, ptrdiff_t stride_x,
                ptrdiff_t stride_c, int32_t top, int32_t left, int32_t window_h, int32_t window_w, const float *scale,
                const float *bias, const int32_t *order, int32_t channels, int32_t padding, float *out,
                int32_t threads);

/* Bytes of workspace that tile_stitch needs, with confidence (1) or without. */
size_t tile_stitch_workspace(const tile_plan *plan, int32_t confidence);

/* Labels of rows row0..row1 of an image (height, width): for each pixel every covering window's logits are sampled
 * bilinearly at window resolution, averaged with the windows' weights, and the largest class wins; of one class alone
 * label 1 is where the mean lies above plan->cut.
 *
 * logits: `windows` pointers to (K, logits_h, logits_w) float32, placed at (tops, lefts), 0 or more.  Those that do not
 * touch the rows are not read.
 * weight_y (window_h) and weight_x (window_w): separable positive weights, or both NULL for the plain mean.
 * labels: (row1 - row0, width) uint8.  confidence: the same shape in float32 or NULL; softmax of the mean logits, or
 * of one class alone the sigmoid of its mean or one minus that, whichever the label is.  Strides in elements.
 * workspace: tile_stitch_workspace() bytes, aligned to 64. */
int tile_stitch(const tile_plan *plan, const float *const *logits, const int32_t *tops, const int32_t *lefts,
                const float *weight_y, const float *weight_x, uint8_t *labels, ptrdiff_t labels_stride,
                float *confidence, ptrdiff_t confidence_stride, unsigned char *workspace);

/* The instruction sets that are compiled in. */
const char *tile_build_info(void);

#ifdef __cplusplus
}
#endif

#endif
