/* stitch on a GPU: a thread owns a patch of the image, 4 columns wide, for all classes.
 *
 * For every class it adds up what each covering window says about its pixels, and keeps the best.  Where a window lies
 * is computed.  A patch of 4 x 4 pixels needs only 2 x 2 to 3 x 3 logits of a window and class at ratios of 4 and more,
 * so that it reads 9/16 or less of a value a pixel, and interpolates each column of them once for 4 columns of pixels.
 *
 * What lies where in a window (`row`, `column`) is kept in registers as long as it does not change from class to
 * class: that is, where one window covers the patch along that axis.
 *
 * Pixels of the patch that a window does not cover take weights of zero, which change no bit of finite sums: those
 * start at +0, and x + 0 = x. */
#ifndef EDGESEG_TILE_STITCH_CUH
#define EDGESEG_TILE_STITCH_CUH

#include "tile_confidence.h"
#include "tile_interpolate.cuh"

/* A patch at (y, x) and the windows that touch it. */
template <typename T, typename WAY> struct tile_patch {
    enum { HEIGHT = WAY::HEIGHT };
    int32_t x, y;
    tile_span rows, columns;
    int32_t row, column;  /* that `way` is set to */
    bool single;          /* one window touches the patch */
    size_t window, first; /* elements of a window's logits, and of those before the first window in a row of them */
    WAY way;

    __device__ __forceinline__ tile_patch(const tile_stitch_launch &a, int32_t y_, int32_t x_)
        : x(x_), y(y_), rows(tile_touching(y_, HEIGHT, a.stride_h, a.window_h, a.height, a.rows)),
          columns(tile_touching(x_, 4, a.stride_w, a.window_w, a.width, a.columns)), row(-1), column(-1)
    {
        rows.first = tile_max(rows.first, a.held0);
        rows.last = tile_min(rows.last, a.held1 - 1);
        single = rows.first == rows.last && columns.first == columns.last;
        window = (size_t)a.classes * (size_t)a.logits_h * (size_t)a.logits_w;
        first = (size_t)columns.first * window;
    }

    __device__ __forceinline__ void clear(float (&sums)[HEIGHT][4]) const
    {
#pragma unroll
        for (int i = 0; i < 4 * HEIGHT; i++)
            sums[i / 4][i % 4] = 0.0f;
    }

    __device__ __forceinline__ bool touched() const { return rows.first <= rows.last; }

    __device__ __forceinline__ void set(const tile_stitch_launch &a, int32_t r, int32_t c)
    {
        if (r != row) {
            row = r;
            TILE_KEEP_INT(row); /* or else half of what follows is computed anew for every class */
            way.row(a, row, y);
        }
        if (c != column) {
            column = c;
            TILE_KEEP_INT(column);
            way.column(a, column, x);
        }
    }

    /* sums of a class, at least one window touching the patch.  offset: of its logits in a window. */
    template <int FIRST>
    __device__ __forceinline__ void scores(const tile_stitch_launch &a, size_t offset, float (&sums)[HEIGHT][4],
                                           float &watch)
    {
        set(a, rows.first, columns.first);
        const T *p = way.row_logits + (first + offset);
        TILE_KEEP(p);
        way.template add<FIRST>(p, sums, watch);
        if (single)
            return;
#pragma unroll 1
        for (int32_t r = rows.first; r <= rows.last; r++) {
            size_t at = first + offset;
#pragma unroll 1
            for (int32_t c = columns.first; c <= columns.last; c++, at += window) {
                if (r == rows.first && c == columns.first)
                    continue;
                set(a, r, c);
                const T *q = way.row_logits + at;
                TILE_KEEP(q);
                way.template add<TILE_ADD>(q, sums, watch);
            }
        }
    }

    /* sums of the windows' weights. */
    __device__ __forceinline__ void weights(const tile_stitch_launch &a, float (&sums)[HEIGHT][4])
    {
        clear(sums);
        for (int32_t r = rows.first; r <= rows.last; r++)
            for (int32_t c = columns.first; c <= columns.last; c++) {
                set(a, r, c);
                way.add_weight(sums);
            }
    }

    /* Rows that are asked for and lie in no held window. */
    __device__ __forceinline__ bool uncovered(const tile_stitch_launch &a) const
    {
        bool found = false;
#pragma unroll
        for (int i = 0; i < HEIGHT; i++) {
            bool covered = y + i < a.row0 || y + i >= a.row1;
            for (int32_t r = rows.first; r <= rows.last; r++) {
                int32_t v = y + i - tile_place(r, a.stride_h, a.window_h, a.height);
                covered = covered || (v >= 0 && v < a.window_h);
            }
            found = found || !covered;
        }
        return found;
    }
};

