/* Views of an image, each with windows of its own, become labels: the windows' logits are averaged at the view's pixels,
 * resized to the image's size, and, where there are several views, their probabilities are merged.
 *
 * The order is mmsegmentation's: a class's mean logit is resized bilinearly (half-pixel centres, no antialiasing), then
 * softmax, then the mirrored views are turned back, then their mean, then the largest.  Only the rows of a view that the
 * rows at work need exist.  C11 and pthreads; the caller allocates everything.
 */
#include "tile_views.h"
#include "tile_windows.h"

#include <math.h>

#define VIEWS_SPAN 512            /* columns of a view behind the columns at work */
#define VIEWS_COLUMNS 256         /* of the image that are worked on at once */
#define VIEWS_ROWS 32             /* and rows, fewer where there are many classes: their sums stay in a cache */
#define VIEWS_SUMS (512 * 1024)   /* floats */

/* An image of height x width, read from right to left where mirror is 1.  share: of the mean.  What follows as in
 * tile_windows; weight_x is (window_w), or NULL. */
typedef struct {
    int32_t height, width, mirror;
    float share;
    int32_t window_h, window_w, logits_h, logits_w, windows;
    const float *const *logits;
    const int32_t *first, *tops, *lefts;
    const float *weight_y, *weight_x;
    int64_t class_stride, row_stride;
} views_view;

/* Rows row0..row1 of an image.  cut: the logit, threshold: the probability above which one class alone is itself. */
typedef struct {
    int32_t height, width, classes, views, row0, row1, threads, merge;
    float cut, threshold;
} views_plan;

typedef struct {
    views_plan p;
    const views_view *views;
    tile_windows *windows; /* of each view */
    uint8_t *labels;
    ptrdiff_t labels_stride;
    float *confidence; /* or NULL */
    ptrdiff_t confidence_stride;
    unsigned char *workspace;
    size_t per_thread;
    int32_t columns, rows, across; /* of a unit of work; units side by side */
} views_args;

/* What one thread works with. */
typedef struct {
    tile_part *parts;
    int32_t *left, *right, *label;                /* (columns): where a column of the image samples the view's rows */
    float *along, *best, *sum;                    /* (columns) */
    float *weight, *between, *v, *row[2];         /* (SPAN), v with its edges; row: (classes, SPAN) */
    float *scores, *merged;                       /* (classes, columns); (rows, classes, columns) */
} views_scratch;

static int32_t views_columns(const views_plan *p, const views_view *views)
{
    int32_t columns = VIEWS_COLUMNS;
    for (int32_t i = 0; i < p->views; i++) { /* n columns of the image span at most n * ratio + 2 of the view */
        int64_t fit = (int64_t)(VIEWS_SPAN - TILE_MAX_RATIO - 4) * p->width / views[i].width;
        columns = fit < columns ? (fit < 1 ? 1 : (int32_t)fit) : columns;
    }
    return columns;
}

static int32_t views_rows(const views_plan *p, int32_t columns)
{
    int32_t rows = p->views == 1 ? VIEWS_ROWS : VIEWS_SUMS / (p->classes * columns);
    return rows < 1 ? 1 : rows > VIEWS_ROWS ? VIEWS_ROWS : rows;
}

/* Lays the scratch out from `at` on; only counts where s is NULL.  Returns its bytes. */
static size_t views_layout(const views_plan *p, const views_view *views, unsigned char *at, views_scratch *s)
{
    int32_t windows = 1, logits_w = 1, columns = views_columns(p, views);
    for (int32_t i = 0; i < p->views; i++) {
        windows = views[i].windows > windows ? views[i].windows : windows;
        logits_w = views[i].logits_w > logits_w ? views[i].logits_w : logits_w;
    }
    size_t classes = (size_t)p->classes, n = (size_t)columns, sizes[] = {
        (size_t)windows * sizeof(tile_part), n * 4, n * 4, n * 4, n * 4, n * 4, n * 4, VIEWS_SPAN * 4, VIEWS_SPAN * 4,
        ((size_t)logits_w + 2 * TILE_EDGE) * 4, classes * VIEWS_SPAN * 4, classes * VIEWS_SPAN * 4, classes * n * 4,
        p->views == 1 ? 0 : classes * n * (size_t)views_rows(p, columns) * 4,
    };
    void *places[sizeof sizes / sizeof *sizes];
    size_t total = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        places[i] = at ? at + total : NULL;
        total += tile_align(sizes[i]);
    }
    if (s)
        *s = (views_scratch){places[0], places[1], places[2], places[3], places[4], places[5], places[6], places[7],
                             places[8], (float *)places[9] + TILE_EDGE, {places[10], places[11]}, places[12],
                             places[13]};
    return total;
}

