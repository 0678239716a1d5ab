/* gather: an image becomes normalised network inputs.  stitch: low-resolution logits of windows become labels.
 *
 * C11 and pthreads.  The caller allocates everything, also the workspace; functions return a tile_status; there are no
 * globals.  Shapes are given as (rows, columns); strides are in bytes for images and in elements for outputs.
 */
#include "tile.h"

#include <pthread.h>
#include <stddef.h>
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

#define TILE_MAX_THREADS 64
#define TILE_CHUNK 512 /* columns worked on at once: the accumulators of 19 classes stay in a 48 KB first-level cache */

typedef enum {
    TILE_OK = 0,
    TILE_E_ARGUMENT = 1,  /* a size, stride or count is out of range */
    TILE_E_UNCOVERED = 2, /* a pixel lies in no window */
    TILE_E_NOT_FINITE = 3, /* a logit is NaN or infinite; labels were written, but mean nothing */
    TILE_E_THREAD = 4     /* the system refused a thread */
} tile_status;

typedef struct {
    int32_t height, width;         /* image */
    int32_t window_h, window_w;    /* window, in pixels */
    int32_t logits_h, logits_w;    /* one window's logits */
    int32_t classes;               /* K, 1..255 */
    int32_t windows;               /* number of windows passed */
    int32_t row0, row1;            /* rows to write */
    int32_t threads;
} tile_plan;

/* ---- threads -------------------------------------------------------------------------------------------------- */

typedef int (*tile_task)(void *arg, int32_t begin, int32_t end, int32_t thread);

typedef struct {
    tile_task task;
    void *arg;
    int32_t begin, end, thread;
    int status;
} tile_job;

static void *tile_thread(void *p)
{
    tile_job *job = p;
    job->status = job->task(job->arg, job->begin, job->end, job->thread);
    return NULL;
}

/* Splits begin..end into `threads` contiguous parts and runs them; the first error wins. */
static int tile_parallel(tile_task task, void *arg, int32_t begin, int32_t end, int32_t threads)
{
    tile_job jobs[TILE_MAX_THREADS];
    pthread_t handles[TILE_MAX_THREADS];
    if (threads > end - begin)
        threads = end - begin > 0 ? end - begin : 1;
    int status = TILE_OK;
    int32_t started = 0;
    for (int32_t t = 0; t < threads; t++) {
        int64_t rows = end - begin;
        jobs[t] = (tile_job){task, arg, begin + (int32_t)(rows * t / threads), begin + (int32_t)(rows * (t + 1) / threads),
                             t, TILE_OK};
    }
    for (int32_t t = 1; t < threads; t++) {
        if (pthread_create(&handles[t], NULL, tile_thread, &jobs[t]) != 0) {
            status = TILE_E_THREAD;
            break;
        }
        started = t;
    }
    if (status == TILE_OK)
        tile_thread(&jobs[0]);
    for (int32_t t = 1; t <= started; t++)
        pthread_join(handles[t], NULL);
    for (int32_t t = 0; t < threads && status == TILE_OK; t++)
        status = jobs[t].status;
    return status;
}

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

