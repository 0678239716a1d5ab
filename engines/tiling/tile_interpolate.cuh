/* How windows say what they think of a patch: three ways to interpolate, for three kinds of places and ratios.
 *
 * A way is set to a row and a column of windows, and then adds the logits of one class of that window to the patch's sums. */
#ifndef EDGESEG_TILE_WAYS_CUH
#define EDGESEG_TILE_WAYS_CUH

#include "tile_device.cuh"

/* The windows first..last of an axis that touch pixels p..p+n of it. */
struct tile_span {
    int32_t first, last;
};

TILE_DEVICE int32_t tile_place(int32_t i, int32_t stride, int32_t window, int32_t size)
{
    return tile_max(tile_min(i * stride + window, size) - window, 0);
}

TILE_DEVICE tile_span tile_touching(int32_t p, int32_t n, int32_t stride, int32_t window, int32_t size, int32_t count)
{
    tile_span s;
    s.first = tile_min(p >= window ? (p - window) / stride + 1 : 0, count - 1);
    s.last = tile_min((p + n - 1) / stride, count - 1);
    if (s.last < count - 1 && tile_place(count - 1, stride, window, size) < p + n) /* the last one is moved back */
        s.last = count - 1;
    return s;
}

/* Where logits of window (r, 0) begin; held rows are `ring` at most, so that they wrap around once at most. */
template <typename T> TILE_DEVICE const T *tile_row_logits(const tile_stitch_launch &a, int32_t r)
{
    size_t window = (size_t)a.classes * (size_t)a.logits_h * (size_t)a.logits_w;
    return static_cast<const T *>(a.logits) + (size_t)(r % a.ring) * (size_t)a.pitch * window;
}

/* NaN once v or a value before was not finite: a multiply-add of its own, whose result is never written. */
TILE_DEVICE void tile_watch(float &watch, float v) { watch = fmaf(v, 0.0f, watch); }

/* The first window of a patch makes its sums and the others add to them.  Where only labels are asked for, the first
 * need not be added to +0: that changes the sign of zeros at most, which no comparison sees. */
enum tile_how { TILE_ADD, TILE_SET, TILE_SET_LABELS };

template <int HOW> TILE_DEVICE void tile_sum(float &sum, float value)
{
    if (HOW == TILE_ADD)
        sum += value;
    else
        sum = HOW == TILE_SET ? 0.0f + value : value;
}

/* A ratio of 4 both ways, no weights, and every window at multiples of 4: SegFormer on most images.
 * Every patch lies alike, so that all weights are constants and half of the products serve two pixels:
 *   interpolating down   6 multiplications and 4 additions for each of 3 columns of 4 pixels
 *   and across           6 multiplications and 4 additions for each of 4 rows of 4 pixels
 * which with loading (9), their addresses (12) and watching (9) makes 100 instructions a class for 16 pixels and one
 * window, 116 for each further one; the choice of the best takes 48. */
template <typename T> struct tile_quarter {
    enum { HEIGHT = 4 };
    const T *row_logits;
    int32_t above, middle, below; /* offsets of the rows of logits */
    bool edge;                    /* the patch is the first of the window, where nothing is above */
    int32_t left, centre, right;

    TILE_DEVICE float tile_lerp_at(float a, float b, float lambda) { return tile_lerp(a, b, 1.0f - lambda, lambda); }

    __device__ __forceinline__ void row(const tile_stitch_launch &a, int32_t r, int32_t y)
    {
        int32_t i = (y - tile_place(r, a.stride_h, a.window_h, a.height)) >> 2;
        row_logits = tile_row_logits<T>(a, r);
        above = tile_max(i - 1, 0) * a.logits_w;
        middle = i * a.logits_w;
        below = tile_min(i + 1, a.logits_h - 1) * a.logits_w;
        edge = i == 0;
    }

    __device__ __forceinline__ void column(const tile_stitch_launch &a, int32_t c, int32_t x)
    {
        centre = (x - tile_place(c, a.stride_w, a.window_w, a.width)) >> 2;
        left = tile_max(centre - 1, 0);
        right = tile_min(centre + 1, a.logits_w - 1);
    }

    __device__ __forceinline__ void down(float x0, float x1, float x2, float (&v)[4][3], int k, float &watch) const
    {
        tile_watch(watch, x0);
        tile_watch(watch, x1);
        tile_watch(watch, x2);
        v[0][k] = edge ? x1 : tile_lerp_at(x0, x1, 0.625f);
        v[1][k] = edge ? x1 : tile_lerp_at(x0, x1, 0.875f);
        v[2][k] = tile_lerp_at(x1, x2, 0.125f);
        v[3][k] = tile_lerp_at(x1, x2, 0.375f);
    }

    template <int HOW> __device__ __forceinline__ void add(const T *p, float (&sums)[4][4], float &watch) const
    {
        float v[4][3];
        const T *p0 = p + above, *p1 = p + middle, *p2 = p + below;
        TILE_KEEP(p0);
        TILE_KEEP(p1);
        TILE_KEEP(p2);
        down(tile_load(p0 + left), tile_load(p1 + left), tile_load(p2 + left), v, 0, watch);
        down(tile_load(p0 + centre), tile_load(p1 + centre), tile_load(p2 + centre), v, 1, watch);
        down(tile_load(p0 + right), tile_load(p1 + right), tile_load(p2 + right), v, 2, watch);
#pragma unroll
        for (int y = 0; y < 4; y++) {
            tile_sum<HOW>(sums[y][0], tile_lerp_at(v[y][0], v[y][1], 0.625f));
            tile_sum<HOW>(sums[y][1], tile_lerp_at(v[y][0], v[y][1], 0.875f));
            tile_sum<HOW>(sums[y][2], tile_lerp_at(v[y][1], v[y][2], 0.125f));
            tile_sum<HOW>(sums[y][3], tile_lerp_at(v[y][1], v[y][2], 0.375f));
        }
    }

    __device__ __forceinline__ void add_weight(float (&sums)[4][4]) const
    {
#pragma unroll
        for (int i = 0; i < 16; i++)
            sums[i / 4][i % 4] += 1.0f;
    }
};

