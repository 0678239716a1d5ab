/* Self-test of the tiling core, without Python: for sanitizers, and for CPUs that this machine only emulates.
 *
 * Compares tile.c, views.c, resize.c, tail.c and counts.c with plain loops written here, in double precision where there
 * are floats, and has threads.c called from several threads, from a task and in a forked child.  Exits with the number
 * of failed cases.
 */
#define TILE_WORTH 1 /* threads for the smallest image too */
#include "../../../engines/tiling/threads.c"
#include "../../../engines/tiling/tile.c"
#include "../../../engines/tiling/views.c"
#include "../../../engines/tiling/resize.c"
#include "../../../engines/tiling/tail.c"
#include "../../../engines/tiling/counts.c"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static uint32_t state = 12345;
static uint64_t digest = 14695981039346656037u; /* of all results: the same on every CPU */

static void digest_bytes(const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        digest = (digest ^ ((const unsigned char *)bytes)[i]) * 1099511628211u; /* FNV-1a */
}

static float uniform(void) /* -1..1 */
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static double sample(const float *plane, int h, int w, double y, double x)
{
    int y0 = (int)y, x0 = (int)x;
    int y1 = y0 + 1 < h ? y0 + 1 : y0, x1 = x0 + 1 < w ? x0 + 1 : x0;
    double fy = y - y0, fx = x - x0;
    return (plane[y0 * w + x0] * (1 - fx) + plane[y0 * w + x1] * fx) * (1 - fy) +
           (plane[y1 * w + x0] * (1 - fx) + plane[y1 * w + x1] * fx) * fy;
}

static double centre(int i, int in, int out)
{
    double p = (i + 0.5) * in / out - 0.5;
    return p < 0 ? 0 : p > in - 1 ? in - 1 : p;
}

/* Score of class k at pixel (y, x): weighted mean over the windows that cover it. */
static double score(const tile_plan *p, float **logits, const int32_t *tops, const int32_t *lefts, const float *wy,
                    const float *wx, int k, int y, int x, double *weight)
{
    double total = 0;
    *weight = 0;
    for (int i = 0; i < p->windows; i++) {
        int v = y - tops[i], u = x - lefts[i];
        if (v < 0 || u < 0 || v >= p->window_h || u >= p->window_w)
            continue;
        double w = wy ? (double)wy[v] * wx[u] : 1;
        total += w * sample(logits[i] + (size_t)k * (size_t)(p->logits_h * p->logits_w), p->logits_h, p->logits_w,
                            centre(v, p->logits_h, p->window_h), centre(u, p->logits_w, p->window_w));
        *weight += w;
    }
    return total / *weight;
}

static int starts(int length, int window, int stride, int32_t *out)
{
    int excess = length - window + stride - 1;
    int count = (excess > 0 ? excess : 0) / stride + 1;
    for (int i = 0; i < count; i++) {
        int end = i * stride + window < length ? i * stride + window : length;
        out[i] = end > window ? end - window : 0;
    }
    return count;
}

#define CUT 0.4f /* of one class alone */