static size_t views_tables(const views_plan *p, const views_view *views)
{
    size_t bytes = tile_align((size_t)p->views * sizeof(tile_windows));
    for (int32_t i = 0; i < p->views; i++)
        bytes += tile_columns_bytes(views[i].window_w);
    return bytes;
}

/* Bytes of workspace that views_merge needs. */
size_t views_workspace(const views_plan *p, const views_view *views)
{
    return views_tables(p, views) + (size_t)p->threads * views_layout(p, views, NULL, NULL);
}

/* Where columns c0..c0+n of the image sample the view: left and right become columns after *first, in the order of the
 * accumulators of a chunk of *span.  Columns of a mirrored view are counted from its other end. */
static void views_place(const views_plan *p, const views_view *view, const tile_windows *w, int32_t c0, int32_t n,
                        views_scratch *s, int32_t *first, int32_t *span)
{
    int32_t low = INT32_MAX, high = 0;
    for (int32_t x = 0; x < n; x++) {
        int32_t column = view->mirror ? p->width - 1 - (c0 + x) : c0 + x;
        s->along[x] = tile_source(column, view->width, p->width, &s->left[x], &s->right[x]);
        low = s->left[x] < low ? s->left[x] : low;
        high = s->right[x] > high ? s->right[x] : high;
    }
    *first = low;
    *span = high - low + 1;
    int32_t stride = (*span + w->ratio - 1) / w->ratio, mask = w->ratio - 1;
    for (int32_t x = 0; x < n; x++) {
        int32_t left = s->left[x] - low, right = s->right[x] - low;
        s->left[x] = (left & mask) * stride + (left >> w->ratio_log2);
        s->right[x] = (right & mask) * stride + (right >> w->ratio_log2);
    }
}

/* The mean logits of every class in row y of a view, columns first..first+span, by phase, into row. */
TILE_CLONES
static int views_row(const views_args *a, const tile_windows *w, int32_t y, int32_t first, int32_t span,
                     views_scratch *s, float *row, uint32_t *bad)
{
    int32_t count = tile_parts(w, y, first, span, s->parts), stride = (span + w->ratio - 1) / w->ratio, shared = 0;
    if (!tile_weights(w, s->parts, count, span, stride, s->v, s->weight))
        return TILE_E_UNCOVERED;
    for (int32_t x = 0; x < stride * w->ratio; x++) {
        shared |= s->weight[x] != 1.0f;
        s->weight[x] = 1.0f / s->weight[x];
    }
    uint32_t found = 0;
    for (int32_t k = 0; k < a->p.classes; k++) {
        float *sums = row + (size_t)k * VIEWS_SPAN;
        found |= tile_sum(w, s->parts, count, k, stride, s->v, sums);
        for (int32_t x = 0; shared && x < stride * w->ratio; x++)
            sums[x] *= s->weight[x];
    }
    *bad |= found;
    return TILE_OK;
}

/* scores[x]: one class, resized from two rows of a view (below is not read where lambda is 0) to n columns. */
TILE_FN void views_resize(const float *above, const float *below, float lambda, int32_t all, int32_t n,
                          const views_scratch *s, float *TILE_RESTRICT scores)
{
    const float *from = above, *TILE_RESTRICT along = s->along;
    const int32_t *TILE_RESTRICT left = s->left, *TILE_RESTRICT right = s->right;
    if (lambda != 0.0f) {
        float *TILE_RESTRICT between = s->between;
        for (int32_t x = 0; x < all; x++)
            between[x] = tile_lerp(above[x], below[x], 1.0f - lambda, lambda);
        from = between;
    }
    for (int32_t x = 0; x < n; x++)
        scores[x] = tile_lerp(from[left[x]], from[right[x]], 1.0f - along[x], along[x]);
}

/* merged (classes, n) takes the probabilities that the scores of n columns stand for. */
TILE_FN void views_softmax(const views_plan *p, float share, int32_t n, views_scratch *s, float *merged)
{
    float *TILE_RESTRICT sum = s->sum;
    if (p->classes == 1)
        for (int32_t x = 0; x < n; x++)
            sum[x] = tile_probability(s->scores[x], 1);
    for (int32_t x = 0; p->classes > 1 && x < n; x++)
        sum[x] = 0.0f;
    for (int32_t k = 0; p->classes > 1 && k < p->classes; k++) {
        float *TILE_RESTRICT row = s->scores + (size_t)k * (size_t)n;
        for (int32_t x = 0; x < n; x++) {
            row[x] = tile_exp_minus(s->best[x] - row[x]);
            sum[x] += row[x];
        }
    }
    for (int32_t x = 0; p->classes > 1 && x < n; x++)
        sum[x] = 1.0f / sum[x];
    for (int32_t x = 0; p->merge == VIEWS_MEAN && x < n; x++)
        sum[x] *= share;
    for (int32_t k = 0; k < p->classes; k++) {
        const float *TILE_RESTRICT row = s->scores + (size_t)k * (size_t)n;
        float *TILE_RESTRICT into = merged + (size_t)k * (size_t)n;
        if (p->classes == 1)
            for (int32_t x = 0; x < n; x++)
                into[x] = p->merge == VIEWS_MEAN ? into[x] + sum[x] : sum[x] > into[x] ? sum[x] : into[x];
        else if (p->merge == VIEWS_MEAN)
            for (int32_t x = 0; x < n; x++)
                into[x] += row[x] * sum[x];
        else
            for (int32_t x = 0; x < n; x++) {
                float value = row[x] * sum[x];
                into[x] = value > into[x] ? value : into[x];
            }
    }
}