/* Four pixels in a row along one axis between three values of a window: the first `split` of them lie between values
 * 0 and 1, the others between 1 and 2.  at: those values' indices.  lambda: exact, as ratios are powers of two. */
struct tile_four {
    int32_t at[3], split;
    float lambda[4];
    bool inside[4];

    __device__ __forceinline__ void place(int32_t u, int32_t ratio_log2, int32_t n, int32_t window)
    {
        int32_t ratio = 1 << ratio_log2, from = u - ratio / 2, low = from >> ratio_log2, phase = from & (ratio - 1);
        float step = 1.0f / (float)ratio;
        split = tile_min(ratio - phase, 4);
#pragma unroll
        for (int i = 0; i < 3; i++)
            at[i] = tile_clamp(low + i, n);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            lambda[i] = ((float)(i < split ? phase + i : phase + i - ratio) + 0.5f) * step;
            inside[i] = u + i >= 0 && u + i < window;
        }
    }
};

/* Any place of windows, with or without weights, at ratios of 4 and more that are powers of two. */
template <typename T, bool WEIGHTED> struct tile_whole {
    enum { HEIGHT = 4 };
    const T *row_logits;
    int32_t row_at[3], row_split, column_at[3], column_split;
    float a[4], b[4];   /* of the values above and below, with the window's weight */
    float la[4], lb[4]; /* of the values to the left and right */
    float w[4];

    __device__ __forceinline__ void row(const tile_stitch_launch &l, int32_t r, int32_t y)
    {
        tile_four four;
        int32_t v = y - tile_place(r, l.stride_h, l.window_h, l.height), half = 1 << l.ratio_log2_h >> 1;
        four.place(v, l.ratio_log2_h, l.logits_h, l.window_h);
        row_logits = tile_row_logits<T>(l, r);
        row_split = four.split;
#pragma unroll
        for (int i = 0; i < 3; i++)
            row_at[i] = four.at[i] * l.logits_w;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float lambda = v + i < half ? 0.0f : four.lambda[i]; /* tile_source does not go above the first row */
            float weight = WEIGHTED ? l.weight_y[tile_clamp(v + i, l.window_h)] : 1.0f;
            a[i] = four.inside[i] ? (1.0f - lambda) * weight : 0.0f;
            b[i] = four.inside[i] ? lambda * weight : 0.0f;
        }
    }

    __device__ __forceinline__ void column(const tile_stitch_launch &l, int32_t c, int32_t x)
    {
        tile_four four;
        int32_t u = x - tile_place(c, l.stride_w, l.window_w, l.width);
        four.place(u, l.ratio_log2_w, l.logits_w, l.window_w);
        column_split = four.split;
#pragma unroll
        for (int i = 0; i < 3; i++)
            column_at[i] = four.at[i];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            la[i] = four.inside[i] ? 1.0f - four.lambda[i] : 0.0f;
            lb[i] = four.inside[i] ? four.lambda[i] : 0.0f;
            w[i] = WEIGHTED ? l.weight_x[tile_clamp(u + i, l.window_w)] : 1.0f;
        }
    }

    template <int SPLIT> __device__ __forceinline__ void down(float x0, float x1, float x2, float (&v)[4]) const
    {
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = tile_lerp(i < SPLIT ? x0 : x1, i < SPLIT ? x1 : x2, a[i], b[i]);
    }

    __device__ __forceinline__ void column_of(const T *p, int32_t j, float (&v)[4], float &watch) const
    {
        float x0 = tile_load(p + (row_at[0] + j)), x1 = tile_load(p + (row_at[1] + j)), x2 = 0.0f;
        if (row_split < 4)
            x2 = tile_load(p + (row_at[2] + j));
        tile_watch(watch, x0);
        tile_watch(watch, x1);
        tile_watch(watch, x2);
        switch (row_split) {
        case 1: down<1>(x0, x1, x2, v); break;
        case 2: down<2>(x0, x1, x2, v); break;
        case 3: down<3>(x0, x1, x2, v); break;
        default: down<4>(x0, x1, x2, v); break;
        }
    }

    template <int HOW, int SPLIT>
    __device__ __forceinline__ void across(const float (&v)[3][4], float (&sums)[4][4]) const
    {
#pragma unroll
        for (int i = 0; i < 16; i++) {
            int y = i / 4, x = i % 4;
            float value = tile_lerp(v[x < SPLIT ? 0 : 1][y], v[x < SPLIT ? 1 : 2][y], la[x], lb[x]);
            tile_sum<HOW>(sums[y][x], WEIGHTED ? value * w[x] : value);
        }
    }

    template <int HOW> __device__ __forceinline__ void add(const T *p, float (&sums)[4][4], float &watch) const
    {
        float v[3][4] = {};
        column_of(p, column_at[0], v[0], watch);
        column_of(p, column_at[1], v[1], watch);
        if (column_split < 4)
            column_of(p, column_at[2], v[2], watch);
        switch (column_split) {
        case 1: across<HOW, 1>(v, sums); break;
        case 2: across<HOW, 2>(v, sums); break;
        case 3: across<HOW, 3>(v, sums); break;
        default: across<HOW, 4>(v, sums); break;
        }
    }

    __device__ __forceinline__ void add_weight(float (&sums)[4][4]) const
    {
#pragma unroll
        for (int i = 0; i < 16; i++) {
            float one = a[i / 4] + b[i / 4], value = tile_lerp(one, one, la[i % 4], lb[i % 4]);
            sums[i / 4][i % 4] += WEIGHTED ? value * w[i % 4] : value;
        }
    }
};