static int check_stitch(int height, int width, int window, int stride, int low, int classes, int weighted, int threads)
{
    int32_t rows[512], columns[512], tops[4096], lefts[4096];
    int ny = starts(height, window, stride, rows), nx = starts(width, window, stride, columns), n = 0;
    float *logits[4096], *wy = NULL;
    for (int i = 0; i < ny; i++)
        for (int j = 0; j < nx; j++, n++) {
            tops[n] = rows[i], lefts[n] = columns[j];
            logits[n] = malloc(sizeof(float) * (size_t)(classes * low * low));
            for (int k = 0; k < classes * low * low; k++)
                logits[n][k] = 4 * uniform();
        }
    if (weighted) {
        wy = malloc(sizeof(float) * (size_t)window);
        for (int i = 0; i < window; i++)
            wy[i] = 1.2f + uniform();
    }
    tile_plan plan = {height, width, window, window, low, low, classes, n, 0, height, threads, CUT};
    size_t size = tile_stitch_workspace(&plan, 1);
    unsigned char *workspace = aligned_alloc(64, (size + 63) / 64 * 64);
    uint8_t *labels = malloc((size_t)(height * width));
    float *confidence = malloc(sizeof(float) * (size_t)(height * width));
    int bad = tile_stitch(&plan, (const float *const *)logits, tops, lefts, wy, wy, labels, width, confidence, width,
                          workspace) != TILE_OK;
    digest_bytes(labels, (size_t)(height * width));
    digest_bytes(confidence, sizeof(float) * (size_t)(height * width));
    for (int y = 0; y < height && !bad; y++)
        for (int x = 0; x < width && !bad; x++) {
            double best = -1e30, second = -1e30, sum = 0, weight;
            int winner = 0;
            for (int k = 0; k < classes; k++) {
                double s = score(&plan, logits, tops, lefts, wy, wy, k, y, x, &weight);
                if (s > best)
                    second = best, best = s, winner = k;
                else if (s > second)
                    second = s;
            }
            for (int k = 0; k < classes; k++)
                sum += exp(score(&plan, logits, tops, lefts, wy, wy, k, y, x, &weight) - best);
            if (classes == 1) { /* two by a threshold */
                winner = best > CUT, second = winner ? CUT : 2 * best - CUT;
                sum = 1 + exp(winner ? -best : best);
            }
            int got = labels[y * width + x];
            bad = (got != winner && best - second > 1e-4) || fabs(confidence[y * width + x] - 1 / sum) > 1e-5;
            if (bad)
                printf("pixel %d %d: label %d, expected %d; confidence %g, expected %g\n", y, x, got, winner,
                       confidence[y * width + x], 1 / sum);
        }
    for (int i = 0; i < n; i++)
        free(logits[i]);
    free(wy), free(workspace), free(labels), free(confidence);
    printf("stitch %dx%d window %d stride %d logits %d classes %d%s threads %d: %s\n", height, width, window, stride,
           low, classes, weighted ? " weighted" : "", threads, bad ? "FAILED" : "ok");
    return bad;
}

static int check_gather(int height, int width, int window, int top, int left, int padding, int threads)
{
    static const float scale[3] = {0.5f, 0.25f, 2.0f}, bias[3] = {-1.0f, 0.5f, 3.0f};
    static const int32_t order[3] = {2, 1, 0};
    uint8_t *image = malloc((size_t)(3 * height * width));
    for (int i = 0; i < 3 * height * width; i++)
        image[i] = (uint8_t)(128 + 127 * uniform());
    float *out = malloc(sizeof(float) * (size_t)(3 * window * window));
    int bad = tile_gather(image, height, width, 3 * width, 3, 1, top, left, window, window, scale, bias, order, 3, padding,
                          out, threads) != TILE_OK;
    for (int c = 0; c < 3 && !bad; c++)
        for (int y = 0; y < window && !bad; y++)
            for (int x = 0; x < window && !bad; x++) {
                int yy = top + y, xx = left + x, outside = yy >= height || xx >= width;
                if (padding == TILE_PAD_EDGE)
                    yy = yy < height ? yy : height - 1, xx = xx < width ? xx : width - 1;
                while (padding == TILE_PAD_REFLECT && (yy < 0 || yy >= height))
                    yy = height == 1 ? 0 : yy < 0 ? -yy : 2 * (height - 1) - yy;
                while (padding == TILE_PAD_REFLECT && (xx < 0 || xx >= width))
                    xx = width == 1 ? 0 : xx < 0 ? -xx : 2 * (width - 1) - xx;
                double expected = 0;
                if (!outside || padding != TILE_PAD_ZERO)
                    expected = image[3 * (yy * width + xx) + order[c]] * (double)scale[c] + bias[c];
                bad = fabs(out[(c * window + y) * window + x] - expected) > 1e-4;
            }
    free(image), free(out);
    printf("gather %dx%d window %d at %d %d padding %d: %s\n", height, width, window, top, left, padding,
           bad ? "FAILED" : "ok");
    return bad;
}