TILE_FN void views_write(const views_args *a, int32_t y, int32_t c0, int32_t n, const views_scratch *s)
{
    uint8_t *labels = a->labels + (y - a->p.row0) * a->labels_stride + c0;
    for (int32_t x = 0; x < n; x++)
        labels[x] = (uint8_t)s->label[x];
    if (a->confidence) {
        float *confidence = a->confidence + (y - a->p.row0) * a->confidence_stride + c0;
        for (int32_t x = 0; x < n; x++)
            confidence[x] = s->best[x];
    }
}

TILE_FN void views_clear(int32_t n, views_scratch *s)
{
    for (int32_t x = 0; x < n; x++) {
        s->best[x] = -INFINITY;
        s->label[x] = 0;
    }
}

/* Labels of one row where there is one view: of its logits, which softmax would only make equal to each other. */
TILE_FN void views_alone(const views_args *a, int32_t y, int32_t c0, int32_t n, views_scratch *s)
{
    if (a->p.classes == 1)
        for (int32_t x = 0; x < n; x++) {
            s->label[x] = tile_above(s->scores[x], a->p.cut);
            s->best[x] = tile_probability(s->scores[x], s->label[x]);
        }
    else if (a->confidence) {
        for (int32_t x = 0; x < n; x++)
            s->weight[x] = 1.0f;
        tile_row_confidence(s->scores, (size_t)n, a->p.classes, n, s->best, s->weight, s->sum);
    }
    views_write(a, y, c0, n, s);
}

/* Rows y0..y1 of columns c0..c0+n in one view: labels, or, where there are several, its part in merged. */
TILE_CLONES
static int views_unit(const views_args *a, int32_t i, int32_t y0, int32_t y1, int32_t c0, int32_t n, views_scratch *s,
                      uint32_t *bad)
{
    const views_view *view = &a->views[i];
    const tile_windows *w = &a->windows[i];
    int32_t first, span, held[2] = {-1, -1};
    views_place(&a->p, view, w, c0, n, s, &first, &span);
    int32_t all = (span + w->ratio - 1) / w->ratio * w->ratio;
    for (int32_t y = y0; y < y1; y++) {
        int32_t need[2];
        float lambda = tile_source(y, view->height, a->p.height, &need[0], &need[1]);
        if (held[0] != need[0] && held[1] == need[0]) { /* rows go down: one that was below is above now */
            float *row = s->row[0];
            s->row[0] = s->row[1], s->row[1] = row;
            int32_t was = held[0];
            held[0] = held[1], held[1] = was;
        }
        for (int32_t j = 0; j < (lambda != 0.0f ? 2 : 1); j++)
            if (held[j] != need[j]) {
                int status = views_row(a, w, need[j], first, span, s, s->row[j], bad);
                if (status != TILE_OK)
                    return status;
                held[j] = need[j];
            }
        views_clear(n, s);
        for (int32_t k = 0; k < a->p.classes; k++) {
            size_t at = (size_t)k * VIEWS_SPAN;
            float *scores = s->scores + (size_t)k * (size_t)n;
            views_resize(s->row[0] + at, s->row[1] + at, lambda, all, n, s, scores);
            tile_row_argmax(scores, k, n, s->best, s->label);
        }
        for (int32_t x = 0; x < n; x++)
            *bad |= tile_not_finite(s->best[x]);
        if (a->p.views == 1)
            views_alone(a, y, c0, n, s);
        else
            views_softmax(&a->p, view->share, n, s,
                          s->merged + (size_t)(y - y0) * (size_t)a->p.classes * (size_t)n);
    }
    return TILE_OK;
}

