/* gather: an image becomes normalised network inputs.  stitch: low-resolution logits of windows become labels.
 *
 * C11 and pthreads.  The caller allocates everything, also the workspace; functions return a tile_status; the one global
 * is the pool of threads.c.  Shapes are given as (rows, columns); strides are in bytes for images and in elements for outputs.
 */
#include "tile_windows.h"

#include <math.h>
#include <string.h>

/* ---- placement ------------------------------------------------------------------------------------------------ */

int32_t tile_axis(int32_t length, int32_t window, int32_t stride, int32_t *starts)
{
    if (length < 1 || stride < 1 || stride > window)
        return 0;
    int32_t beyond = length > window ? length - window : 0, count = (int32_t)(((int64_t)beyond + stride - 1) / stride) + 1;
    for (int32_t i = 0; starts && i < count; i++)
        starts[i] = (int64_t)i * stride < beyond ? i * stride : beyond;
    return count;
}

/* ---- gather --------------------------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *image;
    int32_t height, width;
    ptrdiff_t stride_y, stride_x, stride_c; /* bytes, may be negative */
    int32_t top, left, window_h, window_w;
    const float *scale, *bias;
    const int32_t *order; /* image channel of each output plane */
    int32_t channels, padding;
    float *out; /* (channels, window_h, window_w) */
} tile_gather_args;

/* `inside` pixels of one channel from column `left` on. */
TILE_CLONES
static void tile_gather_row(const tile_gather_args *a, const uint8_t *row, int32_t channel, int32_t left,
                            int32_t inside, float *out)
{
    float scale = a->scale[channel], bias = a->bias[channel];
    const uint8_t *p = row + (ptrdiff_t)left * a->stride_x + (ptrdiff_t)a->order[channel] * a->stride_c;
    if (a->stride_x == 3) { /* the usual HWC image: a constant stride lets the compiler use vector loads */
        for (int32_t x = 0; x < inside; x++)
            out[x] = tile_normalise(p[3 * (ptrdiff_t)x], scale, bias);
    } else if (a->stride_x == 4) { /* Pillow's own pixels, see shared_pixels.py */
        for (int32_t x = 0; x < inside; x++)
            out[x] = tile_normalise(p[4 * (ptrdiff_t)x], scale, bias);
    } else if (a->stride_x == 1) { /* one grey channel, or channels each in a plane of its own */
        for (int32_t x = 0; x < inside; x++)
            out[x] = tile_normalise(p[x], scale, bias);
    } else {
        for (int32_t x = 0; x < inside; x++)
            out[x] = tile_normalise(p[x * a->stride_x], scale, bias);
    }
}

/* Columns x0..x1 of the window, which lie beside the image. */
static void tile_gather_outside(const tile_gather_args *a, const uint8_t *row, int32_t channel, int32_t x0, int32_t x1,
                                float *out)
{
    const uint8_t *p = row + (ptrdiff_t)a->order[channel] * a->stride_c;
    for (int32_t x = x0; x < x1; x++) {
        int32_t i = tile_pad_index(a->left + x, a->width, a->padding);
        out[x] = i < 0 ? 0.0f : tile_normalise(p[i * a->stride_x], a->scale[channel], a->bias[channel]);
    }
}

static int tile_gather_rows(void *arg, int32_t begin, int32_t end, int32_t thread)
{
    const tile_gather_args *a = arg;
    (void)thread;
    int32_t before = a->left < 0 ? -a->left : 0; /* columns of the window that lie left of the image */
    int32_t behind = a->width - a->left < a->window_w ? a->width - a->left : a->window_w;
    for (int32_t y = begin; y < end; y++) {
        int32_t from = tile_pad_index(a->top + y, a->height, a->padding);
        for (int32_t c = 0; c < a->channels; c++) {
            float *out = a->out + ((size_t)c * (size_t)a->window_h + (size_t)y) * (size_t)a->window_w;
            if (from < 0) {
                memset(out, 0, (size_t)a->window_w * sizeof *out);
                continue;
            }
            const uint8_t *row = a->image + from * a->stride_y;
            tile_gather_outside(a, row, c, 0, before, out);
            tile_gather_row(a, row, c, a->left + before, behind - before, out + before);
            tile_gather_outside(a, row, c, behind, a->window_w, out);
        }
    }
    return TILE_OK;
}

