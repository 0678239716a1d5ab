/* Sliding windows around any engine, in C.  cc -std=c11 -O3 -ffp-contract=off -fno-trapping-math -Iengines/tiling \
 *     docs/tiling.c engines/tiling/tile.c engines/tiling/threads.c -lm -pthread -o tiling && ./tiling in.ppm out.pgm */
#include "edgeseg_tiling.h"
#include <stdio.h>
#include <stdlib.h>

enum { WINDOW = 256, STRIDE = 192, K = 3, LOW = WINDOW / 4, THREADS = 4 };

/* In place of this your engine: (3, WINDOW, WINDOW) normalised pixels -> (K, LOW, LOW) logits. */
static void infer(const float *window, float *logits)
{
    for (int k = 0; k < K; k++)
        for (int y = 0; y < LOW; y++)
            for (int x = 0; x < LOW; x++)
                logits[(k * LOW + y) * LOW + x] = window[(k * WINDOW + 4 * y) * WINDOW + 4 * x];
}

static void *need(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    return p ? p : (perror("memory"), exit(1), NULL);
}

int main(int argc, char **argv)
{
    int width, height;
    FILE *in = argc == 3 ? fopen(argv[1], "rb") : NULL;
    if (!in || fscanf(in, "P6 %d %d 255", &width, &height) != 2 || fgetc(in) == EOF)
        return fprintf(stderr, "tiling: expected IN.ppm OUT.pgm, 8 bit\n"), 2;
    uint8_t *image = need((size_t)height * width * 3), *labels = need((size_t)height * width);
    if (fread(image, 3, (size_t)height * width, in) != (size_t)height * width)
        return fprintf(stderr, "tiling: %s ends too soon\n", argv[1]), 2;

    /* Where windows lie. */
    int rows = tile_axis(height, WINDOW, STRIDE, NULL), columns = tile_axis(width, WINDOW, STRIDE, NULL), n = 0;
    int32_t *y = need(rows * sizeof *y), *x = need(columns * sizeof *x);
    int32_t *tops = need(rows * columns * sizeof *tops), *lefts = need(rows * columns * sizeof *lefts);
    tile_axis(height, WINDOW, STRIDE, y), tile_axis(width, WINDOW, STRIDE, x);

    /* Each is gathered and run. */
    const float scale[3] = {1 / 58.395f, 1 / 57.12f, 1 / 57.375f}, bias[3] = {-123.675f / 58.395f, -116.28f / 57.12f,
                                                                             -103.53f / 57.375f};
    const int32_t order[3] = {0, 1, 2};
    float *window = need(3 * WINDOW * WINDOW * sizeof *window), **logits = need(rows * columns * sizeof *logits);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++, n++) {
            tops[n] = y[i], lefts[n] = x[j], logits[n] = need(K * LOW * LOW * sizeof **logits);
            if (tile_gather(image, height, width, 3 * width, 3, 1, y[i], x[j], WINDOW, WINDOW, scale, bias, order, 3, 0,
                            window, THREADS) != TILE_OK)
                return fprintf(stderr, "tiling: window %d\n", n), 1;
            infer(window, logits[n]);
        }

    /* Their logits become the labels of the image; in bands of rows, if it is large. */
    tile_plan plan = {height, width, WINDOW, WINDOW, LOW, LOW, K, n, 0, height, THREADS, 0};
    int status = tile_stitch(&plan, (const float *const *)logits, tops, lefts, NULL, NULL, labels, width, NULL, 0,
                             need(tile_stitch_workspace(&plan, 0)));
    FILE *out = status == TILE_OK ? fopen(argv[2], "wb") : NULL;
    if (!out || fprintf(out, "P5 %d %d 255\n", width, height) < 0 || !fwrite(labels, width, height, out) || fclose(out))
        return fprintf(stderr, "tiling: status %d, or %s cannot be written\n", status, argv[2]), 1;
    return 0;
}