template <int HEIGHT>
TILE_DEVICE void tile_write_labels(const tile_stitch_launch &a, int32_t y, int32_t x, const int32_t (&label)[HEIGHT][4])
{
#pragma unroll
    for (int i = 0; i < HEIGHT; i++) {
        if (y + i < a.row0 || y + i >= a.row1)
            continue;
        uint8_t *p = a.labels + (y + i - a.row0) * a.labels_stride + x;
        if (x + 4 <= a.width && tile_aligned(p, 4))
            *reinterpret_cast<uchar4 *>(p) = make_uchar4((uint8_t)label[i][0], (uint8_t)label[i][1],
                                                         (uint8_t)label[i][2], (uint8_t)label[i][3]);
        else
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (x + j < a.width)
                    p[j] = (uint8_t)label[i][j];
    }
}

template <int HEIGHT>
TILE_DEVICE void tile_write_floats(const tile_stitch_launch &a, float *to, int32_t y, int32_t x,
                                   const float (&values)[HEIGHT][4])
{
#pragma unroll
    for (int i = 0; i < HEIGHT; i++) {
        if (y + i < a.row0 || y + i >= a.row1)
            continue;
        float *p = to + (y + i - a.row0) * a.confidence_stride + x;
        if (x + 4 <= a.width && tile_aligned(p, 16))
            tile_store4(p, values[i]);
        else
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (x + j < a.width)
                    p[j] = values[i][j];
    }
}

template <typename T, typename WAY, bool CONFIDENCE>
TILE_DEVICE void tile_stitch_patch(const tile_stitch_launch &a, int32_t y, int32_t x)
{
    enum { HEIGHT = WAY::HEIGHT };
    tile_patch<T, WAY> patch(a, y, x);
    if (!patch.touched()) {
        atomicOr(a.status, TILE_STATUS_UNCOVERED);
        return;
    }
    size_t offset = 0, plane = (size_t)a.logits_h * (size_t)a.logits_w;
    tile_word lowest;
    lowest.bits = 0xff800000u; /* -infinity */
    float best[HEIGHT][4], sums[HEIGHT][4], watch = 0.0f;
    int32_t label[HEIGHT][4];
#pragma unroll
    for (int i = 0; i < 4 * HEIGHT; i++) {
        best[i / 4][i % 4] = lowest.value;
        label[i / 4][i % 4] = 0;
    }
#pragma unroll 1
    for (int32_t k = 0; k < a.classes; k++, offset += plane) {
        patch.template scores<CONFIDENCE ? TILE_SET : TILE_SET_LABELS>(a, offset, sums, watch);
#pragma unroll
        for (int i = 0; i < 4 * HEIGHT; i++) {
            bool wins = sums[i / 4][i % 4] > best[i / 4][i % 4]; /* strictly: the lowest class index wins a tie */
            best[i / 4][i % 4] = wins ? sums[i / 4][i % 4] : best[i / 4][i % 4];
            label[i / 4][i % 4] = wins ? k : label[i / 4][i % 4];
        }
    }
    tile_write_labels<HEIGHT>(a, y, x, label);
    uint32_t bad = tile_not_finite(watch);
#pragma unroll
    for (int i = 0; i < 4 * HEIGHT; i++) /* finite logits may have a sum that is not */
        if (y + i / 4 >= a.row0 && y + i / 4 < a.row1)
            bad |= tile_not_finite(best[i / 4][i % 4]);
    int32_t status = (bad ? TILE_STATUS_NOT_FINITE : 0) | (patch.uncovered(a) ? TILE_STATUS_UNCOVERED : 0);
    if (status != 0)
        atomicOr(a.status, status);
    if (CONFIDENCE) {
        float weight[HEIGHT][4], sum[HEIGHT][4]; /* as in tile_row_confidence, a pixel at a time */
        patch.weights(a, weight);
        patch.clear(sum);
        offset = 0;
#pragma unroll
        for (int i = 0; i < 4 * HEIGHT; i++)
            weight[i / 4][i % 4] = 1.0f / weight[i / 4][i % 4];
#pragma unroll 1
        for (int32_t k = 0; k < a.classes; k++, offset += plane) { /* once more: keeping all sums takes K x 64 bytes */
            patch.template scores<TILE_SET>(a, offset, sums, watch);
#pragma unroll
            for (int i = 0; i < 4 * HEIGHT; i++)
                sum[i / 4][i % 4] +=
                    tile_exp_minus((best[i / 4][i % 4] - sums[i / 4][i % 4]) * weight[i / 4][i % 4]);
        }
#pragma unroll
        for (int i = 0; i < 4 * HEIGHT; i++)
            sum[i / 4][i % 4] = 1.0f / sum[i / 4][i % 4];
        tile_write_floats<HEIGHT>(a, a.confidence, y, x, sum);
    }
}