/* Any ratio, on one row of 4 pixels: each pixel reads its own values, but not those that it takes nothing of, so that
 * logits of full resolution are read once. */
template <typename T, bool WEIGHTED> struct tile_any {
    enum { HEIGHT = 1 };
    const T *row_logits;
    int32_t above, below;
    float a, b;
    int32_t left[4], right[4];
    float la[4], lb[4], w[4];

    __device__ __forceinline__ void row(const tile_stitch_launch &l, int32_t r, int32_t y)
    {
        int32_t v = y - tile_place(r, l.stride_h, l.window_h, l.height);
        float lambda = tile_source(v, l.logits_h, l.window_h, &above, &below);
        float weight = WEIGHTED ? l.weight_y[v] : 1.0f;
        row_logits = tile_row_logits<T>(l, r);
        above *= l.logits_w;
        below *= l.logits_w;
        a = (1.0f - lambda) * weight;
        b = lambda * weight;
    }

    /* Columns repeat the edge beyond it at ratios where tile.c goes by phases, and stop at it at others. */
    __device__ __forceinline__ void column(const tile_stitch_launch &l, int32_t c, int32_t x)
    {
        int32_t first = x - tile_place(c, l.stride_w, l.window_w, l.width);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int32_t at = first + i, u = tile_clamp(at, l.window_w), ratio = 1 << (l.ratio_log2_w & 31), shift;
            float lambda;
            if (l.ratio_log2_w >= 0 && ratio <= 32) {
                lambda = tile_phase_source(u & (ratio - 1), ratio, &shift);
                left[i] = tile_clamp((u >> l.ratio_log2_w) + shift, l.logits_w);
                right[i] = tile_clamp((u >> l.ratio_log2_w) + shift + 1, l.logits_w);
            } else
                lambda = tile_source(u, l.logits_w, l.window_w, &left[i], &right[i]);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
            /* Of u == at ptxas 13.0 makes a predicate of Hopper's VIMNMX.RELU, which is false (seen on an H100). */
            bool inside = at >= 0 && at < l.window_w;
#else
            bool inside = u == at; /* a register less, which Turing has not to spare */
#endif
            la[i] = inside ? 1.0f - lambda : 0.0f;
            lb[i] = inside ? lambda : 0.0f;
            w[i] = WEIGHTED ? l.weight_x[u] : 1.0f;
        }
    }

    __device__ __forceinline__ float down(const T *p, int32_t j, float &watch) const
    {
        float value = tile_load(p + (above + j)) * a;
        if (b != 0.0f)
            value = value + tile_load(p + (below + j)) * b;
        tile_watch(watch, value);
        return value;
    }

    template <int HOW> __device__ __forceinline__ void add(const T *p, float (&sums)[1][4], float &watch) const
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float v0 = down(p, left[i], watch), v1 = lb[i] != 0.0f ? down(p, right[i], watch) : v0;
            float value = tile_lerp(v0, v1, la[i], lb[i]);
            tile_sum<HOW>(sums[0][i], WEIGHTED ? value * w[i] : value);
        }
    }

    __device__ __forceinline__ void add_weight(float (&sums)[1][4]) const
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float one = a + b, value = tile_lerp(one, one, la[i], lb[i]);
            sums[0][i] += WEIGHTED ? value * w[i] : value;
        }
    }
};

#endif
