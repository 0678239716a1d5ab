/* gather: an image becomes normalised network inputs.  stitch: low-resolution logits of windows become labels.
 *
 * C11 and pthreads.  The caller allocates everything, also the workspace; functions return a tile_status; there are no
 * globals.  Shapes are given as (rows, columns); strides are in bytes for images and in elements for outputs.
 */
#include "tile.h"
#include "tile_threads.h"

#include <math.h>
#include <string.h>

/* Function multiversioning: one binary, the widest vectors of the CPU it runs on. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(TILE_NO_CLONES)
#define TILE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#define TILE_ISA "x86-64, avx2 and avx512f where present"
#elif defined(__aarch64__)
#define TILE_CLONES
#define TILE_ISA "arm64, neon"
#else
#define TILE_CLONES
#define TILE_ISA "portable"
#endif

#define TILE_CHUNK 1024   /* columns worked on at once: one class's accumulators and v stay in a first-level cache */
#define TILE_EDGE 16      /* room beside v, which keeps v aligned to cache lines */
#define TILE_MAX_RATIO 32 /* divides TILE_CHUNK */

typedef struct {
    int32_t height, width;         /* image */
    int32_t window_h, window_w;    /* window, in pixels */
    int32_t logits_h, logits_w;    /* one window's logits */
    int32_t classes;               /* K, 1..255; one alone stands for two, see tile_above */
    int32_t windows;               /* number of windows passed */
    int32_t row0, row1;            /* rows to write */
    int32_t threads;
    float cut;                     /* of one class alone */
} tile_plan;

/* ---- gather --------------------------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *image;
    int32_t height, width;
    ptrdiff_t stride_y, stride_x, stride_c; /* bytes, may be negative */
    int32_t top, left, window_h, window_w;
    float scale[3], bias[3];
    int32_t order[3]; /* image channel of each output plane */
    int32_t padding;
    float *out; /* (3, window_h, window_w) */
} tile_gather_args;

TILE_CLONES
static void tile_gather_row(const tile_gather_args *a, const uint8_t *row, int32_t channel, int32_t inside, float *out)
{
    float scale = a->scale[channel], bias = a->bias[channel];
    const uint8_t *p = row + (ptrdiff_t)a->left * a->stride_x + (ptrdiff_t)a->order[channel] * a->stride_c;
    if (a->stride_x == 3) { /* the usual HWC image: a constant stride lets the compiler use vector loads */
        for (int32_t x = 0; x < inside; x++)
            out[x] = tile_normalise(p[3 * (ptrdiff_t)x], scale, bias);
    } else if (a->stride_x == 4) { /* Pillow's own pixels, see shared_pixels.py */
        for (int32_t x = 0; x < inside; x++)
            out[x] = tile_normalise(p[4 * (ptrdiff_t)x], scale, bias);
    } else {
        for (int32_t x = 0; x < inside; x++)
            out[x] = tile_normalise(p[x * a->stride_x], scale, bias);
    }
}

static int tile_gather_rows(void *arg, int32_t begin, int32_t end, int32_t thread)
{
    const tile_gather_args *a = arg;
    (void)thread;
    int32_t inside = a->width - a->left < a->window_w ? a->width - a->left : a->window_w;
    for (int32_t y = begin; y < end; y++) {
        int32_t from = tile_pad_index(a->top + y, a->height, a->padding);
        for (int32_t c = 0; c < 3; c++) {
            float *out = a->out + ((size_t)c * (size_t)a->window_h + (size_t)y) * (size_t)a->window_w;
            if (from < 0) {
                memset(out, 0, (size_t)a->window_w * sizeof *out);
                continue;
            }
            tile_gather_row(a, a->image + from * a->stride_y, c, inside, out);
            for (int32_t x = inside; x < a->window_w; x++) {
                int32_t i = tile_pad_index(a->left + x, a->width, a->padding);
                out[x] = i < 0 ? 0.0f : out[i - a->left];
            }
        }
    }
    return TILE_OK;
}

/* Fills out (3, window_h, window_w) float32 from the window at (top, left) of an image (height, width, 3) uint8.
 * Beyond the image, which a window may only reach at the bottom and right with top = left = 0, `padding` decides. */
int tile_gather(const uint8_t *image, int32_t height, int32_t width, ptrdiff_t stride_y, ptrdiff_t stride_x,
                ptrdiff_t stride_c, int32_t top, int32_t left, int32_t window_h, int32_t window_w, const float *scale,
                const float *bias, const int32_t *order, int32_t padding, float *out, int32_t threads)
{
    if (height < 1 || width < 1 || window_h < 1 || window_w < 1 || top < 0 || left < 0 || top >= height ||
        left >= width || threads < 1 || threads > TILE_MAX_THREADS || padding < 0 || padding > TILE_PAD_REFLECT)
        return TILE_E_ARGUMENT;
    if ((top > 0 && top + window_h > height) || (left > 0 && left + window_w > width))
        return TILE_E_ARGUMENT;
    tile_gather_args a = {image, height, width, stride_y, stride_x, stride_c, top, left, window_h, window_w,
                          {scale[0], scale[1], scale[2]}, {bias[0], bias[1], bias[2]}, {order[0], order[1], order[2]},
                          padding, out};
    for (int c = 0; c < 3; c++)
        if (order[c] < 0 || order[c] > 2)
            return TILE_E_ARGUMENT;
    return tile_parallel(tile_gather_rows, &a, 0, window_h, threads);
}