/* Every float from 1e-6 to 1e3, 128 apart, then what must not reach the conversion to an integer. */
static int check_exp(void)
{
    double worst = 0;
    for (tile_word word = {1e-6f}; word.value < 1e3f; word.bits += 128) {
        double expected = exp(-(double)(word.value < 87 ? word.value : 87.0f));
        double unit = ldexp(1, ilogb(expected) - 23), error = fabs(tile_exp_minus(word.value) - expected) / unit;
        worst = error > worst ? error : worst;
    }
    tile_word nan = {.bits = 0x7fc00000u}, infinite = {.bits = 0x7f800000u};
    float least = tile_exp_minus(87.0f);
    int bad = worst > 1.4 || tile_exp_minus(0.0f) != 1.0f || least <= 0 || tile_exp_minus(nan.value) != least ||
              tile_exp_minus(infinite.value) != least || tile_exp_minus(-1.0f) != least;
    printf("exp: at most %.2f units in the last place: %s\n", worst, bad ? "FAILED" : "ok");
    return bad;
}

/* A power-of-two ratio repeats exactly what the general formula says, inside the edges. */
static int check_phases(void)
{
    int bad = 0;
    for (int ratio = 1; ratio <= TILE_MAX_RATIO; ratio *= 2)
        for (int u = ratio; u < 40 * ratio; u++) {
            int32_t i0, i1, shift;
            float lambda = tile_source(u, 41, 41 * ratio, &i0, &i1);
            float phase = tile_phase_source(u % ratio, ratio, &shift);
            bad |= lambda != phase || i0 != u / ratio + shift || i1 != i0 + 1;
        }
    printf("phases: %s\n", bad ? "FAILED" : "ok");
    return bad;
}

static float *floats(size_t n)
{
    float *made = malloc((n ? n : 1) * sizeof *made); /* exactly as much as is used */
    for (size_t i = 0; i < n; i++)
        made[i] = uniform();
    return made;
}

/* Mean score of class k of a view at a place between its pixels. */
static double score_between(const tile_plan *p, float **logits, const int32_t *tops, const int32_t *lefts, const float *wy,
                            int k, double y, double x)
{
    int y0 = (int)y, x0 = (int)x, y1 = y0 + 1 < p->height ? y0 + 1 : y0, x1 = x0 + 1 < p->width ? x0 + 1 : x0;
    double fy = y - y0, fx = x - x0, weight;
    return (score(p, logits, tops, lefts, wy, wy, k, y0, x0, &weight) * (1 - fx) +
            score(p, logits, tops, lefts, wy, wy, k, y0, x1, &weight) * fx) * (1 - fy) +
           (score(p, logits, tops, lefts, wy, wy, k, y1, x0, &weight) * (1 - fx) +
            score(p, logits, tops, lefts, wy, wy, k, y1, x1, &weight) * fx) * fy;
}

