/* gather on a GPU: a thread makes 4 pixels of one row, in all planes.  scatter: what the engine made of them, where it is held.
 *
 * Of three channels a warp reads 384 contiguous bytes as three words a lane and writes three runs of 512 (fp16: 256)
 * bytes.  Where a window does not start at a word, four words are read and shifted: never a word outside the image's row. */
#ifndef EDGESEG_TILE_GATHER_CUH
#define EDGESEG_TILE_GATHER_CUH

#include "tile_device.cuh"

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
TILE_DEVICE void tile_gather4(const tile_gather_launch &a, const tile_window &at, int32_t x, int32_t y)
{
    int32_t from = tile_pad_index(at.top + y, at.height, a.padding), n = tile_min(4, a.window_w - x);
    const uint8_t *row = at.image + (int64_t)(from - at.first_row) * at.stride_y;
    uint8_t pixels[4][3] = {};
    bool there[4] = {true, true, true, true};
    bool inside = from >= 0 && at.left + x >= 0 && at.left + x + 4 <= at.width;
    bool easy = inside && at.stride_c == 1 && (at.stride_x == 3 || at.stride_x == 4);
    if (!easy || !tile_read4(row, at.left + x, at.width, (int32_t)at.stride_x, pixels)) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int32_t column = from < 0 || i >= n ? -1 : tile_pad_index(at.left + x + i, at.width, a.padding);
            there[i] = column >= 0;
#pragma unroll
            for (int c = 0; c < 3; c++)
                pixels[i][c] = column < 0 ? 0 : row[column * at.stride_x + c * at.stride_c];
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

/* The same of any number of channels, one after another: bytes are read one by one. */
template <typename T>
TILE_DEVICE void tile_gather4_bands(const tile_gather_launch &a, const tile_window &at, int32_t x, int32_t y)
{
    int32_t from = tile_pad_index(at.top + y, at.height, a.padding), n = tile_min(4, a.window_w - x), column[4];
    const uint8_t *row = at.image + (int64_t)(from - at.first_row) * at.stride_y;
#pragma unroll
    for (int i = 0; i < 4; i++)
        column[i] = from < 0 || i >= n ? -1 : tile_pad_index(at.left + x + i, at.width, a.padding);
    T *out = static_cast<T *>(a.out) + (size_t)y * (size_t)a.window_w + x;
    size_t plane = (size_t)a.window_h * (size_t)a.window_w;
    bool whole = n == 4 && a.window_w % 4 == 0 && tile_aligned(a.out, 4 * sizeof(T));
    for (int32_t c = 0; c < a.channels; c++) {
        T *p = out + (size_t)((int32_t)blockIdx.z * a.channels + a.plane[c]) * plane;
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = column[i] < 0 ? 0.0f
                                 : tile_normalise(row[column[i] * at.stride_x + c * at.stride_c], a.scale[c], a.bias[c]);
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

/* three: whether the image has three channels, which are read as words. */
template <typename T, bool three> TILE_DEVICE void tile_gather(const tile_gather_launch &a)
{
    int32_t x = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x) * 4;
    const tile_window at = a.places[blockIdx.z];
    if (x >= a.window_w || at.image == nullptr)
        return;
    for (int32_t y = (int32_t)(blockIdx.y * blockDim.y + threadIdx.y); y < a.window_h; y += gridDim.y * blockDim.y)
        if (three)
            tile_gather4<T>(a, at, x, y);
        else
            tile_gather4_bands<T>(a, at, x, y);
}

/* scatter: the logits of every window to their image's.  They may start at any element there. */
template <typename T> TILE_DEVICE void tile_scatter(const tile_scatter_launch &a)
{
    const tile_window *at = a.places + blockIdx.z;
    if (at->logits == nullptr)
        return;
    int64_t first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, step = (int64_t)gridDim.x * blockDim.x;
    const T *from = static_cast<const T *>(a.logits) + (size_t)blockIdx.z * (size_t)a.elements;
    T *to = static_cast<T *>(at->logits);
    int64_t done = 0;
    if (tile_aligned(from, 16) && tile_aligned(to, 16)) {
        const uint4 *words = reinterpret_cast<const uint4 *>(from);
        int64_t count = a.elements * (int64_t)sizeof(T) / 16;
        for (int64_t i = first; i < count; i += step)
            reinterpret_cast<uint4 *>(to)[i] = words[i];
        done = count * 16 / (int64_t)sizeof(T);
    }
    for (int64_t i = done + first; i < a.elements; i += step)
        to[i] = from[i];
    if (first == 0)
        atomicAdd(at->arrived, 1);
}

#endif
