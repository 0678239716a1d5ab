/* gather and stitch on a GPU: the same bits as tile.c, if compiled with --fmad=false.
 *
 * Every kernel takes one struct of tile.h by value.  Threads work alone: no shared memory, no barriers, no stack.
 * Compiled by nvcc, by NVRTC (which has no headers, hence none here but tile.h), and as C++ by the tests.
 */
#include "tile.h"

#define TILE_DEVICE static __device__ __forceinline__

struct tile_half {
    uint16_t bits;
};

TILE_DEVICE float tile_load(const float *p) { return __ldg(p); }
TILE_DEVICE float tile_load(const tile_half *p) { return tile_half_to_float(__ldg(&p->bits)); }
TILE_DEVICE void tile_store(float *p, float v) { *p = v; }
TILE_DEVICE void tile_store(tile_half *p, float v) { p->bits = tile_float_to_half(v); }

TILE_DEVICE void tile_store4(float *p, const float (&v)[4])
{
    *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]);
}

TILE_DEVICE void tile_store4(tile_half *p, const float (&v)[4])
{
    uint32_t low = tile_float_to_half(v[0]) | (uint32_t)tile_float_to_half(v[1]) << 16;
    uint32_t high = tile_float_to_half(v[2]) | (uint32_t)tile_float_to_half(v[3]) << 16;
    *reinterpret_cast<uint2 *>(p) = make_uint2(low, high);
}

TILE_DEVICE bool tile_aligned(const void *p, size_t bytes) { return (reinterpret_cast<size_t>(p) & (bytes - 1)) == 0; }
TILE_DEVICE int32_t tile_min(int32_t a, int32_t b) { return a < b ? a : b; }
TILE_DEVICE int32_t tile_max(int32_t a, int32_t b) { return a > b ? a : b; }
TILE_DEVICE int32_t tile_clamp(int32_t i, int32_t n) { return tile_max(0, tile_min(i, n - 1)); }

/* ---- gather: a thread makes 4 pixels of one row, in all 3 planes ------------------------------------------------
 *
 * A warp reads 384 contiguous bytes as three words a lane and writes three runs of 512 (fp16: 256) bytes.  Where a
 * window does not start at a word, four words are read and shifted: never a word outside the image's row. */

/* Four pixels from column x on, of a row of `width` pixels whose channels are contiguous; false where it cannot. */
TILE_DEVICE bool tile_read4(const uint8_t *row, int32_t x, int32_t width, int32_t stride_x, uint8_t (&pixels)[4][3])
{
    const uint8_t *p = row + (int64_t)x * stride_x;
    uint32_t words[4] = {0, 0, 0, 0}, shift = (uint32_t)(reinterpret_cast<size_t>(p) & 3);
    const uint32_t *from = reinterpret_cast<const uint32_t *>(p - shift);
    if (stride_x == 4) {
        if (shift != 0 || x + 4 >= width) /* the fourth byte of the last pixel may not be there */
            return false;
#pragma unroll
        for (int i = 0; i < 4; i++)
            words[i] = from[i];
#pragma unroll
        for (int i = 0; i < 12; i++)
            pixels[i / 3][i % 3] = (uint8_t)(words[i / 3] >> (8 * (i % 3)));
        return true;
    }
    if (shift != 0 && (p - shift < row || p - shift + 16 > row + 3 * (int64_t)width))
        return false;
#pragma unroll
    for (int i = 0; i < 3; i++)
        words[i] = from[i];
    if (shift != 0) {
        words[3] = from[3];
#pragma unroll
        for (int i = 0; i < 3; i++)
            words[i] = __funnelshift_r(words[i], words[i + 1], 8 * shift);
    }
#pragma unroll
    for (int i = 0; i < 12; i++)
        pixels[i / 3][i % 3] = (uint8_t)(words[i / 4] >> (8 * (i % 4)));
    return true;
}

