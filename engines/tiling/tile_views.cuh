/* Views on a GPU: an image at another size, and what the mean logits of a view add to the labels; the bits of resize.c
 * and of views.c.
 *
 * A thread has one pixel of the image.  A view's mean logits are read three times, the largest first, so that no thread
 * holds a value for each class; threads side by side read the same ones, which a cache has then. */
#ifndef EDGESEG_TILE_VIEWS_CUH
#define EDGESEG_TILE_VIEWS_CUH

#include "tile_device.cuh"
#include "tile_views.h"

TILE_DEVICE void tile_resize(const tile_resize_launch &a)
{
    int32_t x = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x), step = (int32_t)(gridDim.y * blockDim.y), x0, x1;
    if (x >= a.out_w)
        return;
    float along = tile_source(x, a.width, a.out_w, &x0, &x1);
    for (int32_t y = (int32_t)(blockIdx.y * blockDim.y + threadIdx.y); y < a.out_h; y += step) {
        int32_t y0, y1;
        float down = tile_source(y, a.height, a.out_h, &y0, &y1);
        const uint8_t *above = a.image + y0 * a.stride_y, *below = a.image + y1 * a.stride_y;
        uint8_t *out = a.out + ((size_t)y * (size_t)a.out_w + (size_t)x) * (size_t)a.channels;
        for (int32_t c = 0; c < a.channels; c++) {
            int64_t at0 = x0 * a.stride_x + c * a.stride_c, at1 = x1 * a.stride_x + c * a.stride_c;
            float left = tile_lerp((float)above[at0], (float)below[at0], 1.0f - down, down);
            float right = tile_lerp((float)above[at1], (float)below[at1], 1.0f - down, down);
            out[c] = (uint8_t)(int32_t)(tile_lerp(left, right, 1.0f - along, along) + 0.5f);
        }
    }
}

/* Where a pixel of the image samples the mean logits of a view. */
struct tile_sample {
    int32_t above, below; /* offsets of the rows */
    int32_t left, right;
    float down, along;

    __device__ __forceinline__ tile_sample(const tile_views_launch &a, int32_t y, int32_t x)
    {
        int32_t column = a.mirror ? a.width - 1 - x : x;
        down = tile_source(y, a.view_h, a.height, &above, &below);
        along = tile_source(column, a.view_w, a.width, &left, &right);
        above = (above - a.first_row) * a.view_w;
        below = (below - a.first_row) * a.view_w;
    }

    __device__ __forceinline__ float score(const float *p) const
    {
        float l = tile_load(p + (above + left)), r = tile_load(p + (above + right));
        if (down != 0.0f) {
            l = tile_lerp(l, tile_load(p + (below + left)), 1.0f - down, down);
            r = tile_lerp(r, tile_load(p + (below + right)), 1.0f - down, down);
        }
        return tile_lerp(l, r, 1.0f - along, along);
    }
};

/* The largest of some values, and which it is: strictly, so that the lowest class wins a tie. */
struct tile_winner {
    float best;
    int32_t label;

    __device__ __forceinline__ tile_winner() : label(0)
    {
        tile_word lowest;
        lowest.bits = 0xff800000u; /* -infinity */
        best = lowest.value;
    }

    __device__ __forceinline__ void take(float value, int32_t k)
    {
        bool wins = value > best;
        best = wins ? value : best;
        label = wins ? k : label;
    }
};

TILE_DEVICE float tile_views_add(const tile_views_launch &a, float *merged, float value)
{
    float old = a.turn & TILE_VIEWS_FIRST ? 0.0f : *merged;
    float now = a.merge == VIEWS_MEAN ? old + value : value > old ? value : old;
    if (!(a.turn & TILE_VIEWS_LAST))
        *merged = now;
    return now;
}

/* One class alone: its probability, and what the threshold says of it. */
TILE_DEVICE tile_winner tile_views_one(const tile_views_launch &a, float score, float *merged)
{
    tile_winner found;
    if (a.turn == (TILE_VIEWS_FIRST | TILE_VIEWS_LAST)) {
        found.label = tile_above(score, a.cut);
        found.best = tile_probability(score, found.label);
        return found;
    }
    float probability = tile_probability(score, 1);
    probability = tile_views_add(a, merged, a.merge == VIEWS_MEAN ? probability * a.share : probability);
    found.label = probability > a.threshold;
    found.best = found.label ? probability : 1.0f - probability;
    return found;
}

TILE_DEVICE void tile_views_pixel(const tile_views_launch &a, int32_t y, int32_t x)
{
    const tile_sample sample(a, y, x);
    size_t area = (size_t)(a.row1 - a.row0) * (size_t)a.width;
    float *merged = a.merged + ((size_t)(y - a.row0) * (size_t)a.width + (size_t)x), sum = 0.0f;
    bool alone = a.turn == (TILE_VIEWS_FIRST | TILE_VIEWS_LAST);
    tile_winner winner;
    const float *p = a.means;
#pragma unroll 4
    for (int32_t k = 0; k < a.classes; k++, p += a.plane)
        winner.take(sample.score(p), k);
    if (tile_not_finite(winner.best))
        atomicOr(a.status, TILE_STATUS_NOT_FINITE);
    if (a.classes == 1)
        winner = tile_views_one(a, sample.score(a.means), merged);
    else if (!alone || a.confidence != nullptr) {
        p = a.means;
#pragma unroll 4
        for (int32_t k = 0; k < a.classes; k++, p += a.plane)
            sum += tile_exp_minus(winner.best - sample.score(p));
        sum = 1.0f / sum;
    }
    if (a.classes > 1 && alone)
        winner.best = sum;
    else if (a.classes > 1) {
        float best = winner.best, share = a.merge == VIEWS_MEAN ? sum * a.share : sum;
        winner = tile_winner();
        p = a.means;
#pragma unroll 4
        for (int32_t k = 0; k < a.classes; k++, p += a.plane, merged += area)
            winner.take(tile_views_add(a, merged, tile_exp_minus(best - sample.score(p)) * share), k);
    }
    if (a.turn & TILE_VIEWS_LAST) {
        a.labels[(y - a.row0) * a.labels_stride + x] = (uint8_t)winner.label;
        if (a.confidence != nullptr)
            a.confidence[(y - a.row0) * a.confidence_stride + x] = winner.best;
    }
}

TILE_DEVICE void tile_views(const tile_views_launch &a)
{
    int32_t x = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x), step = (int32_t)(gridDim.y * blockDim.y);
    if (x >= a.width)
        return;
    for (int32_t y = a.row0 + (int32_t)(blockIdx.y * blockDim.y + threadIdx.y); y < a.row1; y += step)
        tile_views_pixel(a, y, x);
}

#endif