/* `count` views of an image of height x width, each of its own size, every second one mirrored. */
static int check_views(int height, int width, int count, const int (*sizes)[2], int window, int stride, int low, int classes,
                       int weighted, int merge, int threads)
{
    static int32_t tops[4][4096], lefts[4][4096];
    static float *logits[4][4096];
    float *wy = weighted ? floats((size_t)window) : NULL;
    for (int i = 0; wy && i < window; i++)
        wy[i] = 1.2f + 0.5f * wy[i];
    tile_plan plans[4];
    views_view views[4];
    for (int v = 0; v < count; v++) {
        int32_t rows[512], columns[512];
        int ny = starts(sizes[v][0], window, stride, rows), nx = starts(sizes[v][1], window, stride, columns), n = 0;
        for (int i = 0; i < ny; i++)
            for (int j = 0; j < nx; j++, n++) {
                tops[v][n] = rows[i], lefts[v][n] = columns[j];
                logits[v][n] = floats((size_t)(classes * low * low));
                for (int k = 0; k < classes * low * low; k++)
                    logits[v][n][k] *= 4;
            }
        plans[v] = (tile_plan){sizes[v][0], sizes[v][1], window, window, low, low, classes, n, 0, sizes[v][0], 1, 0};
        views[v] = (views_view){sizes[v][0], sizes[v][1], v % 2, 1.0f / (float)count, window, window, low, low, n,
                                (const float *const *)logits[v], NULL, tops[v], lefts[v], wy, wy, low * low, low};
    }
    float threshold = 1 / (1 + expf(-CUT));
    views_plan plan = {height, width, classes, count, 0, height, threads, merge, CUT, threshold};
    size_t size = views_workspace(&plan, views);
    unsigned char *workspace = aligned_alloc(64, (size + 63) / 64 * 64);
    uint8_t *labels = malloc((size_t)(height * width));
    float *confidence = malloc(sizeof(float) * (size_t)(height * width));
    int bad = views_merge(&plan, views, labels, width, confidence, width, workspace) != TILE_OK;
    digest_bytes(labels, (size_t)(height * width));
    digest_bytes(confidence, sizeof(float) * (size_t)(height * width));
    for (int y = 0; y < height && !bad; y++)
        for (int x = 0; x < width && !bad; x++) {
            double merged[256] = {0}, best = -1, second = -1;
            for (int v = 0; v < count; v++) {
                double p[256], sum = 0;
                for (int k = 0; k < classes; k++) {
                    p[k] = exp(score_between(&plans[v], logits[v], tops[v], lefts[v], wy, k, centre(y, sizes[v][0], height),
                                             centre(v % 2 ? width - 1 - x : x, sizes[v][1], width)));
                    sum += p[k];
                }
                sum += classes == 1 ? 1 : 0;
                for (int k = 0; k < classes; k++)
                    merged[k] = merge == VIEWS_MAX ? fmax(merged[k], p[k] / sum) : merged[k] + p[k] / sum / count;
            }
            int winner = 0;
            for (int k = 0; k < classes; k++)
                if (merged[k] > best)
                    second = best, best = merged[k], winner = k;
                else if (merged[k] > second)
                    second = merged[k];
            if (classes == 1) {
                winner = best > threshold;
                second = best - fabs(best - threshold), best = winner ? best : 1 - best;
            }
            int got = labels[y * width + x];
            bad = (got != winner && fabs(merged[classes == 1 ? 0 : winner] - second) > 1e-4) ||
                  fabs(confidence[y * width + x] - best) > 2e-5;
            if (bad)
                printf("pixel %d %d: label %d, expected %d; confidence %g, expected %g\n", y, x, got, winner,
                       confidence[y * width + x], best);
        }
    for (int v = 0; v < count; v++)
        for (int i = 0; i < plans[v].windows; i++)
            free(logits[v][i]);
    free(wy), free(workspace), free(labels), free(confidence);
    printf("views %dx%d, %d of them, window %d stride %d logits %d classes %d%s%s threads %d: %s\n", height, width, count,
           window, stride, low, classes, weighted ? " weighted" : "", merge == VIEWS_MAX ? " max" : "", threads,
           bad ? "FAILED" : "ok");
    return bad;
}

static int check_resize(int height, int width, int out_h, int out_w, int step, int threads)
{
    uint8_t *image = malloc((size_t)(step * height * width)), *out = malloc((size_t)(3 * out_h * out_w));
    for (int i = 0; i < step * height * width; i++)
        image[i] = (uint8_t)(128 + 127 * uniform());
    float *workspace = malloc(sizeof(float) * (size_t)(3 * (threads * width + out_w)));
    int bad = resize_bilinear(image, height, width, step * width, step, 1, out, out_h, out_w, workspace, threads) != TILE_OK;
    digest_bytes(out, (size_t)(3 * out_h * out_w));
    for (int y = 0; y < out_h; y++)
        for (int x = 0; x < out_w; x++)
            for (int c = 0; c < 3; c++) {
                double at_y = centre(y, height, out_h), at_x = centre(x, width, out_w);
                int y0 = (int)at_y, x0 = (int)at_x, y1 = y0 + 1 < height ? y0 + 1 : y0, x1 = x0 + 1 < width ? x0 + 1 : x0;
                double fy = at_y - y0, fx = at_x - x0, expected;
                const uint8_t *p = image + c;
                expected = (p[step * (y0 * width + x0)] * (1 - fx) + p[step * (y0 * width + x1)] * fx) * (1 - fy) +
                           (p[step * (y1 * width + x0)] * (1 - fx) + p[step * (y1 * width + x1)] * fx) * fy;
                bad |= fabs(out[3 * (y * out_w + x) + c] - expected) > 0.501;
            }
    free(image), free(out), free(workspace);
    printf("resize %dx%d to %dx%d: %s\n", height, width, out_h, out_w, bad ? "FAILED" : "ok");
    return bad;
}