/* Row y of window blockIdx.z, columns x..x+4. */
template <typename T>
TILE_DEVICE void tile_gather4(const tile_gather_launch &a, int32_t left, int32_t x, int32_t y)
{
    int32_t from = tile_pad_index(a.top + y, a.height, a.padding), n = tile_min(4, a.window_w - x);
    const uint8_t *row = a.image + (int64_t)(from - a.first_row) * a.stride_y;
    uint8_t pixels[4][3] = {};
    bool there[4] = {true, true, true, true};
    bool easy = from >= 0 && left + x + 4 <= a.width && a.stride_c == 1 && (a.stride_x == 3 || a.stride_x == 4);
    if (!easy || !tile_read4(row, left + x, a.width, (int32_t)a.stride_x, pixels)) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int32_t column = from < 0 || i >= n ? -1 : tile_pad_index(left + x + i, a.width, a.padding);
            there[i] = column >= 0;
#pragma unroll
            for (int c = 0; c < 3; c++)
                pixels[i][c] = column < 0 ? 0 : row[column * a.stride_x + c * a.stride_c];
        }
    }
    T *out = static_cast<T *>(a.out) + (size_t)y * (size_t)a.window_w + x;
    size_t plane = (size_t)a.window_h * (size_t)a.window_w;
    bool whole = n == 4 && a.window_w % 4 == 0 && tile_aligned(a.out, 4 * sizeof(T));
#pragma unroll
    for (int c = 0; c < 3; c++) {
        T *p = out + (size_t)(blockIdx.z * 3 + (uint32_t)a.plane[c]) * plane;
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = there[i] ? tile_normalise(pixels[i][c], a.scale[c], a.bias[c]) : 0.0f;
        if (whole)
            tile_store4(p, v);
        else {
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (i < n)
                    tile_store(p + i, v[i]);
        }
    }
}

template <typename T> TILE_DEVICE void tile_gather(const tile_gather_launch &a)
{
    int32_t x = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (x >= a.window_w)
        return;
    int32_t left = a.lefts[blockIdx.z];
    for (int32_t y = (int32_t)(blockIdx.y * blockDim.y + threadIdx.y); y < a.window_h; y += gridDim.y * blockDim.y)
        tile_gather4<T>(a, left, x, y);
}

/* ---- stitch: a thread owns a patch of the image, 4 columns wide, for all classes --------------------------------
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

/* Keeps p in a register of its own: reassociated, each of the addresses beside it takes 4 instructions instead of 1. */
#ifdef __CUDA_ARCH__
#define TILE_KEEP(p) asm("" : "+l"(p))
#else
#define TILE_KEEP(p) (void)(p)
#endif

/* NaN once v or a value before was not finite: a multiply-add of its own, whose result is never written. */
TILE_DEVICE void tile_watch(float &watch, float v) { watch = fmaf(v, 0.0f, watch); }

