/* What the GPU's tail samples its maps with, see tail.cuh: a thread adds a map's samples at 8 pixels beside each other.
 *
 * Straight from global memory: columns are shared by neighbours, so that a thread needs few, and each is mixed from its
 * two rows as it comes.  A map of a half, a quarter or an eighth of the logits repeats its samples every 2, 4 or 8 pixels:
 * which columns a pixel needs, and how much of them, is known to the compiler. */
#ifndef EDGESEG_TAIL_SAMPLE_CUH
#define EDGESEG_TAIL_SAMPLE_CUH

#include "tail.h"
#include "tile_device.cuh"

TILE_DEVICE void tail_load(const float *p, float (&v)[4])
{
    float4 four = __ldg(reinterpret_cast<const float4 *>(p));
    v[0] = four.x;
    v[1] = four.y;
    v[2] = four.z;
    v[3] = four.w;
}

TILE_DEVICE void tail_load(const tile_half *p, float (&v)[4])
{
    uint2 four = __ldg(reinterpret_cast<const uint2 *>(p));
    v[0] = tile_half_to_float((uint16_t)four.x);
    v[1] = tile_half_to_float((uint16_t)(four.x >> 16));
    v[2] = tile_half_to_float((uint16_t)four.y);
    v[3] = tile_half_to_float((uint16_t)(four.y >> 16));
}

TILE_DEVICE void tail_load(const float *p, float (&v)[2])
{
    float2 two = __ldg(reinterpret_cast<const float2 *>(p));
    v[0] = two.x;
    v[1] = two.y;
}

TILE_DEVICE void tail_load(const tile_half *p, float (&v)[2])
{
    uint32_t two = __ldg(reinterpret_cast<const uint32_t *>(p));
    v[0] = tile_half_to_float((uint16_t)two);
    v[1] = tile_half_to_float((uint16_t)(two >> 16));
}

/* The channels that a thread makes, OWN of a chunk: 8 are two parts, 16 apart, so that lanes lie beside each other. */
template <int OWN> struct tail_channels {
    enum { WIDTH = OWN < 4 ? OWN : 4, PARTS = OWN / WIDTH };
    uint32_t at[PARTS]; /* within the decoder's; those beyond the last one are read there, and not used */
};

/* The rows of a map that a row of pixels samples, in shared memory: made once a block. */
struct tail_rows {
    const void *above, *below; /* their first pixels */
    float lambda, scale; /* columns a pixel */
    int32_t columns, ratio; /* of pixels to columns where that is 2, 4 or 8, else 0 */
};

template <typename T> TILE_DEVICE void tail_place_rows(const tail_launch &a, int32_t map, int32_t y, tail_rows *rows)
{
    int32_t y0, y1, columns = a.map_w[map], ratio = a.width / columns;
    rows->lambda = tile_source(y, a.map_h[map], a.height, &y0, &y1);
    size_t pitch = (size_t)columns * (size_t)a.channels;
    const T *first = static_cast<const T *>(a.maps[map]) + (size_t)blockIdx.z * (size_t)a.map_h[map] * pitch;
    rows->above = first + (size_t)y0 * pitch;
    rows->below = first + (size_t)y1 * pitch;
    rows->scale = tile_scale(columns, a.width);
    rows->columns = columns;
    rows->ratio = ratio * columns == a.width && (ratio == 2 || ratio == 4 || ratio == 8) ? ratio : 0;
}

/* A part of a map's column, WIDTH channels from `channel` on, between its rows above and below. */
template <typename T, int WIDTH>
TILE_DEVICE void tail_column(const tail_rows &r, int32_t column, uint32_t pitch, uint32_t channel, float (&v)[WIDTH])
{
    uint32_t at = (uint32_t)column * pitch + channel; /* a row has no more than 2^31 values */
    float down[WIDTH], la = 1.0f - r.lambda;
    tail_load(static_cast<const T *>(r.above) + at, v);
    tail_load(static_cast<const T *>(r.below) + at, down);
#pragma unroll
    for (int c = 0; c < WIDTH; c++)
        v[c] = tail_mix(v[c], down[c], la, r.lambda);
}