/* A decoder's tail: `maps` pairs of sizes. */
static int check_tail(int windows, int height, int width, int inputs, int channels, int classes, int count,
                      const int (*maps)[2], int threads)
{
    size_t pixels = (size_t)(windows * height * width);
    int32_t padded = (classes + 7) / 8 * 8;
    float *direct = floats(pixels * (size_t)inputs), *project = floats((size_t)(inputs * channels));
    float *bias = floats((size_t)channels), *classify = floats((size_t)(channels * padded));
    float *class_bias = floats((size_t)padded), *logits = malloc(pixels * (size_t)classes * sizeof *logits);
    float *resized[TAIL_MAPS] = {NULL};
    tail_launch a = {inputs ? direct : NULL, {NULL}, project, bias, classify, class_bias, logits, {0}, {0}, count, windows,
                     height, width, inputs, channels, classes, padded};
    for (int i = 0; i < count; i++) {
        a.map_h[i] = maps[i][0];
        a.map_w[i] = maps[i][1];
        a.maps[i] = resized[i] = floats((size_t)(windows * maps[i][0] * maps[i][1] * channels));
    }
    float *workspace = malloc(tail_workspace(&a, threads) * sizeof *workspace);
    int bad = tail_run(&a, threads, workspace) != TILE_OK;
    digest_bytes(logits, pixels * (size_t)classes * sizeof *logits);
    double *hidden = malloc((size_t)channels * sizeof *hidden), worst = 0;
    for (int n = 0; n < windows; n++)
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++) {
                for (int c = 0; c < channels; c++) {
                    hidden[c] = bias[c];
                    for (int j = 0; j < inputs; j++)
                        hidden[c] += (double)direct[((n * height + y) * width + x) * inputs + j] * project[j * channels + c];
                    for (int i = 0; i < count; i++) {
                        int h = maps[i][0], w = maps[i][1];
                        double at_y = centre(y, h, height), at_x = centre(x, w, width);
                        int y0 = (int)at_y, x0 = (int)at_x, y1 = y0 + 1 < h ? y0 + 1 : y0, x1 = x0 + 1 < w ? x0 + 1 : x0;
                        const float *map = resized[i] + (size_t)(n * h * w * channels + c);
                        double fy = at_y - y0, fx = at_x - x0;
                        hidden[c] += (map[(y0 * w + x0) * channels] * (1 - fx) + map[(y0 * w + x1) * channels] * fx) * (1 - fy) +
                                     (map[(y1 * w + x0) * channels] * (1 - fx) + map[(y1 * w + x1) * channels] * fx) * fy;
                    }
                }
                for (int k = 0; k < classes; k++) {
                    double expected = class_bias[k];
                    for (int c = 0; c < channels; c++)
                        expected += hidden[c] > 0 ? hidden[c] * classify[c * padded + k] : 0;
                    double off = fabs(logits[((n * classes + k) * height + y) * width + x] - expected);
                    worst = off > worst ? off : worst;
                }
            }
    bad |= worst > 2e-5 || worst != worst;
    printf("tail %dx%d, %d -> %d -> %d, %d map(s): %.1e: %s\n", height, width, inputs, channels, classes, count, worst,
           bad ? "FAILED" : "ok");
    float *held[] = {direct, project, bias, classify, class_bias, logits, workspace};
    for (int i = 0; i < 7; i++)
        free(held[i]);
    for (int i = 0; i < count; i++)
        free(resized[i]);
    free(hidden);
    return bad;
}

typedef struct {
    int depth, threads;
    atomic_int rows, clashes;
    atomic_int busy[TILE_MAX_THREADS];
} pool_case;

