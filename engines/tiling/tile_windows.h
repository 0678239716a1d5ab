/* One row of the weighted mean of windows' logits, resized to pixels: what stitching and merging views both add up. */
#ifndef EDGESEG_TILE_WINDOWS_H
#define EDGESEG_TILE_WINDOWS_H

#include "tile.h"
#include "tile_threads.h"

#define TILE_CHUNK 1024   /* columns worked on at once: one class's accumulators and v stay in a first-level cache */
#define TILE_EDGE 16      /* room beside v, which keeps v aligned to cache lines */
#define TILE_MAX_RATIO 32 /* divides TILE_CHUNK */

/* Windows of one size over one image.  Logits of class k, row y of window i begin at
 * logits[i] + k * class_stride + (y - first[i]) * row_stride, with first[i] = 0 where first is NULL.
 *
 * Accumulators of a chunk are stored by phase: column x of the chunk at [x % ratio * stride + x / ratio].  Then every
 * phase of every window adds up contiguous floats with constant weights: no gather, no shuffle, on any CPU. */
typedef struct {
    int32_t window_h, window_w; /* in pixels */
    int32_t logits_h, logits_w;
    int32_t windows;
    const float *const *logits;
    const int32_t *first;
    ptrdiff_t class_stride, row_stride; /* in elements */
    const int32_t *tops, *lefts;
    const float *weight_y; /* (window_h), or NULL for uniform */
    const float *weight_x; /* (window_w) by phase: column u at [u % ratio * (window_w / ratio) + u / ratio]; or NULL */
    int32_t ratio;                  /* window_w / logits_w where that is a power of two up to TILE_MAX_RATIO, else 1 */
    int32_t ratio_log2;
    int32_t phase_shift[TILE_MAX_RATIO]; /* of each phase, see tile_phase_source */
    float phase_lambda[TILE_MAX_RATIO];
    int32_t table;                  /* 1 where it is not: columns come from the table below */
    const int32_t *index0, *index1; /* (window_w): horizontal source columns of each window column */
    const float *lambda;            /* (window_w) */
} tile_windows;

/* A window's part in one chunk of one row. */
typedef struct {
    const float *row0, *row1; /* class 0 of the two source rows */
    float a, b;               /* their weights, window weight included */
    int32_t x0, x1;           /* columns of the chunk that the window covers, relative to the chunk */
    int32_t u0;               /* window column at x0 */
    int32_t j0, j1;           /* source columns needed: j0 <= j < j1 */
} tile_part;