/* ---- stitch --------------------------------------------------------------------------------------------------- */

/* Accumulators of a chunk are stored by phase: column x of the chunk at [x % ratio * stride + x / ratio].  Then every
 * phase of every window adds up contiguous floats with constant weights: no gather, no shuffle, on any CPU. */
typedef struct {
    tile_plan p;
    const float *const *logits; /* windows x (K, logits_h, logits_w) */
    const int32_t *tops, *lefts;
    const float *weight_y; /* (window_h), or NULL for uniform */
    const float *weight_x; /* (window_w) by phase: column u at [u % ratio * (window_w / ratio) + u / ratio]; or NULL */
    uint8_t *labels;
    ptrdiff_t labels_stride;
    float *confidence; /* or NULL */
    ptrdiff_t confidence_stride;
    unsigned char *workspace;
    size_t per_thread;
    int32_t ratio;                  /* window_w / logits_w where that is a power of two up to TILE_MAX_RATIO, else 1 */
    int32_t ratio_log2;
    int32_t phase_shift[TILE_MAX_RATIO]; /* of each phase, see tile_phase_source */
    float phase_lambda[TILE_MAX_RATIO];
    int32_t table;                  /* 1 where it is not: columns come from the table below */
    const int32_t *index0, *index1; /* (window_w): horizontal source columns of each window column */
    const float *lambda;            /* (window_w) */
} tile_stitch_args;

/* A window's part in one chunk of one row. */
typedef struct {
    const float *row0, *row1; /* class 0 of the two source rows */
    float a, b;               /* their weights, window weight included */
    int32_t x0, x1;           /* columns of the chunk that the window covers, relative to the chunk */
    int32_t u0;               /* window column at x0 */
    int32_t j0, j1;           /* source columns needed: j0 <= j < j1 */
} tile_part;

static size_t tile_align(size_t bytes) { return (bytes + 63) / 64 * 64; }

static size_t tile_columns_bytes(const tile_plan *p)
{
    return tile_align((size_t)p->window_w * (2 * sizeof(int32_t) + 2 * sizeof(float)));
}

static size_t tile_parts_bytes(const tile_plan *p) { return tile_align((size_t)p->windows * sizeof(tile_part)); }

/* One thread's workspace: parts of the windows; best, weight, sum, label; the accumulators; v with its two edges. */
static size_t tile_thread_bytes(const tile_plan *p, int confidence)
{
    size_t planes = 4 + (confidence ? (size_t)p->classes : 1);
    size_t floats = planes * TILE_CHUNK + (size_t)p->logits_w + 2 * TILE_EDGE;
    return tile_parts_bytes(p) + tile_align(floats * sizeof(float));
}

/* Bytes of workspace that tile_stitch needs. */
size_t tile_stitch_workspace(const tile_plan *p, int32_t confidence)
{
    return tile_columns_bytes(p) + (size_t)p->threads * tile_thread_bytes(p, confidence);
}

/* Vertical interpolation of one class into v[j0..j1), and the edge beside it.  Returns 1 if not finite. */
TILE_FN uint32_t tile_vertical(const tile_part *part, size_t offset, int32_t logits_w, float *v)
{
    uint32_t bad = tile_row_vertical(part->row0 + offset, part->row1 + offset, part->a, part->b, part->j0, part->j1, v);
    if (part->j0 == 0)
        v[-1] = v[0];
    if (part->j1 == logits_w)
        v[logits_w] = v[logits_w - 1];
    return bad;
}

/* acc += one window's part in one class: the horizontal interpolation of v. */
TILE_FN void tile_accumulate(const tile_stitch_args *s, const tile_part *part, const float *v, int32_t stride,
                             float *acc)
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
        const float *w = s->weight_x ? s->weight_x + phase * (s->p.window_w >> shift) + begin : NULL;
        tile_row_phase(v + begin + s->phase_shift[phase], s->phase_lambda[phase], w, end - begin,
                       acc + (x & (ratio - 1)) * stride + (x >> shift));
    }
}