/* A ratio of 4 both ways, no weights, and every window at multiples of 4: SegFormer on most images.
 * Every patch lies alike, so that all weights are constants and half of the products serve two pixels:
 *   interpolating down  6 multiplications and 4 additions for each of 3 columns, of 4 pixels each
 *   and across          6 multiplications and 4 additions for each of 4 rows, of 4 pixels each
 * which with watching (9) and adding up (16) makes 95 for 16 pixels; the choice of the best takes 3 a pixel. */
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

    __device__ __forceinline__ void add(const T *p, float (&sums)[4][4], float &watch) const
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
            sums[y][0] += tile_lerp_at(v[y][0], v[y][1], 0.625f);
            sums[y][1] += tile_lerp_at(v[y][0], v[y][1], 0.875f);
            sums[y][2] += tile_lerp_at(v[y][1], v[y][2], 0.125f);
            sums[y][3] += tile_lerp_at(v[y][1], v[y][2], 0.375f);
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

    template <int SPLIT>
    __device__ __forceinline__ void across(const float (&v)[3][4], float (&sums)[4][4]) const
    {
#pragma unroll
        for (int i = 0; i < 16; i++) {
            int y = i / 4, x = i % 4;
            float value = tile_lerp(v[x < SPLIT ? 0 : 1][y], v[x < SPLIT ? 1 : 2][y], la[x], lb[x]);
            sums[y][x] += WEIGHTED ? value * w[x] : value;
        }
    }

    __device__ __forceinline__ void add(const T *p, float (&sums)[4][4], float &watch) const
    {
        float v[3][4] = {};
        column_of(p, column_at[0], v[0], watch);
        column_of(p, column_at[1], v[1], watch);
        if (column_split < 4)
            column_of(p, column_at[2], v[2], watch);
        switch (column_split) {
        case 1: across<1>(v, sums); break;
        case 2: across<2>(v, sums); break;
        case 3: across<3>(v, sums); break;
        default: across<4>(v, sums); break;
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
            int32_t u = tile_clamp(first + i, l.window_w), ratio = 1 << (l.ratio_log2_w & 31), shift;
            float lambda;
            if (l.ratio_log2_w >= 0 && ratio <= 32) {
                lambda = tile_phase_source(u & (ratio - 1), ratio, &shift);
                left[i] = tile_clamp((u >> l.ratio_log2_w) + shift, l.logits_w);
                right[i] = tile_clamp((u >> l.ratio_log2_w) + shift + 1, l.logits_w);
            } else
                lambda = tile_source(u, l.logits_w, l.window_w, &left[i], &right[i]);
            bool inside = u == first + i;
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

    __device__ __forceinline__ void add(const T *p, float (&sums)[1][4], float &watch) const
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float v0 = down(p, left[i], watch), v1 = lb[i] != 0.0f ? down(p, right[i], watch) : v0;
            float value = tile_lerp(v0, v1, la[i], lb[i]);
            sums[0][i] += WEIGHTED ? value * w[i] : value;
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

/* A patch at (y, x) and the windows that touch it. */
template <typename T, typename WAY> struct tile_patch {
    enum { HEIGHT = WAY::HEIGHT };
    int32_t x, y;
    tile_span rows, columns;
    int32_t row, column;  /* that `way` is set to */
    size_t window, first; /* elements of a window's logits, and of those before the first window in a row of them */
    WAY way;

    __device__ __forceinline__ tile_patch(const tile_stitch_launch &a, int32_t y_, int32_t x_)
        : x(x_), y(y_), rows(tile_touching(y_, HEIGHT, a.stride_h, a.window_h, a.height, a.rows)),
          columns(tile_touching(x_, 4, a.stride_w, a.window_w, a.width, a.columns)), row(-1), column(-1)
    {
        rows.first = tile_max(rows.first, a.held0);
        rows.last = tile_min(rows.last, a.held1 - 1);
        window = (size_t)a.classes * (size_t)a.logits_h * (size_t)a.logits_w;
        first = (size_t)columns.first * window;
    }

    __device__ __forceinline__ void clear(float (&sums)[HEIGHT][4]) const
    {
#pragma unroll
        for (int i = 0; i < 4 * HEIGHT; i++)
            sums[i / 4][i % 4] = 0.0f;
    }

    __device__ __forceinline__ void set(const tile_stitch_launch &a, int32_t r, int32_t c)
    {
        if (r != row)
            way.row(a, row = r, y);
        if (c != column)
            way.column(a, column = c, x);
    }

    /* sums of a class.  offset: of its logits in a window. */
    __device__ __forceinline__ void scores(const tile_stitch_launch &a, size_t offset, float (&sums)[HEIGHT][4],
                                           float &watch)
    {
        clear(sums);
#pragma unroll 1
        for (int32_t r = rows.first; r <= rows.last; r++) {
            size_t at = first + offset;
#pragma unroll 1
            for (int32_t c = columns.first; c <= columns.last; c++, at += window) {
                set(a, r, c);
                const T *p = way.row_logits + at;
                TILE_KEEP(p);
                way.add(p, sums, watch);
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
TILE_DEVICE void tile_write_confidence(const tile_stitch_launch &a, int32_t y, int32_t x, const float (&sum)[HEIGHT][4])
{
#pragma unroll
    for (int i = 0; i < HEIGHT; i++) {
        if (y + i < a.row0 || y + i >= a.row1)
            continue;
        float *p = a.confidence + (y + i - a.row0) * a.confidence_stride + x;
        float v[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            v[j] = 1.0f / sum[i][j];
        if (x + 4 <= a.width && tile_aligned(p, 16))
            tile_store4(p, v);
        else
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (x + j < a.width)
                    p[j] = v[j];
    }
}

template <typename T, typename WAY, bool CONFIDENCE>
TILE_DEVICE void tile_stitch_patch(const tile_stitch_launch &a, int32_t y, int32_t x)
{
    enum { HEIGHT = WAY::HEIGHT };
    tile_patch<T, WAY> patch(a, y, x);
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
        patch.scores(a, offset, sums, watch);
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
            patch.scores(a, offset, sums, watch);
#pragma unroll
            for (int i = 0; i < 4 * HEIGHT; i++)
                sum[i / 4][i % 4] +=
                    tile_exp_minus((best[i / 4][i % 4] - sums[i / 4][i % 4]) * weight[i / 4][i % 4]);
        }
        tile_write_confidence<HEIGHT>(a, y, x, sum);
    }
}

/* Patches start at multiples of their height, wherever row0 lies. */
template <typename T, typename WAY, bool CONFIDENCE> TILE_DEVICE void tile_stitch(const tile_stitch_launch &a)
{
    int32_t x = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x) * 4, step = (int32_t)(gridDim.y * blockDim.y);
    if (x >= a.width)
        return;
    int32_t first = a.row0 / WAY::HEIGHT + (int32_t)(blockIdx.y * blockDim.y + threadIdx.y);
    for (int32_t i = first; i * WAY::HEIGHT < a.row1; i += step)
        tile_stitch_patch<T, WAY, CONFIDENCE>(a, i * WAY::HEIGHT, x);
}

/* ---- the kernels ---------------------------------------------------------------------------------------------- */

/* threads: of a block, as in engines/device/kernels.py; blocks: that fit one multiprocessor, which limits registers. */
#define TILE_KERNEL(name, args, threads, blocks, ...) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ args a) \
    { \
        __VA_ARGS__(a); \
    }

TILE_KERNEL(tile_gather_f32, tile_gather_launch, 256, 6, tile_gather<float>)
TILE_KERNEL(tile_gather_f16, tile_gather_launch, 256, 6, tile_gather<tile_half>)

#define TILE_STITCH(way, suffix, blocks, sure, T, ...) \
    TILE_KERNEL(tile_stitch_##way##_##suffix, tile_stitch_launch, 128, blocks, tile_stitch<T, __VA_ARGS__, false>) \
    TILE_KERNEL(tile_stitch_##way##_confidence_##suffix, tile_stitch_launch, 128, sure, tile_stitch<T, __VA_ARGS__, true>)

#define TILE_STITCHES(suffix, T) \
    TILE_STITCH(quarter, suffix, 4, 4, T, tile_quarter<T>) \
    TILE_STITCH(whole, suffix, 4, 3, T, tile_whole<T, false>) \
    TILE_STITCH(whole_weighted, suffix, 3, 3, T, tile_whole<T, true>) \
    TILE_STITCH(any, suffix, 6, 5, T, tile_any<T, false>) \
    TILE_STITCH(any_weighted, suffix, 6, 5, T, tile_any<T, true>)

TILE_STITCHES(f32, float)
TILE_STITCHES(f16, tile_half)