static size_t tile_align(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* Bytes of the tables that tile_windows_open fills; they keep what follows aligned. */
static size_t tile_columns_bytes(int32_t window_w)
{
    return tile_align((size_t)window_w * (2 * sizeof(int32_t) + 2 * sizeof(float)));
}

/* Fills the fields of w from ratio on, and weight_x by phase, with tables in tile_columns_bytes() at `tables`.
 * weight_x: (window_w) or NULL. */
static void tile_windows_open(tile_windows *w, const float *weight_x, unsigned char *tables)
{
    int32_t ratio = w->window_w / w->logits_w;
    w->table = w->window_w % w->logits_w != 0 || ratio > TILE_MAX_RATIO || (ratio & (ratio - 1)) != 0;
    w->ratio = ratio = w->table ? 1 : ratio;
    int32_t *index0 = (int32_t *)(void *)tables, *index1 = index0 + w->window_w;
    float *lambda = (float *)(void *)(index1 + w->window_w), *by_phase = lambda + w->window_w;
    for (int32_t x = 0; x < w->window_w; x++) {
        lambda[x] = tile_source(x, w->logits_w, w->window_w, &index0[x], &index1[x]);
        if (weight_x)
            by_phase[x % ratio * (w->window_w / ratio) + x / ratio] = weight_x[x];
    }
    w->index0 = index0, w->index1 = index1, w->lambda = lambda, w->weight_x = weight_x ? by_phase : NULL;
    w->ratio_log2 = 0;
    while (1 << w->ratio_log2 < ratio)
        w->ratio_log2++;
    for (int32_t phase = 0; phase < ratio; phase++)
        w->phase_lambda[phase] = tile_phase_source(phase, ratio, &w->phase_shift[phase]);
}

/* Vertical interpolation of one class into v[j0..j1), and the edge beside it.  Returns 1 if not finite. */
TILE_FN uint32_t tile_vertical(const tile_part *part, ptrdiff_t offset, int32_t logits_w, float *v)
{
    uint32_t bad = tile_row_vertical(part->row0 + offset, part->row1 + offset, part->a, part->b, part->j0, part->j1, v);
    if (part->j0 == 0)
        v[-1] = v[0];
    if (part->j1 == logits_w)
        v[logits_w] = v[logits_w - 1];
    return bad;
}

/* acc += one window's part in one class: the horizontal interpolation of v. */
TILE_FN void tile_accumulate(const tile_windows *s, const tile_part *part, const float *v, int32_t stride, float *acc)
{
    if (s->table) {
        tile_row_table(v, s->index0 + part->u0, s->index1 + part->u0, s->lambda + part->u0,
                       s->weight_x ? s->weight_x + part->u0 : NULL, part->x1 - part->x0, acc + part->x0);
        return;
    }
    int32_t ratio = s->ratio, shift = s->ratio_log2, u1 = part->u0 + part->x1 - part->x0;
    for (int32_t phase = 0; phase < ratio; phase++) {
        int32_t begin = (part->u0 - phase + ratio - 1) >> shift, end = (u1 - phase + ratio - 1) >> shift;
        int32_t x = (begin << shift) + phase - part->u0 + part->x0;
        const float *w = s->weight_x ? s->weight_x + phase * (s->window_w >> shift) + begin : NULL;
        tile_row_phase(v + begin + s->phase_shift[phase], s->phase_lambda[phase], w, end - begin,
                       acc + (x & (ratio - 1)) * stride + (x >> shift));
    }
}

/* The windows that touch columns c0..c0+n of row y.  Returns their number. */
static int32_t tile_parts(const tile_windows *s, int32_t y, int32_t c0, int32_t n, tile_part *parts)
{
    int32_t count = 0;
    for (int32_t i = 0; i < s->windows; i++) {
        int32_t v = y - s->tops[i], left = s->lefts[i];
        if (v < 0 || v >= s->window_h || left >= c0 + n || left + s->window_w <= c0)
            continue;
        tile_part *part = &parts[count++];
        int32_t y0, y1, first = s->first ? s->first[i] : 0;
        float lambda = tile_source(v, s->logits_h, s->window_h, &y0, &y1);
        float weight = s->weight_y ? s->weight_y[v] : 1.0f;
        part->row0 = s->logits[i] + (y0 - first) * s->row_stride;
        part->row1 = s->logits[i] + (y1 - first) * s->row_stride;
        part->a = (1.0f - lambda) * weight;
        part->b = lambda * weight;
        part->x0 = left > c0 ? left - c0 : 0;
        part->x1 = left + s->window_w < c0 + n ? left + s->window_w - c0 : n;
        part->u0 = c0 + part->x0 - left;
        part->j0 = s->index0[part->u0];
        part->j1 = s->index1[part->u0 + part->x1 - part->x0 - 1] + 1;
    }
    return count;
}

/* Total weight of each column: what the windows would add up to if all their logits were one.  0 when one has none. */
TILE_FN int tile_weights(const tile_windows *s, const tile_part *parts, int32_t count, int32_t n, int32_t stride,
                         float *v, float *weight)
{
    int32_t ratio = s->ratio, all = stride * ratio, covered = 1;
    for (int32_t x = 0; x < all; x++)
        weight[x] = 0.0f;
    for (int32_t i = 0; i < count; i++) {
        for (int32_t j = parts[i].j0 - 1; j <= parts[i].j1; j++)
            v[j] = parts[i].a + parts[i].b;
        tile_accumulate(s, &parts[i], v, stride, weight);
    }
    for (int32_t x = n; x < all; x++) /* beyond the image, where the last phases are shorter */
        weight[x % ratio * stride + x / ratio] = 1.0f;
    for (int32_t x = 0; x < all; x++)
        covered &= weight[x] > 0.0f;
    return covered;
}

/* sums = class k of row y in n columns, by phase, not yet divided by the weights.  Returns 1 if one is not finite. */
TILE_FN uint32_t tile_sum(const tile_windows *s, const tile_part *parts, int32_t count, int32_t k, int32_t stride,
                          float *v, float *sums)
{
    uint32_t bad = 0;
    for (int32_t x = 0; x < stride * s->ratio; x++)
        sums[x] = 0.0f;
    for (int32_t i = 0; i < count; i++) {
        bad |= tile_vertical(&parts[i], k * s->class_stride, s->logits_w, v);
        tile_accumulate(s, &parts[i], v, stride, sums);
    }
    return bad;
}

#endif