/* Each row once; no two threads with one number at once; a task may call the pool itself. */
static int pool_rows(void *arg, int32_t begin, int32_t end, int32_t thread)
{
    pool_case *c = arg;
    if (thread < 0 || thread >= c->threads || atomic_fetch_add(&c->busy[thread], 1) != 0)
        atomic_fetch_add(&c->clashes, 1);
    for (int32_t row = begin; row < end; row++) {
        atomic_fetch_add(&c->rows, 1);
        if (c->depth) {
            pool_case inner = {.threads = 3};
            if (tile_parallel(pool_rows, &inner, 1, 6, 3, 1) != TILE_OK || atomic_load(&inner.rows) != 5)
                atomic_fetch_add(&c->clashes, 1);
            atomic_fetch_add(&c->clashes, atomic_load(&inner.clashes));
        }
    }
    atomic_fetch_sub(&c->busy[thread], 1);
    return end == 100 ? TILE_E_NOT_FINITE : begin == 0 ? TILE_E_UNCOVERED : TILE_OK;
}

static int pool_calls(int threads, int depth)
{
    int failed = 0;
    for (int i = 0; i < 50; i++) {
        pool_case c = {.depth = depth, .threads = threads};
        failed += tile_parallel(pool_rows, &c, 1, 100, threads, 1) != TILE_E_NOT_FINITE;
        failed += atomic_load(&c.rows) != 99 || atomic_load(&c.clashes) != 0;
    }
    pool_case both = {.threads = threads};
    return failed + (tile_parallel(pool_rows, &both, 0, 100, threads, 1) != TILE_E_UNCOVERED);
}

static void *pool_caller(void *number)
{
    return (void *)(intptr_t)pool_calls(2 + (int)(intptr_t)number, (int)(intptr_t)number % 2);
}

static int check_pool(void)
{
    pthread_t callers[4];
    int failed = pool_calls(4, 1);
    for (intptr_t i = 0; i < 4; i++)
        failed += pthread_create(&callers[i], NULL, pool_caller, (void *)i) != 0;
#ifndef SELFTEST_NO_FORK
    for (int i = 0; i < 20; i++) { /* while the others are inside */
        pid_t child = fork();
        if (child == 0)
            _exit(pool_calls(3, 0) != 0);
        int status = -1;
        failed += child < 0 || waitpid(child, &status, 0) != child || status != 0;
    }
#endif
    for (int i = 0; i < 4; i++) {
        void *result = NULL;
        pthread_join(callers[i], &result);
        failed += (int)(intptr_t)result;
    }
    return failed;
}

/* Rows apart, in runs of all lengths, against one after another. */
static int check_counts(int width, int height)
{
    int stride = width + 3, bad = 0;
    uint8_t *labels = malloc((size_t)height * (size_t)stride);
    int64_t counts[256] = {0}, expected[256] = {0};
    for (int y = 0; y < height; y++)
        for (int x = 0; x < stride; x++) {
            labels[y * stride + x] = x / 150 % 3 ? (uint8_t)(x / 300 + y) : (uint8_t)(128 + 127 * uniform());
            expected[labels[y * stride + x]] += x < width;
        }
    labels_count(labels, height, width, stride, counts);
    for (int v = 0; v < 256; v++) {
        bad |= counts[v] != expected[v];
        counts[v] = 0;
    }
    labels_count(labels, 0, width, stride, counts);
    for (int v = 0; v < 256; v++)
        bad |= counts[v] != 0;
    free(labels);
    return bad;
}