/* Some of the window must lie on the image. */
int tile_gather(const uint8_t *image, int32_t height, int32_t width, ptrdiff_t stride_y, ptrdiff_t stride_x,
                ptrdiff_t stride_c, int32_t top, int32_t left, int32_t window_h, int32_t window_w, const float *scale,
                const float *bias, const int32_t *order, int32_t channels, int32_t padding, float *out, int32_t threads)
{
    if (height < 1 || width < 1 || window_h < 1 || window_w < 1 || top <= -window_h || left <= -window_w ||
        top >= height || left >= width || threads < 1 || threads > TILE_MAX_THREADS || padding < 0 || padding > TILE_PAD_REFLECT || channels < 1 ||
        channels > TILE_MAX_BANDS)
        return TILE_E_ARGUMENT;
    tile_gather_args a = {image, height, width, stride_y, stride_x, stride_c, top, left, window_h, window_w,
                          scale, bias, order, channels, padding, out};
    for (int32_t c = 0; c < channels; c++)
        if (order[c] < 0 || order[c] >= channels)
            return TILE_E_ARGUMENT;
    return tile_parallel(tile_gather_rows, &a, 0, window_h, threads, (int64_t)window_w * channels / 2);
}

/* ---- stitch --------------------------------------------------------------------------------------------------- */

typedef struct {
    tile_plan p;
    tile_windows w;
    uint8_t *labels;
    ptrdiff_t labels_stride;
    float *confidence; /* or NULL */
    ptrdiff_t confidence_stride;
    unsigned char *workspace;
    size_t per_thread;
} tile_stitch_args;

static size_t tile_parts_bytes(int32_t windows) { return tile_align((size_t)windows * sizeof(tile_part)); }

/* One thread's workspace: parts of the windows; best, weight, sum, label; the accumulators; v with its two edges. */
static size_t tile_thread_bytes(const tile_plan *p, int confidence)
{
    size_t planes = 4 + (confidence ? (size_t)p->classes : 1);
    size_t floats = planes * TILE_CHUNK + (size_t)p->logits_w + 2 * TILE_EDGE;
    return tile_parts_bytes(p->windows) + tile_align(floats * sizeof(float));
}

size_t tile_stitch_workspace(const tile_plan *p, int32_t confidence)
{
    return tile_columns_bytes(p->window_w) + (size_t)p->threads * tile_thread_bytes(p, confidence);
}

/* Writes labels and confidence of n columns in their order.  from, certainty: by phase. */
TILE_FN void tile_write(const int32_t *restrict from, const float *restrict certainty, int32_t ratio, int32_t stride,
                        int32_t n, uint8_t *restrict labels, float *restrict confidence)
{
    for (int32_t phase = 0; phase < ratio; phase++) {
        int32_t count = (n - phase + ratio - 1) / ratio;
        for (int32_t i = 0; i < count; i++)
            labels[i * ratio + phase] = (uint8_t)from[phase * stride + i];
        for (int32_t i = 0; confidence && i < count; i++)
            confidence[i * ratio + phase] = certainty[phase * stride + i];
    }
}