/* The windows that touch columns c0..c0+n of row y.  Returns their number. */
static int32_t tile_parts(const tile_stitch_args *s, int32_t y, int32_t c0, int32_t n, tile_part *parts)
{
    const tile_plan *p = &s->p;
    int32_t count = 0;
    for (int32_t i = 0; i < p->windows; i++) {
        int32_t v = y - s->tops[i], left = s->lefts[i];
        if (v < 0 || v >= p->window_h || left >= c0 + n || left + p->window_w <= c0)
            continue;
        tile_part *part = &parts[count++];
        int32_t y0, y1;
        float lambda = tile_source(v, p->logits_h, p->window_h, &y0, &y1);
        float weight = s->weight_y ? s->weight_y[v] : 1.0f;
        part->row0 = s->logits[i] + (size_t)y0 * (size_t)p->logits_w;
        part->row1 = s->logits[i] + (size_t)y1 * (size_t)p->logits_w;
        part->a = (1.0f - lambda) * weight;
        part->b = lambda * weight;
        part->x0 = left > c0 ? left - c0 : 0;
        part->x1 = left + p->window_w < c0 + n ? left + p->window_w - c0 : n;
        part->u0 = c0 + part->x0 - left;
        part->j0 = s->index0[part->u0];
        part->j1 = s->index1[part->u0 + part->x1 - part->x0 - 1] + 1;
    }
    return count;
}

/* Total weight of each column: what the windows would add up to if all their logits were one.  0 when one has none. */
TILE_FN int tile_weights(const tile_stitch_args *s, const tile_part *parts, int32_t count, int32_t n, int32_t stride,
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
    float *best = (float *)(void *)(workspace + tile_parts_bytes(p)), *weight = best + TILE_CHUNK;
    float *sum = weight + TILE_CHUNK;
    int32_t *label = (int32_t *)(void *)(sum + TILE_CHUNK);
    float *acc = sum + 2 * TILE_CHUNK, *v = acc + (s->confidence ? p->classes : 1) * TILE_CHUNK + TILE_EDGE;
    int32_t count = tile_parts(s, y, c0, n, parts), stride = (n + s->ratio - 1) / s->ratio, all = stride * s->ratio;
    if (!tile_weights(s, parts, count, n, stride, v, weight))
        return TILE_E_UNCOVERED;
    size_t plane = (size_t)p->logits_h * (size_t)p->logits_w;
    uint32_t found = 0;
    for (int32_t x = 0; x < all; x++) {
        best[x] = -INFINITY;
        label[x] = 0;
    }
    for (int32_t k = 0; k < p->classes; k++) {
        float *row = s->confidence ? acc + k * TILE_CHUNK : acc;
        for (int32_t x = 0; x < all; x++)
            row[x] = 0.0f;
        for (int32_t i = 0; i < count; i++) {
            found |= tile_vertical(&parts[i], (size_t)k * plane, p->logits_w, v);
            tile_accumulate(s, &parts[i], v, stride, row);
        }
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
    tile_write(label, best, s->ratio, stride, n, labels, confidence);
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

/* Labels of rows row0..row1 of an image (height, width): for each pixel every covering window's logits are sampled
 * bilinearly at window resolution, averaged with the windows' weights, and the largest class wins; of one class alone
 * label 1 is where the mean lies above plan->cut.
 *
 * logits: `windows` pointers to (K, logits_h, logits_w) float32, placed at (tops, lefts).
 * weight_y (window_h) and weight_x (window_w): separable positive weights, or both NULL for the plain mean.
 * labels: (row1 - row0, width) uint8.  confidence: the same shape in float32 or NULL; softmax of the mean logits, or
 * of one class alone the sigmoid of its mean or one minus that, whichever the label is.
 * workspace: tile_stitch_workspace() bytes, aligned to 64. */
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
    int32_t ratio = p.window_w / p.logits_w;
    int32_t table = p.window_w % p.logits_w != 0 || ratio > TILE_MAX_RATIO || (ratio & (ratio - 1)) != 0;
    if (table)
        ratio = 1;
    int32_t *index0 = (int32_t *)(void *)workspace, *index1 = index0 + p.window_w;
    float *lambda = (float *)(void *)(index1 + p.window_w), *by_phase = lambda + p.window_w;
    for (int32_t x = 0; x < p.window_w; x++) {
        lambda[x] = tile_source(x, p.logits_w, p.window_w, &index0[x], &index1[x]);
        if (weight_x)
            by_phase[x % ratio * (p.window_w / ratio) + x / ratio] = weight_x[x];
    }
    tile_stitch_args s = {p, logits, tops, lefts, weight_y, weight_x ? by_phase : NULL, labels, labels_stride,
                          confidence, confidence_stride, workspace + tile_columns_bytes(&p),
                          tile_thread_bytes(&p, confidence != NULL), ratio, 0, {0}, {0}, table, index0, index1, lambda};
    while (1 << s.ratio_log2 < ratio)
        s.ratio_log2++;
    for (int32_t phase = 0; phase < ratio; phase++)
        s.phase_lambda[phase] = tile_phase_source(phase, ratio, &s.phase_shift[phase]);
    return tile_parallel(tile_stitch_rows, &s, p.row0, p.row1, p.threads);
}

const char *tile_build_info(void) { return TILE_ISA; }