typedef struct {
    tile_plan p;
    const float *const *logits; /* windows x (K, logits_h, logits_w) */
    const int32_t *tops, *lefts;
    const float *weight_y, *weight_x; /* (window_h), (window_w), or NULL for uniform */
    uint8_t *labels;
    ptrdiff_t labels_stride;
    float *confidence; /* or NULL */
    ptrdiff_t confidence_stride;
    unsigned char *workspace;
    size_t per_thread;
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

static size_t tile_columns_bytes(const tile_plan *p)
{
    return (size_t)p->window_w * (2 * sizeof(int32_t) + sizeof(float));
}

static size_t tile_parts_bytes(const tile_plan *p) { return ((size_t)p->windows * sizeof(tile_part) + 63) / 64 * 64; }

/* One thread's workspace: parts of the windows, v with its two edges, best, weight, label, and the accumulators. */
static size_t tile_thread_bytes(const tile_plan *p, int confidence)
{
    size_t planes = 3 + (confidence ? (size_t)p->classes : 1);
    size_t floats = (size_t)p->logits_w + 2 + planes * TILE_CHUNK;
    return (tile_parts_bytes(p) + floats * sizeof(float) + 63) / 64 * 64;
}

/* Bytes of workspace that tile_stitch needs. */
size_t tile_stitch_workspace(const tile_plan *p, int32_t confidence)
{
    return tile_columns_bytes(p) + 64 + (size_t)p->threads * tile_thread_bytes(p, confidence);
}

/* Vertical interpolation of one class into v[j0..j1), and the edge values beside it.  Returns 1 if not finite. */
TILE_CLONES
static uint32_t tile_vertical(const tile_part *part, size_t offset, float *v)
{
    const float *r0 = part->row0 + offset, *r1 = part->row1 + offset;
    uint32_t bad = 0;
    for (int32_t j = part->j0; j < part->j1; j++) {
        float value = r0[j] * part->a + r1[j] * part->b;
        bad |= tile_not_finite(value);
        v[j] = value;
    }
    return bad;
}

/* Horizontal interpolation with a table: acc[x] (+)= v[i0] * (1 - lambda) + v[i1] * lambda, times weight_x. */
TILE_CLONES
static void tile_horizontal(const tile_stitch_args *s, const tile_part *part, const float *restrict v, float *restrict acc)
{
    const int32_t *restrict i0 = s->index0 + part->u0, *restrict i1 = s->index1 + part->u0;
    const float *restrict l = s->lambda + part->u0;
    float *restrict out = acc + part->x0;
    int32_t n = part->x1 - part->x0;
    if (s->weight_x) {
        const float *restrict w = s->weight_x + part->u0;
        for (int32_t x = 0; x < n; x++)
            out[x] += (v[i0[x]] * (1.0f - l[x]) + v[i1[x]] * l[x]) * w[x];
    } else {
        for (int32_t x = 0; x < n; x++)
            out[x] += v[i0[x]] * (1.0f - l[x]) + v[i1[x]] * l[x];
    }
}

/* The same for logits at exactly a quarter of the window and unweighted windows: four outputs share three inputs, so
 * no table and no gather.  v[-1] and v[logits_w] repeat the edge.  `acc` points at the first whole cell. */
TILE_CLONES
static void tile_horizontal4(const float *restrict v, float *restrict out, int32_t cells)
{
    for (int32_t j = 0; j < cells; j++) {
        float a = v[j - 1], b = v[j], c = v[j + 1];
        out[4 * j + 0] += a * 0.375f + b * 0.625f;
        out[4 * j + 1] += a * 0.125f + b * 0.875f;
        out[4 * j + 2] += b * 0.875f + c * 0.125f;
        out[4 * j + 3] += b * 0.625f + c * 0.375f;
    }
}

TILE_CLONES
static void tile_argmax(const float *restrict acc, int32_t k, int32_t n, float *restrict best, int32_t *restrict label)
{
    for (int32_t x = 0; x < n; x++) {
        int32_t wins = acc[x] > best[x]; /* strictly: the lowest class index wins a tie */
        best[x] = wins ? acc[x] : best[x];
        label[x] = wins ? k : label[x];
    }
}

/* Softmax probability of the winner: 1 / sum_k exp((acc_k - best) / weight). */
TILE_CLONES
static void tile_confidence(const float *restrict acc, int32_t classes, const float *restrict best,
                            const float *restrict weight, int32_t n, float *restrict out)
{
    for (int32_t x = 0; x < n; x++)
        out[x] = 0.0f;
    for (int32_t k = 0; k < classes; k++) {
        const float *row = acc + (size_t)k * TILE_CHUNK;
        for (int32_t x = 0; x < n; x++)
            out[x] += tile_exp((row[x] - best[x]) / weight[x]);
    }
    for (int32_t x = 0; x < n; x++)
        out[x] = 1.0f / out[x];
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
        if (part->j0 > 0)
            part->j0--; /* the quarter path reads one column more on either side */
        if (part->j1 < p->logits_w)
            part->j1++;
    }
    return count;
}

/* Total weight of each column of the chunk.  Returns 0 when one has none. */
static int tile_weights(const tile_stitch_args *s, int32_t n, const tile_part *parts, int32_t count, float *weight)
{
    for (int32_t x = 0; x < n; x++)
        weight[x] = 0.0f;
    for (int32_t i = 0; i < count; i++) {
        const tile_part *part = &parts[i];
        float wy = part->a + part->b;
        for (int32_t x = part->x0; x < part->x1; x++)
            weight[x] += wy * (s->weight_x ? s->weight_x[part->u0 + x - part->x0] : 1.0f);
    }
    int covered = 1;
    for (int32_t x = 0; x < n; x++)
        covered &= weight[x] > 0.0f;
    return covered;
}

