/* How often each label occurs: most lie in runs, which are counted as such. */
#include "tile_threads.h"

#define COUNTED_AT_ONCE 64
#define TABLES 4 /* of counts: an increment need not wait for the one before it */

/* Adds to counts[v] how many of (height, width) values are v.  stride: bytes from row to row. */
TILE_CLONES
void labels_count(const uint8_t *values, int32_t height, int32_t width, ptrdiff_t stride, int64_t *counts)
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