/* To channels `first` on of a pixel. */
template <int WIDTH, int OWN>
TILE_DEVICE void tail_add(const float (&left)[WIDTH], const float (&right)[WIDTH], float la, float lb, int first,
                          float (&v)[OWN])
{
#pragma unroll
    for (int c = 0; c < WIDTH; c++)
        v[first + c] = tail_fma(right[c], lb, tail_fma(left[c], la, v[first + c]));
}

/* Pixels x..x+8, x a multiple of 8, of a map of the RATIO'th part: pixel p is sampled after column x / RATIO - 1 by
 * (p + RATIO / 2) / RATIO columns, at the rest of that division.
 * The first pixels lie before the first column's middle, where tile_source takes columns 0 and 1 by 1 and 0.  There
 * columns 1 and 0 stand for -1 and 0, taken by 0 and 1: 0 of a number changes no other in whatever order they are added,
 * and what is not finite or an infinity more gives NaN in both. */
template <typename T, int RATIO, int WIDTH, int OWN>
TILE_DEVICE void tail_sample_every(const tail_rows &r, int32_t x, uint32_t pitch, uint32_t channel, int first,
                                   float (&v)[8][OWN])
{
    constexpr int half = RATIO / 2, columns = (7 + half) / RATIO + 2;
    TILE_KEEP_INT(x); /* else what depends on it alone waits in registers for the next map */
    int32_t last = r.columns - 1, before = x / RATIO - 1;
    bool edge = x == 0;
    float column[2][WIDTH];
    tail_column<T>(r, tile_min(edge ? 1 : before, last), pitch, channel, column[0]);
#pragma unroll
    for (int s = 0; s + 1 < columns; s++) {
        tail_column<T>(r, tile_min(before + s + 1, last), pitch, channel, column[(s + 1) % 2]);
#pragma unroll
        for (int p = 0; p < 8; p++)
            if ((p + half) / RATIO == s) {
                float lb = ((float)((p + half) % RATIO) + 0.5f) / (float)RATIO, la = 1.0f - lb;
                if (p < half) {
                    la = edge ? 0.0f : la;
                    lb = edge ? 1.0f : lb;
                }
                tail_add(column[s % 2], column[(s + 1) % 2], la, lb, first, v[p]);
            }
    }
}

/* The same for any map. */
template <typename T, int WIDTH, int OWN>
TILE_DEVICE void tail_sample_any(const tail_rows &r, int32_t x, int32_t width, uint32_t pitch, uint32_t channel,
                                 int first, float (&v)[8][OWN])
{
    TILE_KEEP_INT(x);
#pragma unroll
    for (int p = 0; p < 8; p++) {
        if (x + p >= width)
            return;
        float left[WIDTH], right[WIDTH];
        int32_t i0, i1;
        float lambda = tile_source_by(x + p, r.scale, r.columns, &i0, &i1);
        tail_column<T>(r, i0, pitch, channel, left);
        tail_column<T>(r, i1, pitch, channel, right);
        tail_add(left, right, 1.0f - lambda, lambda, first, v[p]);
    }
}

template <typename T, int OWN>
TILE_DEVICE void tail_sample(const tail_rows &r, int32_t x, int32_t width, uint32_t pitch,
                             const tail_channels<OWN> &own, float (&v)[8][OWN])
{
    constexpr int WIDTH = tail_channels<OWN>::WIDTH;
#pragma unroll
    for (int i = 0; i < tail_channels<OWN>::PARTS; i++)
        if (r.ratio == 2)
            tail_sample_every<T, 2, WIDTH>(r, x, pitch, own.at[i], 4 * i, v);
        else if (r.ratio == 4)
            tail_sample_every<T, 4, WIDTH>(r, x, pitch, own.at[i], 4 * i, v);
        else if (r.ratio == 8)
            tail_sample_every<T, 8, WIDTH>(r, x, pitch, own.at[i], 4 * i, v);
        else
            tail_sample_any<T, WIDTH>(r, x, width, pitch, own.at[i], 4 * i, v);
}

#endif