int main(void)
{
    int failed = check_exp() + check_phases();
    failed += check_stitch(70, 90, 32, 24, 8, 19, 0, 3);   /* a quarter */
    failed += check_stitch(70, 91, 32, 24, 8, 19, 1, 2);
    failed += check_stitch(17, 1100, 16, 12, 4, 3, 0, 1);  /* more than one chunk */
    failed += check_stitch(17, 1100, 15, 11, 4, 3, 1, 1);
    failed += check_stitch(61, 47, 16, 5, 1, 255, 0, 2);   /* a sixteenth, many overlaps */
    failed += check_stitch(61, 47, 32, 11, 1, 3, 1, 2);    /* a thirty-second, from a single value */
    failed += check_stitch(70, 47, 64, 50, 1, 3, 0, 2);
    failed += check_stitch(40, 50, 17, 13, 17, 5, 0, 2);   /* full resolution */
    failed += check_stitch(40, 50, 17, 13, 17, 5, 1, 2);
    failed += check_stitch(40, 50, 24, 13, 12, 5, 0, 2);   /* a half */
    failed += check_stitch(40, 50, 17, 13, 34, 5, 0, 2);   /* finer than pixels */
    failed += check_stitch(40, 50, 29, 20, 7, 5, 1, 2);    /* no whole ratio */
    failed += check_stitch(5, 70, 32, 24, 8, 4, 0, 8);     /* smaller than the window */
    failed += check_stitch(1, 1, 32, 24, 8, 4, 0, 8);
    failed += check_stitch(40, 40, 3, 2, 1, 1, 0, 2);      /* one class alone */
    failed += check_stitch(40, 1100, 32, 20, 8, 1, 1, 2);
    failed += check_stitch(40, 50, 29, 20, 7, 1, 0, 2);
    for (int padding = 0; padding < 3; padding++) {
        failed += check_gather(40, 50, 16, 7, 33, padding, 2);
        failed += check_gather(5, 3, 16, 0, 0, padding, 2);
        failed += check_gather(1, 20, 16, 0, 4, padding, 1);
        failed += check_gather(1, 1, 16, 0, 0, padding, 4);
    }
    tile_plan plan = {10, 10, 8, 8, 2, 2, 256, 1, 0, 10, 1};
    failed += tile_stitch(&plan, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, 0, NULL) != TILE_E_ARGUMENT;
    const int several[][2] = {{32, 48}, {64, 48}, {90, 110}, {70, 33}}, one[][2] = {{37, 61}}, huge[][2] = {{40, 1300}};
    failed += check_views(50, 70, 4, several, 32, 24, 8, 19, 0, VIEWS_MEAN, 3);
    failed += check_views(50, 70, 3, several, 32, 24, 8, 5, 1, VIEWS_MAX, 2);
    failed += check_views(50, 70, 2, several, 29, 20, 7, 150, 1, VIEWS_MEAN, 2); /* no whole ratio */
    failed += check_views(50, 70, 4, several, 32, 11, 1, 1, 0, VIEWS_MEAN, 2);
    failed += check_views(9, 300, 1, one, 32, 24, 8, 7, 0, VIEWS_MEAN, 2);
    failed += check_views(150, 31, 1, one, 32, 24, 8, 1, 1, VIEWS_MEAN, 2);
    failed += check_views(1, 1, 4, several, 32, 24, 8, 3, 0, VIEWS_MEAN, 8);
    failed += check_views(3, 2, 1, huge, 40, 30, 10, 3, 0, VIEWS_MEAN, 1); /* a view far larger than the image */
    failed += check_resize(20, 30, 35, 45, 3, 2);
    failed += check_resize(20, 30, 7, 9, 4, 3);
    failed += check_resize(1, 1, 5, 3, 3, 1);
    views_plan empty = {10, 10, 256, 1, 0, 10, 1, 0, 0, 0};
    failed += views_merge(&empty, NULL, NULL, 0, NULL, 0, NULL) != TILE_E_ARGUMENT;
    failed += resize_bilinear(NULL, 1, 1, 0, 0, 0, NULL, 0, 1, NULL, 1) != TILE_E_ARGUMENT;
    const int pyramid[][2] = {{8, 32}, {4, 16}, {2, 8}}, odd[][2] = {{5, 65}, {3, 33}, {9, 130}, {1, 1}, {9, 1}};
    failed += check_tail(1, 16, 64, 32, 64, 19, 3, pyramid, 2);
    failed += check_tail(3, 9, 130, 8, 36, 9, 5, odd, 3);
    failed += check_tail(1, 9, 131, 0, 4, 1, 2, odd, 1);
    failed += check_tail(2, 5, 7, 4, 100, 150, 0, NULL, 8);
    failed += check_tail(1, 1, 1, 4, 4, 2, 0, NULL, 8);
    failed += check_counts(1, 1) + check_counts(63, 3) + check_counts(64, 2) + check_counts(1000, 9);
    failed += check_pool();
    printf("digest %016llx\n", (unsigned long long)digest);
    printf("%s: %d failed\n", tile_build_info(), failed);
    return failed;
}
