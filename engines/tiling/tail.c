/* The tail of a decoder, see tail.h: maps of all windows, in float32, become logits.  C11 and pthreads. */
#include "tail.h"
#include "tile_threads.h"

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(TILE_NO_CLONES)
#define TAIL_CLONES __attribute__((target_clones("avx512f", "fma", "default")))
#else
#define TAIL_CLONES
#endif

enum { TAIL_ROWS = 4, TAIL_LANES = 16, TAIL_NARROW = 8 }; /* a block of results that stays in registers */

/* Where a block of pixels of one row samples one map: columns first.. of rows y0 and y1. */
typedef struct {
    const float *above, *below; /* at the first column */
    float lambda;
    int32_t columns;
    int32_t left[TAIL_PIXELS], right[TAIL_PIXELS]; /* columns after the first */
    float along[TAIL_PIXELS];
} tail_samples;

static void tail_place(const tail_launch *a, int32_t map, int32_t window, int32_t y, int32_t x0, int32_t n,
                       tail_samples *s)
{
    int32_t rows = a->map_h[map], columns = a->map_w[map], y0, y1, first = 0;
    s->lambda = tile_source(y, rows, a->height, &y0, &y1);
    for (int32_t p = 0; p < n; p++) {
        int32_t left, right;
        s->along[p] = tile_source(x0 + p, columns, a->width, &left, &right);
        if (p == 0)
            first = left;
        s->left[p] = left - first;
        s->right[p] = right - first;
    }
    s->columns = s->right[n - 1] + 1;
    const float *plane = (const float *)a->maps[map] + (size_t)window * (size_t)rows * (size_t)columns * (size_t)a->channels;
    s->above = plane + ((size_t)y0 * (size_t)columns + (size_t)first) * (size_t)a->channels;
    s->below = plane + ((size_t)y1 * (size_t)columns + (size_t)first) * (size_t)a->channels;
}

/* out[p][v] += sum over j of x[p][j] w[j][v], j from 0 on; TAIL_ROWS pixels, `lanes` columns: a constant.  Sums are
 * arrays of their own and the loop over lanes is the inner one, so that compilers keep them in vector registers. */