/* One class alone: as tile_row_threshold and tile_row_probability, a pixel at a time. */
template <typename T, typename WAY>
TILE_DEVICE void tile_threshold_patch(const tile_stitch_launch &a, int32_t y, int32_t x)
{
    enum { HEIGHT = WAY::HEIGHT };
    tile_patch<T, WAY> patch(a, y, x);
    if (!patch.touched()) {
        atomicOr(a.status, TILE_STATUS_UNCOVERED);
        return;
    }
    float mean[HEIGHT][4], weight[HEIGHT][4], watch = 0.0f;
    int32_t label[HEIGHT][4];
    patch.weights(a, weight);
    patch.template scores<TILE_SET>(a, 0, mean, watch);
    uint32_t bad = tile_not_finite(watch);
#pragma unroll
    for (int i = 0; i < 4 * HEIGHT; i++) {
        if (y + i / 4 >= a.row0 && y + i / 4 < a.row1)
            bad |= tile_not_finite(mean[i / 4][i % 4]);
        mean[i / 4][i % 4] = mean[i / 4][i % 4] / weight[i / 4][i % 4];
        label[i / 4][i % 4] = tile_above(mean[i / 4][i % 4], a.cut);
    }
    tile_write_labels<HEIGHT>(a, y, x, label);
    int32_t status = (bad ? TILE_STATUS_NOT_FINITE : 0) | (patch.uncovered(a) ? TILE_STATUS_UNCOVERED : 0);
    if (status != 0)
        atomicOr(a.status, status);
    if (a.confidence == nullptr)
        return;
#pragma unroll
    for (int i = 0; i < 4 * HEIGHT; i++)
        mean[i / 4][i % 4] = tile_probability(mean[i / 4][i % 4], label[i / 4][i % 4]);
    tile_write_floats<HEIGHT>(a, a.confidence, y, x, mean);
}

/* Confidences that were stitched or merged, as bytes: a thread has one. */
TILE_DEVICE void tile_confidence(const tile_confidence_launch &a)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.count)
        a.out[i] = tile_confidence_byte(__ldg(a.confidence + i));
}

/* What views are merged from: the mean logits of TILE_MEANS_CLASSES classes, (classes, rows, width) at confidence. */
template <typename T, typename WAY> TILE_DEVICE void tile_means_patch(const tile_stitch_launch &a, int32_t y, int32_t x)
{
    enum { HEIGHT = WAY::HEIGHT };
    tile_patch<T, WAY> patch(a, y, x);
    if (!patch.touched()) {
        atomicOr(a.status, TILE_STATUS_UNCOVERED);
        return;
    }
    float sums[HEIGHT][4], weight[HEIGHT][4], watch = 0.0f;
    patch.weights(a, weight);
#pragma unroll
    for (int i = 0; i < 4 * HEIGHT; i++)
        weight[i / 4][i % 4] = 1.0f / weight[i / 4][i % 4];
    int32_t k = (int32_t)blockIdx.z * TILE_MEANS_CLASSES, end = tile_min(k + TILE_MEANS_CLASSES, a.classes);
    size_t plane = (size_t)a.logits_h * (size_t)a.logits_w, offset = (size_t)k * plane;
    size_t area = (size_t)(a.row1 - a.row0) * (size_t)a.confidence_stride;
    float *to = a.confidence + (size_t)k * area;
#pragma unroll 1
    for (; k < end; k++, offset += plane, to += area) {
        patch.template scores<TILE_SET>(a, offset, sums, watch);
#pragma unroll
        for (int i = 0; i < 4 * HEIGHT; i++)
            sums[i / 4][i % 4] *= weight[i / 4][i % 4];
        tile_write_floats<HEIGHT>(a, to, y, x, sums);
    }
    int32_t status = (tile_not_finite(watch) ? TILE_STATUS_NOT_FINITE : 0) | (patch.uncovered(a) ? TILE_STATUS_UNCOVERED : 0);
    if (status != 0)
        atomicOr(a.status, status);
}

enum tile_kind { TILE_LABELS, TILE_CONFIDENCE, TILE_THRESHOLD, TILE_MEANS };

/* Patches start at multiples of their height, wherever row0 lies. */
template <typename T, typename WAY, int KIND> TILE_DEVICE void tile_stitch(const tile_stitch_launch &a)
{
    int32_t x = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x) * 4, step = (int32_t)(gridDim.y * blockDim.y);
    if (x >= a.width)
        return;
    int32_t first = a.row0 / WAY::HEIGHT + (int32_t)(blockIdx.y * blockDim.y + threadIdx.y);
    for (int32_t i = first; i * WAY::HEIGHT < a.row1; i += step)
        if (KIND == TILE_MEANS)
            tile_means_patch<T, WAY>(a, i * WAY::HEIGHT, x);
        else if (KIND == TILE_THRESHOLD)
            tile_threshold_patch<T, WAY>(a, i * WAY::HEIGHT, x);
        else
            tile_stitch_patch<T, WAY, KIND == TILE_CONFIDENCE>(a, i * WAY::HEIGHT, x);
}

#endif
