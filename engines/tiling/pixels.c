/* What is done to the bytes of whole pictures: a PNG's filters taken back, labels counted.
 *
 * The filters are those of https://www.w3.org/TR/png-3/#9Filters: a byte is what stands in the file plus a prediction
 * from the byte to the left, the one above, and the one above on the left.  What does not exist counts as 0. */
#include "tile_threads.h"

#include <stdlib.h>
#include <string.h>

#define COUNTED_AT_ONCE 64
#define TABLES 4 /* of counts: an increment need not wait for the one before it */

enum { FILTER_NONE, FILTER_SUB, FILTER_UP, FILTER_AVERAGE, FILTER_PAETH };

#if defined(__GNUC__)
#define PIXELS_FN static inline __attribute__((always_inline))
#else
#define PIXELS_FN static inline
#endif

static void unfilter_up(const uint8_t *row, const uint8_t *above, size_t bytes, uint8_t *out)
{
    for (size_t i = 0; i < bytes; i++)
        out[i] = (uint8_t)(row[i] + above[i]);
}

/* Of left, above and above left the one nearest to left + above - above left; of equally near ones the first. */
PIXELS_FN int32_t paeth(int32_t left, int32_t above, int32_t corner)
{
    int32_t to_left = abs(above - corner), to_above = abs(left - corner), to_corner = abs(left + above - 2 * corner);
    /* Masks: a branch on pixels is mispredicted too often. */
    int32_t second = -(to_corner < to_above), other = (corner & second) | (above & ~second);
    int32_t nearest = to_above < to_corner ? to_above : to_corner, first = -(to_left <= nearest);
    return (left & first) | (other & ~first);
}

/* The filters that look to the left.  step: bytes a pixel, a constant where this is inlined. */
PIXELS_FN void unfilter_left(int filter, const uint8_t *row, const uint8_t *above, size_t bytes, size_t step,
                             uint8_t *out)
{
    int32_t left[4] = {0}, corner[4] = {0};
    for (size_t i = 0; i < bytes; i += step) {
        for (size_t c = 0; c < step; c++) {
            int32_t up = above[i + c], guess = left[c];
            if (filter == FILTER_AVERAGE)
                guess = (left[c] + up) / 2;
            else if (filter == FILTER_PAETH)
                guess = paeth(left[c], up, corner[c]);
            left[c] = (row[i + c] + guess) & 255;
            corner[c] = up;
            out[i + c] = (uint8_t)left[c];
        }
    }
}

PIXELS_FN void unfilter_step(int filter, const uint8_t *row, const uint8_t *above, size_t bytes, size_t step,
                             uint8_t *out)
{
    if (filter == FILTER_SUB)
        unfilter_left(FILTER_SUB, row, above, bytes, step, out);
    else if (filter == FILTER_AVERAGE)
        unfilter_left(FILTER_AVERAGE, row, above, bytes, step, out);
    else
        unfilter_left(FILTER_PAETH, row, above, bytes, step, out);
}

/* rows: (count, 1 + bytes), each its filter and its bytes.  step: of a pixel, 1, 3 or 4.  above: (bytes), the row
 * before them without its filter; zeros before the first.  out: (count, bytes). */
int pixels_unfilter(const uint8_t *rows, int32_t count, int32_t bytes, int32_t step, const uint8_t *above, uint8_t *out)
{
    if (count < 0 || bytes < 1 || (step != 1 && step != 3 && step != 4) || bytes % step)
        return TILE_E_ARGUMENT;
    size_t n = (size_t)bytes;
    for (int32_t y = 0; y < count; y++, rows += n + 1, above = out, out += n) {
        const uint8_t *row = rows + 1;
        if (rows[0] == FILTER_NONE)
            memcpy(out, row, n);
        else if (rows[0] == FILTER_UP)
            unfilter_up(row, above, n, out);
        else if (rows[0] > FILTER_PAETH)
            return TILE_E_ARGUMENT;
        else if (step == 1)
            unfilter_step(rows[0], row, above, n, 1, out);
        else if (step == 3)
            unfilter_step(rows[0], row, above, n, 3, out);
        else
            unfilter_step(rows[0], row, above, n, 4, out);
    }
    return TILE_OK;
}

/* Row by row the filter that is asked for, FILTER_UP or FILTER_PAETH, and the bytes behind it in a PNG of one byte a
 * pixel.  values: (count, width), rows `stride` bytes apart.  above: (width), the row before them; zeros before the
 * first.  out: (count, 1 + width). */
TILE_CLONES
int pixels_filter(int32_t filter, const uint8_t *values, int32_t count, int32_t width, ptrdiff_t stride,
                  const uint8_t *above, uint8_t *restrict out)
{
    if (count < 0 || width < 1 || (filter != FILTER_UP && filter != FILTER_PAETH))
        return TILE_E_ARGUMENT;
    for (int32_t y = 0; y < count; y++, above = values, values += stride, out += (size_t)width + 1) {
        out[0] = (uint8_t)filter;
        if (filter == FILTER_UP)
            for (int32_t x = 0; x < width; x++)
                out[x + 1] = (uint8_t)(values[x] - above[x]);
        else {
            out[1] = (uint8_t)(values[0] - above[0]); /* of two zeros and another that one is nearest */
            for (int32_t x = 1; x < width; x++)
                out[x + 1] = (uint8_t)(values[x] - paeth(values[x - 1], above[x], above[x - 1]));
        }
    }
    return TILE_OK;
}

/* Adds to counts[v] how many of (height, width) values are v.  stride: bytes from row to row. */
TILE_CLONES
void pixels_count(const uint8_t *values, int32_t height, int32_t width, ptrdiff_t stride, int64_t *counts)
{
    int64_t tables[TABLES][256] = {{0}};
    for (int32_t y = 0; y < height; y++, values += stride) {
        int32_t x = 0;
        for (; x + COUNTED_AT_ONCE <= width; x += COUNTED_AT_ONCE) {
            const uint8_t *v = values + x;
            uint8_t differ = 0;
            for (int32_t i = 0; i < COUNTED_AT_ONCE; i++)
                differ |= (uint8_t)(v[i] ^ v[0]);
            if (!differ) { /* as most of a mask is */
                tables[0][v[0]] += COUNTED_AT_ONCE;
                continue;
            }
            for (int32_t i = 0; i < COUNTED_AT_ONCE; i++)
                tables[i % TABLES][v[i]]++;
        }
        for (; x < width; x++)
            tables[0][values[x]]++;
    }
    for (int32_t table = 0; table < TABLES; table++)
        for (int32_t v = 0; v < 256; v++)
            counts[v] += tables[table][v];
}