/* Columns c0..c0+n of row y.  bad: set to 1 if a logit is not finite. */
TILE_CLONES
static int tile_stitch_chunk(const tile_stitch_args *s, int32_t y, int32_t c0, int32_t n, unsigned char *workspace,
                             uint32_t *bad)
{
    const tile_plan *p = &s->p;
    tile_part *parts = (tile_part *)(void *)workspace;
    float *best = (float *)(void *)(workspace + tile_parts_bytes(p->windows)), *weight = best + TILE_CHUNK;
    float *sum = weight + TILE_CHUNK;
    int32_t *label = (int32_t *)(void *)(sum + TILE_CHUNK);
    float *acc = sum + 2 * TILE_CHUNK, *v = acc + (s->confidence ? p->classes : 1) * TILE_CHUNK + TILE_EDGE;
    const tile_windows *w = &s->w;
    int32_t count = tile_parts(w, y, c0, n, parts), stride = (n + w->ratio - 1) / w->ratio, all = stride * w->ratio;
    if (!tile_weights(w, parts, count, n, stride, v, weight))
        return TILE_E_UNCOVERED;
    uint32_t found = 0;
    for (int32_t x = 0; x < all; x++) {
        best[x] = -INFINITY;
        label[x] = 0;
    }
    for (int32_t k = 0; k < p->classes; k++) {
        float *row = s->confidence ? acc + k * TILE_CHUNK : acc;
        found |= tile_sum(w, parts, count, k, stride, v, row);
        tile_row_argmax(row, k, all, best, label);
    }
    for (int32_t x = 0; x < all; x++)
        found |= tile_not_finite(best[x]); /* finite logits may have a sum that is not */
    *bad |= found;
    if (p->classes == 1)
        tile_row_threshold(p->cut, weight, all, best, label);
    uint8_t *labels = s->labels + (y - p->row0) * s->labels_stride + c0;
    float *confidence = NULL;
    if (s->confidence) {
        confidence = s->confidence + (y - p->row0) * s->confidence_stride + c0;
        if (p->classes == 1)
            tile_row_probability(label, all, best);
        else
            tile_row_confidence(acc, TILE_CHUNK, p->classes, all, best, weight, sum);
    }
    tile_write(label, best, w->ratio, stride, n, labels, confidence);
    return TILE_OK;
}

static int tile_stitch_rows(void *arg, int32_t begin, int32_t end, int32_t thread)
{
    const tile_stitch_args *s = arg;
    unsigned char *workspace = s->workspace + (size_t)thread * s->per_thread;
    uint32_t bad = 0;
    for (int32_t y = begin; y < end; y++) {
        for (int32_t c0 = 0; c0 < s->p.width; c0 += TILE_CHUNK) {
            int32_t n = s->p.width - c0 < TILE_CHUNK ? s->p.width - c0 : TILE_CHUNK;
            int status = tile_stitch_chunk(s, y, c0, n, workspace, &bad);
            if (status != TILE_OK)
                return status;
        }
    }
    return bad ? TILE_E_NOT_FINITE : TILE_OK;
}

int tile_stitch(const tile_plan *plan, const float *const *logits, const int32_t *tops, const int32_t *lefts,
                const float *weight_y, const float *weight_x, uint8_t *labels, ptrdiff_t labels_stride,
                float *confidence, ptrdiff_t confidence_stride, unsigned char *workspace)
{
    const tile_plan p = *plan;
    if (p.height < 1 || p.width < 1 || p.window_h < 1 || p.window_w < 1 || p.logits_h < 1 || p.logits_w < 1 ||
        p.classes < 1 || p.classes > 255 || p.windows < 1 || p.row0 < 0 || p.row1 > p.height || p.row0 >= p.row1 ||
        p.threads < 1 || p.threads > TILE_MAX_THREADS || !weight_y != !weight_x)
        return TILE_E_ARGUMENT;
    for (int32_t i = 0; i < p.windows; i++)
        if (tops[i] < 0 || lefts[i] < 0 || tops[i] > INT32_MAX - p.window_h || lefts[i] > INT32_MAX - p.window_w)
            return TILE_E_ARGUMENT;
    tile_windows w = {.window_h = p.window_h, .window_w = p.window_w, .logits_h = p.logits_h, .logits_w = p.logits_w,
                      .windows = p.windows, .logits = logits, .class_stride = (ptrdiff_t)p.logits_h * p.logits_w,
                      .row_stride = p.logits_w, .tops = tops, .lefts = lefts, .weight_y = weight_y};
    tile_windows_open(&w, weight_x, workspace);
    tile_stitch_args s = {p, w, labels, labels_stride, confidence, confidence_stride,
                          workspace + tile_columns_bytes(p.window_w), tile_thread_bytes(&p, confidence != NULL)};
    return tile_parallel(tile_stitch_rows, &s, p.row0, p.row1, p.threads, 2 * (int64_t)p.width * p.classes);
}

const char *tile_build_info(void) { return TILE_ISA; }

int32_t tile_max_bands(void) { return TILE_MAX_BANDS; }