#define TAIL_PRODUCT(name, lanes)                                                                                      \
    TILE_FN void name(const float *TILE_RESTRICT x, size_t x_stride, const float *TILE_RESTRICT w, size_t w_stride,    \
                      int32_t n, float *TILE_RESTRICT out, size_t out_stride)                                          \
    {                                                                                                                  \
        const float *x1 = x + x_stride, *x2 = x1 + x_stride, *x3 = x2 + x_stride;                                      \
        float *out1 = out + out_stride, *out2 = out1 + out_stride, *out3 = out2 + out_stride;                          \
        float s0[lanes], s1[lanes], s2[lanes], s3[lanes];                                                              \
        for (int v = 0; v < lanes; v++) {                                                                              \
            s0[v] = out[v];                                                                                            \
            s1[v] = out1[v];                                                                                           \
            s2[v] = out2[v];                                                                                           \
            s3[v] = out3[v];                                                                                           \
        }                                                                                                              \
        for (int32_t j = 0; j < n; j++, w += w_stride) {                                                               \
            float a = x[j], b = x1[j], c = x2[j], d = x3[j];                                                           \
            for (int v = 0; v < lanes; v++) {                                                                          \
                s0[v] = tail_fma(w[v], a, s0[v]);                                                                      \
                s1[v] = tail_fma(w[v], b, s1[v]);                                                                      \
                s2[v] = tail_fma(w[v], c, s2[v]);                                                                      \
                s3[v] = tail_fma(w[v], d, s3[v]);                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        for (int v = 0; v < lanes; v++) {                                                                              \
            out[v] = s0[v];                                                                                            \
            out1[v] = s1[v];                                                                                           \
            out2[v] = s2[v];                                                                                           \
            out3[v] = s3[v];                                                                                           \
        }                                                                                                              \
    }
TAIL_PRODUCT(tail_product16, TAIL_LANES)
TAIL_PRODUCT(tail_product8, TAIL_NARROW)

/* The same for any number of columns and pixels. */
TILE_FN void tail_product(const float *TILE_RESTRICT x, size_t x_stride, const float *TILE_RESTRICT w, size_t w_stride,
                          int32_t n, float *TILE_RESTRICT out, size_t out_stride, int32_t columns, int32_t pixels)
{
    int32_t p = 0;
    for (; p + TAIL_ROWS <= pixels; p += TAIL_ROWS) {
        const float *from = x + (size_t)p * x_stride;
        float *to = out + (size_t)p * out_stride;
        int32_t v = 0;
        for (; v + TAIL_LANES <= columns; v += TAIL_LANES)
            tail_product16(from, x_stride, w + v, w_stride, n, to + v, out_stride);
        for (; v + TAIL_NARROW <= columns; v += TAIL_NARROW)
            tail_product8(from, x_stride, w + v, w_stride, n, to + v, out_stride);
        for (; v < columns; v++)
            for (int32_t q = 0; q < TAIL_ROWS; q++)
                for (int32_t j = 0; j < n; j++)
                    to[(size_t)q * out_stride + (size_t)v] = tail_fma(
                        w[(size_t)j * w_stride + (size_t)v], from[(size_t)q * x_stride + (size_t)j],
                        to[(size_t)q * out_stride + (size_t)v]);
    }
    for (; p < pixels; p++)
        for (int32_t j = 0; j < n; j++)
            for (int32_t v = 0; v < columns; v++)
                out[(size_t)p * out_stride + (size_t)v] = tail_fma(
                    w[(size_t)j * w_stride + (size_t)v], x[(size_t)p * x_stride + (size_t)j],
                    out[(size_t)p * out_stride + (size_t)v]);
}

/* hidden[p][c] += the map's samples, channels c0..c0+m.  mixed: room for TAIL_PIXELS + 2 columns. */
TILE_FN void tail_sample(const tail_samples *s, size_t channels, int32_t c0, int32_t m, int32_t n,
                         float *TILE_RESTRICT mixed, float *TILE_RESTRICT hidden)
{
    float la = 1.0f - s->lambda, lb = s->lambda;
    for (int32_t e = 0; e < s->columns; e++) {
        const float *above = s->above + (size_t)e * channels + c0, *below = s->below + (size_t)e * channels + c0;
        float *out = mixed + e * TAIL_CHUNK;
        for (int32_t c = 0; c < m; c++)
            out[c] = tail_mix(above[c], below[c], la, lb);
    }
    for (int32_t p = 0; p < n; p++) {
        const float *left = mixed + s->left[p] * TAIL_CHUNK, *right = mixed + s->right[p] * TAIL_CHUNK;
        float *out = hidden + p * TAIL_CHUNK, lambda = s->along[p];
        for (int32_t c = 0; c < m; c++)
            out[c] = tail_fma(right[c], lambda, tail_fma(left[c], 1.0f - lambda, out[c]));
    }
}

/* Pixels x0..x0+n of row y.  scores: (n, padded), on their way to being the logits. */
TAIL_CLONES
static void tail_block(const tail_launch *a, int32_t window, int32_t y, int32_t x0, int32_t n, float *scores)
{
    tail_samples samples[TAIL_MAPS];
    float mixed[(TAIL_PIXELS + 2) * TAIL_CHUNK], hidden[TAIL_PIXELS * TAIL_CHUNK];
    size_t inputs = (size_t)a->inputs, channels = (size_t)a->channels, padded = (size_t)a->padded;
    size_t pixel = ((size_t)window * (size_t)a->height + (size_t)y) * (size_t)a->width + (size_t)x0;
    const float *direct = (const float *)a->direct + pixel * inputs;
    for (int32_t i = 0; i < a->count; i++)
        tail_place(a, i, window, y, x0, n, &samples[i]);
    for (int32_t p = 0; p < n; p++)
        for (size_t k = 0; k < padded; k++)
            scores[(size_t)p * padded + k] = a->class_bias[k];
    for (int32_t c0 = 0; c0 < a->channels; c0 += TAIL_CHUNK) {
        int32_t m = a->channels - c0 < TAIL_CHUNK ? a->channels - c0 : TAIL_CHUNK;
        for (int32_t p = 0; p < n; p++)
            for (int32_t c = 0; c < m; c++)
                hidden[p * TAIL_CHUNK + c] = a->bias[c0 + c];
        if (a->inputs)
            tail_product(direct, inputs, a->project + c0, channels, a->inputs, hidden, TAIL_CHUNK, m, n);
        for (int32_t i = 0; i < a->count; i++)
            tail_sample(&samples[i], channels, c0, m, n, mixed, hidden);
        for (int32_t p = 0; p < n; p++)
            for (int32_t c = 0; c < m; c++)
                hidden[p * TAIL_CHUNK + c] = tail_relu(hidden[p * TAIL_CHUNK + c]);
        tail_product(hidden, TAIL_CHUNK, a->classify + (size_t)c0 * padded, padded, m, scores, padded, a->padded, n);
    }
    size_t plane = (size_t)a->height * (size_t)a->width;
    float *logits = a->logits + ((size_t)window * (size_t)a->classes * (size_t)a->height + (size_t)y) * (size_t)a->width + x0;
    for (int32_t k = 0; k < a->classes; k++)
        for (int32_t p = 0; p < n; p++)
            logits[(size_t)k * plane + (size_t)p] = scores[(size_t)p * padded + (size_t)k];
}

typedef struct {
    const tail_launch *launch;
    float *workspace; /* a block of scores for each thread */
} tail_work;

static int tail_rows(void *arg, int32_t begin, int32_t end, int32_t thread)
{
    const tail_work *work = arg;
    const tail_launch *a = work->launch;
    float *scores = work->workspace + (size_t)thread * TAIL_PIXELS * (size_t)a->padded;
    for (int32_t row = begin; row < end; row++)
        for (int32_t x0 = 0; x0 < a->width; x0 += TAIL_PIXELS)
            tail_block(a, row / a->height, row % a->height, x0, a->width - x0 < TAIL_PIXELS ? a->width - x0 : TAIL_PIXELS,
                       scores);
    return TILE_OK;
}

/* Floats of workspace that tail_run needs. */
size_t tail_workspace(const tail_launch *a, int32_t threads) { return (size_t)threads * TAIL_PIXELS * (size_t)a->padded; }

/* Every logit of every window.  All of `a` is float. */
int tail_run(const tail_launch *a, int32_t threads, float *workspace)
{
    if (a->windows < 1 || a->height < 1 || a->width < 1 || a->inputs < 0 || a->channels < 1 || a->classes < 1 ||
        a->padded < a->classes || a->count < 0 || a->count > TAIL_MAPS || !a->inputs != !a->direct || threads < 1 ||
        threads > TILE_MAX_THREADS || a->windows > INT32_MAX / a->height)
        return TILE_E_ARGUMENT;
    for (int32_t i = 0; i < a->count; i++)
        if (a->map_h[i] < 1 || a->map_w[i] < 1 || a->map_h[i] > a->height || a->map_w[i] > a->width)
            return TILE_E_ARGUMENT;
    tail_work work = {a, workspace};
    return tile_parallel(tail_rows, &work, 0, a->windows * a->height, threads,
                         (int64_t)a->width * (a->inputs + a->classes) * (a->channels / 16 + 1));
}