/* acc += one window's part in one class. */
static void tile_accumulate(const tile_stitch_args *s, const tile_part *part, float *v, float *acc)
{
    const tile_plan *p = &s->p;
    if (p->window_w != 4 * p->logits_w || s->weight_x) {
        tile_horizontal(s, part, v, acc);
        return;
    }
    if (part->j0 == 0)
        v[-1] = v[0];
    if (part->j1 == p->logits_w)
        v[p->logits_w] = v[p->logits_w - 1];
    tile_part head = *part, tail = *part;
    int32_t first = (part->u0 + 3) / 4, last = (part->u0 + part->x1 - part->x0) / 4; /* whole cells first..last */
    if (first >= last) {
        tile_horizontal(s, part, v, acc);
        return;
    }
    head.x1 = part->x0 + 4 * first - part->u0;
    tail.x0 = part->x0 + 4 * last - part->u0;
    tail.u0 = 4 * last;
    tile_horizontal(s, &head, v, acc);
    tile_horizontal4(v + first, acc + head.x1, last - first);
    tile_horizontal(s, &tail, v, acc);
}

static int tile_stitch_chunk(const tile_stitch_args *s, int32_t y, int32_t c0, int32_t n, unsigned char *workspace,
                             uint32_t *bad)
{
    const tile_plan *p = &s->p;
    tile_part *parts = (tile_part *)(void *)workspace;
    float *scratch = (float *)(void *)(workspace + tile_parts_bytes(p));
    int32_t count = tile_parts(s, y, c0, n, parts);
    float *v = scratch + 1, *best = scratch + p->logits_w + 2, *weight = best + TILE_CHUNK;
    int32_t *label = (int32_t *)(void *)(weight + TILE_CHUNK);
    float *acc = weight + 2 * TILE_CHUNK;
    if (!tile_weights(s, n, parts, count, weight))
        return TILE_E_UNCOVERED;
    size_t plane = (size_t)p->logits_h * (size_t)p->logits_w;
    for (int32_t k = 0; k < p->classes; k++) {
        float *row = s->confidence ? acc + (size_t)k * TILE_CHUNK : acc;
        memset(row, 0, (size_t)n * sizeof *row);
        for (int32_t i = 0; i < count; i++) {
            *bad |= tile_vertical(&parts[i], (size_t)k * plane, v);
            tile_accumulate(s, &parts[i], v, row);
        }
        if (k == 0) {
            memcpy(best, row, (size_t)n * sizeof *best);
            memset(label, 0, (size_t)n * sizeof *label);
        } else {
            tile_argmax(row, k, n, best, label);
        }
    }
    uint8_t *labels = s->labels + (y - p->row0) * s->labels_stride + c0;
    for (int32_t x = 0; x < n; x++)
        labels[x] = (uint8_t)label[x];
    if (s->confidence)
        tile_confidence(acc, p->classes, best, weight, n, s->confidence + (y - p->row0) * s->confidence_stride + c0);
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
 * bilinearly at window resolution, averaged with the windows' weights, and the largest class wins.
 *
 * logits: `windows` pointers to (K, logits_h, logits_w) float32, placed at (tops, lefts).
 * weight_y (window_h) and weight_x (window_w): separable positive weights, or both NULL for the plain mean.
 * labels: (row1 - row0, width) uint8.  confidence: the same shape in float32 or NULL; softmax of the mean logits.
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
    int32_t *index0 = (int32_t *)(void *)workspace, *index1 = index0 + p.window_w;
    float *lambda = (float *)(void *)(index1 + p.window_w);
    for (int32_t x = 0; x < p.window_w; x++)
        lambda[x] = tile_source(x, p.logits_w, p.window_w, &index0[x], &index1[x]);
    size_t columns = (tile_columns_bytes(&p) + 63) / 64 * 64;
    tile_stitch_args s = {p, logits, tops, lefts, weight_y, weight_x, labels, labels_stride, confidence,
                          confidence_stride, workspace + columns, tile_thread_bytes(&p, confidence != NULL),
                          index0, index1, lambda};
    return tile_parallel(tile_stitch_rows, &s, p.row0, p.row1, p.threads);
}

const char *tile_build_info(void) { return TILE_ISA; }
