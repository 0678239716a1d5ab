/* An image resized bilinearly from the two nearest pixels along each axis, without antialiasing, as OpenCV's
 * INTER_LINEAR does; its 11-bit weights give the same values but for roundings of half a level. */
#include "tile.h"
#include "tile_threads.h"

typedef struct {
    const uint8_t *image;
    int32_t height, width;
    ptrdiff_t stride_y, stride_x, stride_c; /* bytes, may be negative */
    uint8_t *out;                           /* (out_h, out_w, 3) */
    int32_t out_h, out_w;
    const int32_t *left, *right;            /* (out_w): the pixels that a column lies between */
    const float *along;
    float *rows;                            /* one of 3 * width a thread */
} resize_args;

TILE_CLONES
static int resize_rows(void *arg, int32_t begin, int32_t end, int32_t thread)
{
    const resize_args *a = arg;
    float *restrict row = a->rows + (size_t)thread * 3 * (size_t)a->width;
    for (int32_t y = begin; y < end; y++) {
        int32_t y0, y1;
        float down = tile_source(y, a->height, a->out_h, &y0, &y1);
        const uint8_t *above = a->image + y0 * a->stride_y, *below = a->image + y1 * a->stride_y;
        if (a->stride_x == 3 && a->stride_c == 1)
            for (int32_t i = 0; i < 3 * a->width; i++)
                row[i] = tile_lerp((float)above[i], (float)below[i], 1.0f - down, down);
        else
            for (int32_t x = 0; x < a->width; x++)
                for (int32_t c = 0; c < 3; c++) {
                    ptrdiff_t at = x * a->stride_x + c * a->stride_c;
                    row[3 * x + c] = tile_lerp((float)above[at], (float)below[at], 1.0f - down, down);
                }
        uint8_t *out = a->out + (size_t)y * 3 * (size_t)a->out_w;
        for (int32_t x = 0; x < a->out_w; x++) {
            const float *left = row + 3 * a->left[x], *right = row + 3 * a->right[x];
            float along = a->along[x];
            for (int32_t c = 0; c < 3; c++) /* 255.5 at most: rounds to the nearest */
                out[3 * x + c] = (uint8_t)(int32_t)(tile_lerp(left[c], right[c], 1.0f - along, along) + 0.5f);
        }
    }
    return TILE_OK;
}

/* image: (height, width, 3) uint8 -> out (out_h, out_w, 3).  workspace: 4 * (threads * 3 * width + 3 * out_w) bytes. */
int resize_bilinear(const uint8_t *image, int32_t height, int32_t width, ptrdiff_t stride_y, ptrdiff_t stride_x,
                    ptrdiff_t stride_c, uint8_t *out, int32_t out_h, int32_t out_w, float *workspace, int32_t threads)
{
    if (height < 1 || width < 1 || out_h < 1 || out_w < 1 || threads < 1 || threads > TILE_MAX_THREADS ||
        width > INT32_MAX / 3 || out_w > INT32_MAX / 3)
        return TILE_E_ARGUMENT;
    float *along = workspace + (size_t)threads * 3 * (size_t)width;
    int32_t *left = (int32_t *)(void *)(along + out_w), *right = left + out_w;
    for (int32_t x = 0; x < out_w; x++)
        along[x] = tile_source(x, width, out_w, &left[x], &right[x]);
    resize_args a = {image, height, width, stride_y, stride_x, stride_c, out, out_h, out_w, left, right, along,
                     workspace};
    return tile_parallel(resize_rows, &a, 0, out_h, threads, 3 * ((int64_t)width + out_w));
}