/* Labels of rows y0..y1 from what all views have added up to. */
TILE_CLONES
static void views_decide(const views_args *a, int32_t y0, int32_t y1, int32_t c0, int32_t n, views_scratch *s)
{
    for (int32_t y = y0; y < y1; y++) {
        const float *merged = s->merged + (size_t)(y - y0) * (size_t)a->p.classes * (size_t)n;
        views_clear(n, s);
        for (int32_t k = 0; k < a->p.classes; k++)
            tile_row_argmax(merged + (size_t)k * (size_t)n, k, n, s->best, s->label);
        if (a->p.classes == 1)
            for (int32_t x = 0; x < n; x++) {
                s->label[x] = merged[x] > a->p.threshold;
                s->best[x] = s->label[x] ? merged[x] : 1.0f - merged[x];
            }
        views_write(a, y, c0, n, s);
    }
}

static int views_units(void *arg, int32_t begin, int32_t end, int32_t thread)
{
    const views_args *a = arg;
    views_scratch s;
    views_layout(&a->p, a->views, a->workspace + (size_t)thread * a->per_thread, &s);
    uint32_t bad = 0;
    for (int32_t unit = begin; unit < end; unit++) {
        int32_t y0 = a->p.row0 + unit / a->across * a->rows, c0 = unit % a->across * a->columns;
        int32_t y1 = y0 + a->rows < a->p.row1 ? y0 + a->rows : a->p.row1;
        int32_t n = c0 + a->columns < a->p.width ? a->columns : a->p.width - c0;
        if (a->p.views > 1)
            for (size_t i = 0; i < (size_t)a->p.classes * (size_t)a->rows * (size_t)n; i++)
                s.merged[i] = 0.0f;
        for (int32_t i = 0; i < a->p.views; i++) {
            int status = views_unit(a, i, y0, y1, c0, n, &s, &bad);
            if (status != TILE_OK)
                return status;
        }
        if (a->p.views > 1)
            views_decide(a, y0, y1, c0, n, &s);
    }
    return bad ? TILE_E_NOT_FINITE : TILE_OK;
}

/* Labels of rows row0..row1 of an image.  labels: (row1 - row0, width) uint8.  confidence: the same shape in float32, or
 * NULL: the merged probability of the label, of one class alone that or one minus it.
 * A view's windows must cover the rows that it is sampled at, and hold the logits for them.
 * workspace: views_workspace() bytes, aligned to 64. */
int views_merge(const views_plan *plan, const views_view *views, uint8_t *labels, ptrdiff_t labels_stride,
                float *confidence, ptrdiff_t confidence_stride, unsigned char *workspace)
{
    const views_plan p = *plan;
    if (p.height < 1 || p.width < 1 || p.classes < 1 || p.classes > 255 || p.views < 1 || p.row0 < 0 ||
        p.row1 > p.height || p.row0 >= p.row1 || p.threads < 1 || p.threads > TILE_MAX_THREADS ||
        (p.merge != VIEWS_MEAN && p.merge != VIEWS_MAX))
        return TILE_E_ARGUMENT;
    tile_windows *windows = (tile_windows *)(void *)workspace;
    unsigned char *tables = workspace + tile_align((size_t)p.views * sizeof(tile_windows));
    for (int32_t i = 0; i < p.views; i++) {
        const views_view *v = &views[i];
        if (v->height < 1 || v->width < 1 || v->window_h < 1 || v->window_w < 1 || v->logits_h < 1 ||
            v->logits_w < 1 || v->windows < 1 || !v->weight_y != !v->weight_x)
            return TILE_E_ARGUMENT;
        for (int32_t j = 0; j < v->windows; j++)
            if (v->tops[j] < 0 || v->lefts[j] < 0 || v->tops[j] > INT32_MAX - v->window_h ||
                v->lefts[j] > INT32_MAX - v->window_w)
                return TILE_E_ARGUMENT;
        windows[i] = (tile_windows){
            .window_h = v->window_h, .window_w = v->window_w, .logits_h = v->logits_h, .logits_w = v->logits_w,
            .windows = v->windows, .logits = v->logits, .first = v->first, .class_stride = v->class_stride,
            .row_stride = v->row_stride, .tops = v->tops, .lefts = v->lefts, .weight_y = v->weight_y};
        tile_windows_open(&windows[i], v->weight_x, tables);
        tables += tile_columns_bytes(v->window_w);
    }
    int32_t columns = views_columns(&p, views), rows = views_rows(&p, columns), across = (p.width - 1) / columns + 1;
    int64_t units = (int64_t)across * ((p.row1 - p.row0 - 1) / rows + 1);
    if (units > INT32_MAX)
        return TILE_E_ARGUMENT;
    views_args a = {p, views, windows, labels, labels_stride, confidence, confidence_stride, tables,
                    views_layout(&p, views, NULL, NULL), columns, rows, across};
    return tile_parallel(views_units, &a, 0, (int32_t)units, p.threads,
                         2 * (int64_t)columns * rows * p.classes * p.views);
}
