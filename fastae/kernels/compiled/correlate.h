/* Correlations over images in blocks of rows (lanes.h): gradients of the weights of convolutions. */

/* R channels of a x S others of x, summed over places; each of the S is `x_s` further. The sums of a channel of a are
 * `sums_r` vectors apart. */
INLINE void F(correlate_tile)(const int R, const int S, const REAL *a, Py_ssize_t a_r, Py_ssize_t a_n, Py_ssize_t a_h,
                              const REAL *x, Py_ssize_t x_s, Py_ssize_t x_n, Py_ssize_t x_h, Py_ssize_t x_w,
                              Py_ssize_t blocks, Py_ssize_t height, Py_ssize_t width, REAL *sums, Py_ssize_t sums_r)
{
    V acc[LANE_ROWS][8];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int s = 0; s < S; s++)
        acc[r][s] = F(load)(sums + (r * sums_r + s) * LANES);
    for (Py_ssize_t n = 0; n < blocks; n++)
        for (Py_ssize_t p = 0; p < height; p++)
            for (Py_ssize_t part = 0; part < BLOCK; part += LANES) {
                const REAL *left = a + n * a_n + p * a_h + part, *right = x + n * x_n + p * x_h + part;
                for (Py_ssize_t q = 0; q < width; q++) {
                    V xs[8];
                    UNROLL for (int s = 0; s < S; s++) xs[s] = F(load)(right + s * x_s);
                    UNROLL for (int r = 0; r < R; r++)
                    {
                        V ar = F(load)(left + r * a_r);
                        if (S > 1) IN_REGISTER(ar);
                        UNROLL for (int s = 0; s < S; s++) acc[r][s] += ar * xs[s];
                    }
                    left += BLOCK;
                    right += x_w;
                }
            }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int s = 0; s < S; s++)
        F(store)(sums + (r * sums_r + s) * LANES, acc[r][s]);
}

#define CORRELATE_TILE(R, S) \
    case (R) * 16 + (S): \
        F(correlate_tile)(R, S, a, a_r, a_n, a_h, x, x_s, x_n, x_h, x_w, blocks, height, width, sums, \
                          sums_r); \
        break;

STATIC void F(correlate)(Py_ssize_t r, Py_ssize_t s, const REAL *a, Py_ssize_t a_r, Py_ssize_t a_n, Py_ssize_t a_h,
                         const REAL *x, Py_ssize_t x_s, Py_ssize_t x_n, Py_ssize_t x_h, Py_ssize_t x_w,
                         Py_ssize_t blocks, Py_ssize_t height, Py_ssize_t width, REAL *sums, Py_ssize_t sums_r)
{
    switch (r * 16 + s) { LANE_TILES(CORRELATE_TILE) }
}

/* Sum of the places of one plane, lane by lane. */
INLINE V F(plane_lanes)(const REAL *a, Py_ssize_t places)
{
    V four[4] = {{0}, {0}, {0}, {0}};
    Py_ssize_t i = 0;
    for (; i + 4 * LANES <= places * BLOCK; i += 4 * LANES)
        UNROLL for (int q = 0; q < 4; q++) four[q] += F(load)(a + i + q * LANES);
    for (; i < places * BLOCK; i += LANES) four[0] += F(load)(a + i);
    return (four[0] + four[1]) + (four[2] + four[3]);
}

/* Sum of one channel over all blocks and places; the lanes of rows that are not there are zero. */
STATIC REAL F(channel_sum)(const REAL *a, Py_ssize_t step, Py_ssize_t blocks, Py_ssize_t places)
{
    V sum = {0};
    for (Py_ssize_t n = 0; n < blocks; n++) sum += F(plane_lanes)(a + n * step, places);
    return F(lane_sum)(sum);
}

#define CORRELATE_MOST 224 /* vectors of sums at a time: they stay in the first cache */
#define CORRELATE_ROWS (48 * LANE_ROWS) /* vectors of `a` at a time, likewise */
/* Vectors of `a` made of a pooling's gradient at a time, likewise: at least a window of LANE_ROWS channels, for lowering
 * pools no more than 16 places so. */
#define UNPOOL_MOST 448

/* One row of the kernel and `rows` rows of `width` windows, planes of `a` being `a_plane` apart: the sums of
 * dw[r][s][u, v to v + taps]. With one channel of x the kernel's elements lie beside each other in a tile, else the
 * channels do. */
STATIC void F(correlate_rows)(const Correlation *k, const REAL *a, Py_ssize_t a_plane, Py_ssize_t width, const REAL *x,
                              Py_ssize_t R, Py_ssize_t S, Py_ssize_t v, Py_ssize_t taps, const Py_ssize_t *first,
                              const Py_ssize_t *end, Py_ssize_t together, Py_ssize_t rows, REAL *sums)
{
    const Py_ssize_t x_plane = k->xh * k->xw * BLOCK;
    const Py_ssize_t a_n = k->groups * k->a_channels * a_plane, x_n = k->groups * k->x_channels * x_plane;
    const Py_ssize_t a_h = width * BLOCK, x_h = k->stride_h * k->xw * BLOCK, x_w = k->stride_w * BLOCK;
    if (k->x_channels > 1) {
        for (Py_ssize_t i = 0; i < taps; i++) {
            const Py_ssize_t j = first[i] * k->stride_w + (v + i) * k->dilation_w - k->padding_left;
            F(correlate)(R, S, a + first[i] * BLOCK, a_plane, a_n, a_h, x + j * BLOCK, x_plane, x_n, x_h, x_w, together,
                         rows, end[i] - first[i], sums + i * R * S * LANES, S);
        }
        return;
    }
    /* columns that meet all elements in one tile, each other one with those it meets */
    Py_ssize_t from = 0, to = width;
    for (Py_ssize_t i = 0; i < taps; i++) {
        from = most(from, first[i]);
        to = least(to, end[i]);
    }
    if (to <= from) from = to = width;
    for (Py_ssize_t q = 0, count; q < width; q += count) {
        Py_ssize_t i = 0, stop;
        while (i < taps && (q < first[i] || q >= end[i])) i++;
        for (stop = i; stop < taps && q >= first[stop] && q < end[stop];) stop++;
        count = q == from ? to - from : 1;
        const Py_ssize_t j = q * k->stride_w + (v + i) * k->dilation_w - k->padding_left;
        if (stop > i)
            F(correlate)(R, stop - i, a + q * BLOCK, a_plane, a_n, a_h, x + j * BLOCK, k->dilation_w * BLOCK, x_n, x_h, x_w,
                         together, rows, count, sums + i * LANES, taps);
    }
}

/* Kernel rows u to u_end with rows `begin` to `stop` of windows, of which `a` has so many lines of `width`, and x is whole:
 * they go over the same few rows of `a` one after the other, while these are in the first cache. */
STATIC void F(correlate_band)(const Correlation *k, const REAL *a, Py_ssize_t a_plane, Py_ssize_t width, const REAL *x,
                              Py_ssize_t R, Py_ssize_t S, Py_ssize_t u, Py_ssize_t u_end, Py_ssize_t v, Py_ssize_t taps,
                              const Py_ssize_t *first, const Py_ssize_t *end, Py_ssize_t together, Py_ssize_t begin,
                              Py_ssize_t stop, REAL *sums)
{
    for (Py_ssize_t t = u; t < u_end; t++, sums += R * S * taps * LANES) {
        Py_ssize_t top, bottom;
        windows_inside(t, k->stride_h, k->padding_top, k->dilation_h, k->xh, k->ah, &top, &bottom);
        top = most(top, begin);
        bottom = least(bottom, stop);
        if (bottom > top)
            F(correlate_rows)(k, a + (top - begin) * width * BLOCK, a_plane, width,
                              x + (top * k->stride_h + t * k->dilation_h - k->padding_top) * k->xw * BLOCK, R, S, v, taps,
                              first, end, together, bottom - top, sums);
    }
}

/* Places of `a` for R channels: rows `p` to p + tall and columns q to q + wide of windows of one block, each window with
 * the slope of the activation where its largest number came from and zeros elsewhere. The sums of the channels are added
 * to `biases`. */
STATIC void F(unpool)(const Correlation *k, const REAL *dy, const REAL *position, const REAL *y, Py_ssize_t R, Py_ssize_t p,
                      Py_ssize_t tall, Py_ssize_t q, Py_ssize_t wide, REAL *laid, V *biases)
{
    REAL slopes[UNPOOL_MOST * BLOCK];
    const Py_ssize_t columns = k->aw / k->pool_w, plane = k->ah / k->pool_h * columns * BLOCK;
    const Py_ssize_t row = wide * k->pool_w * BLOCK;
    for (Py_ssize_t r = 0; r < R; r++)
        for (Py_ssize_t i = 0; i < tall; i++) {
            const Py_ssize_t at = r * plane + ((p + i) * columns + q) * BLOCK;
            const REAL *from = dy + at;
            V sum = {0};
            if (y && k->activation != LINEAR) {
                F(map_slope)(dy + at, y + at, slopes, wide * BLOCK, k->activation);
                from = slopes;
            }
            for (Py_ssize_t j = 0; j < wide; j++)
                for (Py_ssize_t part = 0; part < BLOCK; part += LANES) {
                    const V slope = F(load)(from + j * BLOCK + part), place = F(load)(position + at + j * BLOCK + part);
                    REAL *to = laid + (r * tall + i) * k->pool_h * row + j * k->pool_w * BLOCK + part;
                    sum += slope;
                    for (Py_ssize_t u = 0; u < k->pool_h; u++)
                        for (Py_ssize_t v = 0; v < k->pool_w; v++)
                            F(store)(to + u * row + v * BLOCK,
                                     F(pick)(place == F(splat)((REAL)(u * k->pool_w + v)), slope, (V){0}));
                }
            biases[r] += sum;
        }
}

/* The sums of `correlate_kernel_rows` where `a` is the gradient of a max-pooling: its places are laid out so few at a time
 * that they stay in the first cache, and in no other. */
STATIC void F(correlate_pooled)(const Correlation *k, const REAL *dy, const REAL *position, const REAL *y, const REAL *x,
                                Py_ssize_t R, Py_ssize_t S, Py_ssize_t u, Py_ssize_t u_end, Py_ssize_t v, Py_ssize_t taps,
                                const Py_ssize_t *first, const Py_ssize_t *end, REAL *sums, V *biases)
{
    REAL laid[UNPOOL_MOST * BLOCK];
    const Py_ssize_t height = k->ah / k->pool_h, width = k->aw / k->pool_w, window = R * k->pool_h * k->pool_w;
    const Py_ssize_t pieces = (width + UNPOOL_MOST / window - 1) / (UNPOOL_MOST / window);
    const Py_ssize_t tall = pieces > 1 ? 1 : UNPOOL_MOST / (window * width);
    const Py_ssize_t x_n = k->groups * k->x_channels * k->xh * k->xw * BLOCK;
    const Py_ssize_t y_n = k->groups * k->a_channels * height * width * BLOCK;
    for (Py_ssize_t i = 0; i < k->blocks * pieces; i++) {
        const Py_ssize_t n = i / pieces, q = piece(width, i % pieces, pieces);
        const Py_ssize_t wide = piece(width, i % pieces + 1, pieces) - q;
        Py_ssize_t from[8], to[8];
        for (Py_ssize_t t = 0; t < taps; t++) {
            from[t] = least(most(first[t] - q * k->pool_w, 0), wide * k->pool_w);
            to[t] = most(least(end[t] - q * k->pool_w, wide * k->pool_w), from[t]);
        }
        for (Py_ssize_t p = 0; p < height; p += tall) {
            const Py_ssize_t rows = least(tall, height - p), begin = p * k->pool_h;
            const Py_ssize_t plane = rows * k->pool_h * wide * k->pool_w * BLOCK;
            F(unpool)(k, dy + n * y_n, position + n * y_n, y ? y + n * y_n : 0, R, p, rows, q, wide, laid, biases);
            F(correlate_band)(k, laid, plane, wide * k->pool_w, x + n * x_n + q * k->pool_w * k->stride_w * BLOCK, R, S, u,
                              u_end, v, taps, from, to, 1, begin, begin + rows * k->pool_h, sums);
        }
    }
}

/* dw[r][s][u, v] for R channels of `a`, S channels of `x` and kernel elements (u to u_end, v to v_end): `a` and `x` are at
 * their first channel. With `db`, the sums of those channels of `a` or `x` that are the gradient of the output. With a
 * pooling `a` is the gradient of its numbers, of which `position` and `y` tell. */
STATIC void F(correlate_kernel_rows)(const Correlation *k, const REAL *a, const REAL *position, const REAL *y, const REAL *x,
                                     Py_ssize_t R, Py_ssize_t S, Py_ssize_t u, Py_ssize_t u_end, Py_ssize_t v,
                                     Py_ssize_t v_end, REAL *dw, REAL *db)
{
    REAL sums[CORRELATE_MOST * 16];
    V biases[8] = {{0}};
    const Py_ssize_t a_plane = k->ah * k->aw * BLOCK, x_plane = k->xh * k->xw * BLOCK;
    const Py_ssize_t a_n = k->groups * k->a_channels * a_plane, x_n = k->groups * k->x_channels * x_plane;
    const Py_ssize_t taps = v_end - v, each = R * S * taps;
    Py_ssize_t first[8], end[8];
    for (Py_ssize_t i = 0; i < taps; i++)
        windows_inside(v + i, k->stride_w, k->padding_left, k->dilation_w, k->xw, k->aw, first + i, end + i);
    memset(sums, 0, (size_t)(each * (u_end - u)) * LANES * sizeof(REAL));
    /* as many rows at a time as stay in the first cache for all elements; all of a small image */
    const Py_ssize_t height = most(CORRELATE_ROWS / (R * k->aw), 1), together = R * k->ah * k->aw <= 64 ? k->blocks : 1;
    if (k->pool_h) F(correlate_pooled)(k, a, position, y, x, R, S, u, u_end, v, taps, first, end, sums, biases);
    for (Py_ssize_t n = k->pool_h ? k->blocks : 0; n < k->blocks; n += together) {
        for (Py_ssize_t b = n; db && b < n + together; b++)
            for (Py_ssize_t c = 0; c < (k->sums_of_x ? S : R); c++)
                biases[c] += k->sums_of_x ? F(plane_lanes)(x + b * x_n + c * x_plane, k->xh * k->xw)
                                          : F(plane_lanes)(a + b * a_n + c * a_plane, k->ah * k->aw);
        for (Py_ssize_t p = 0; p < k->ah; p += height)
            F(correlate_band)(k, a + n * a_n + p * k->aw * BLOCK, a_plane, k->aw, x + n * x_n, R, S, u, u_end, v, taps, first,
                              end, together, p, p + height, sums);
    }
    REAL totals[CORRELATE_MOST + 16];
    const Py_ssize_t count = each * (u_end - u);
    for (Py_ssize_t i = 0; i < count; i += LANES) {
        V several[LANES];
        for (Py_ssize_t l = 0; l < LANES; l++) several[l] = i + l < count ? F(load)(sums + (i + l) * LANES) : (V){0};
        F(store)(totals + i, F(lane_sums)(several));
    }
    const REAL *total = totals;
    for (; u < u_end; u++) {
        REAL *to = dw + u * k->kw + v;
        if (k->x_channels > 1) {
            for (Py_ssize_t i = 0; i < taps; i++)
                for (Py_ssize_t r = 0; r < R; r++)
                    for (Py_ssize_t s = 0; s < S; s++) to[r * k->dw_a + s * k->dw_x + i] = *total++;
        } else {
            for (Py_ssize_t r = 0; r < R; r++)
                for (Py_ssize_t i = 0; i < taps; i++) to[r * k->dw_a + i] = *total++;
        }
    }
    for (Py_ssize_t c = 0; db && c < (k->sums_of_x ? S : R); c++) db[c] = F(lane_sum)(biases[c]);
}

/* The correlation where `a` has one place and x no other than those it meets: a product of matrices over the rows. A
 * panel of x is turned, so that a vector holds columns of dw and no lanes have to be added up. */
#define PANEL_BLOCKS 4 /* of rows at a time */
STATIC void F(correlate_place)(const Correlation *k, const REAL *a, const REAL *x, REAL *dw, Py_ssize_t part,
                               Py_ssize_t parts)
{
    REAL panel[PANEL_BLOCKS * BLOCK * 8 * BLOCK], made[GATHER_ROWS * 8 * BLOCK];
    const Taps one = {0, 1, 1, 0, 1};
    const Py_ssize_t size = k->x_channels * k->xh * k->xw, a_n = k->groups * k->a_channels * BLOCK;
    const Py_ssize_t tiles = (k->a_channels + GATHER_ROWS - 1) / GATHER_ROWS;
    const Py_ssize_t most_rows = (k->a_channels + tiles - 1) / tiles, beside = most(GATHER_BESIDE(most_rows), 3);
    const Py_ssize_t columns = (size + BLOCK - 1) / BLOCK, panels = (columns + beside - 1) / beside;
    for (Py_ssize_t i = piece(k->groups * panels, part, parts); i < piece(k->groups * panels, part + 1, parts); i++) {
        const Py_ssize_t group = i / panels, column = piece(columns, i % panels, panels);
        const Py_ssize_t count = piece(columns, i % panels + 1, panels) - column, wide = count * BLOCK;
        const Py_ssize_t width = least(size - column * BLOCK, wide);
        for (Py_ssize_t n = 0; n < k->blocks; n += PANEL_BLOCKS) {
            const Py_ssize_t blocks = least(PANEL_BLOCKS, k->blocks - n);
            /* What a tile gathers: blocks are its channels, rows of a block its kernel's columns. */
            const Taps rows = {0, 1, BLOCK, 0, count};
            const Gather g = {.h = {.size = BLOCK}, .w = {.size = count}, .channels = blocks,
                              .w_in = a_n, .w_out = BLOCK, .w_w = 1};
            if (width < wide) memset(panel, 0, (size_t)(blocks * BLOCK * wide) * sizeof(REAL));
            for (Py_ssize_t b = 0; b < blocks; b++)
                F(deinterleave)(x + (((n + b) * k->groups + group) * size + column * BLOCK) * BLOCK, BLOCK, width,
                                panel + b * BLOCK * wide, wide);
            for (Py_ssize_t tile = 0; tile < tiles; tile++) {
                const Py_ssize_t r = piece(k->a_channels, tile, tiles), r_end = piece(k->a_channels, tile + 1, tiles);
                REAL *to = dw + group * k->dw_group + r * k->dw_a + column * BLOCK;
                const int whole = width == wide && !n;
                const REAL *by = a + n * a_n + (group * k->a_channels + r) * BLOCK;
                F(gather_places)(&g, &one, rows, count, panel, by, 0, 0, 0, r_end - r, BLOCK,
                                 whole ? to : made, whole ? k->dw_a : wide, BLOCK);
                for (Py_ssize_t q = 0; !whole && q < r_end - r; q++)
                    for (Py_ssize_t j = 0; j < width; j++) {
                        const REAL more = made[q * wide + j];
                        to[q * k->dw_a + j] = n ? to[q * k->dw_a + j] + more : more;
                    }
            }
        }
    }
}
#undef PANEL_BLOCKS

/* This part's share of the tiles of a correlation, and of the sums of its channels, if these are asked for. With two halves
 * the tiles of both are shared out together, those of the first one first. */
STATIC void F(correlate_tiles)(const Correlation *k, const REAL *a, const REAL *position, const REAL *y, const REAL *x,
                               REAL *dw, REAL *db, Py_ssize_t half, Py_ssize_t halves, Py_ssize_t part, Py_ssize_t parts)
{
    if (k->pool_h && F(pools_away)(k)) {
        F(pooled_tiles)(k, a, position, y, x, dw, db, half, halves, part, parts);
        return;
    }
    const Py_ssize_t x_plane = k->xh * k->xw * BLOCK;
    const Py_ssize_t a_plane = k->ah * k->aw / (k->pool_h ? k->pool_h * k->pool_w : 1) * BLOCK;
    const Py_ssize_t a_tiles = (k->a_channels + LANE_ROWS - 1) / LANE_ROWS;
    const Py_ssize_t most_rows = (k->a_channels + a_tiles - 1) / a_tiles;
    const Py_ssize_t beside = LANE_BESIDE(most_rows);
    const Py_ssize_t x_tiles = (k->x_channels + beside - 1) / beside;
    const Py_ssize_t most_taps = k->x_channels > 1 ? 8 : beside, tap_tiles = (k->kw + most_taps - 1) / most_taps;
    const Py_ssize_t all = k->groups * a_tiles * x_tiles * tap_tiles * k->kh;
    const Py_ssize_t stop = least(piece(halves * all, part + 1, parts) - half * all, all);
    for (Py_ssize_t i = most(piece(halves * all, part, parts) - half * all, 0), rows; i < stop; i += rows) {
        const Py_ssize_t u = i % k->kh, taps = i / k->kh % tap_tiles, x_tile = i / k->kh / tap_tiles % x_tiles;
        const Py_ssize_t a_tile = i / k->kh / tap_tiles / x_tiles % a_tiles;
        const Py_ssize_t group = i / k->kh / tap_tiles / x_tiles / a_tiles;
        const Py_ssize_t r = piece(k->a_channels, a_tile, a_tiles), r_end = piece(k->a_channels, a_tile + 1, a_tiles);
        const Py_ssize_t s = piece(k->x_channels, x_tile, x_tiles), s_end = piece(k->x_channels, x_tile + 1, x_tiles);
        const Py_ssize_t v = piece(k->kw, taps, tap_tiles), v_end = piece(k->kw, taps + 1, tap_tiles);
        const int adds = db && !u && !taps && !(k->sums_of_x ? a_tile : x_tile);
        rows = least(CORRELATE_MOST / ((r_end - r) * (s_end - s) * (v_end - v)), least(stop - i, k->kh - u));
        const Py_ssize_t at = (group * k->a_channels + r) * a_plane;
        F(correlate_kernel_rows)(k, a + at, position ? position + at : 0, y ? y + at : 0,
                                 x + (group * k->x_channels + s) * x_plane, r_end - r, s_end - s, u, u + rows, v, v_end,
                                 dw + group * k->dw_group + r * k->dw_a + s * k->dw_x,
                                 !adds ? 0 : k->sums_of_x ? db + group * k->x_channels + s : db + group * k->a_channels + r);
    }
}

/* Add the sums of the second half of the images, which lie in `rest` as dw does, with those of the channels behind. */
STATIC void F(add_rest)(const Correlation *k, const REAL *rest, REAL *dw, REAL *db, Py_ssize_t part, Py_ssize_t parts)
{
    const Py_ssize_t rows = k->groups * k->a_channels, size = k->x_channels * k->dw_x;
    const Py_ssize_t channels = k->groups * (k->sums_of_x ? k->x_channels : k->a_channels);
    for (Py_ssize_t r = piece(rows, part, parts); r < piece(rows, part + 1, parts); r++)
        for (Py_ssize_t i = r * k->dw_a; i < r * k->dw_a + size; i++) dw[i] += rest[i];
    for (Py_ssize_t c = piece(channels, part, parts); db && c < piece(channels, part + 1, parts); c++)
        db[c] += rest[rows * k->dw_a + c];
}

/* This part's share of a correlation, and of the sums of its channels, if these are asked for. With a pooling `a` is the
 * gradient of its numbers, of which `position` and, for the slope, `y` tell.
 *
 * With `rest`, which has room for all of these sums, those of the blocks in the second half are made there, by threads of
 * their own where there are several, and then added: a core reads what it has made itself, not what another has. Several
 * threads do that in a second pass, when all have done the first; `parts` is negative in it. */
STATIC void F(correlation)(const Correlation *k, const REAL *a, const REAL *position, const REAL *y, const REAL *x,
                           REAL *rest, REAL *dw, REAL *db, Py_ssize_t part, Py_ssize_t parts)
{
    const Py_ssize_t pool = k->pool_h ? k->pool_h * k->pool_w : 1;
    const Py_ssize_t x_plane = k->xh * k->xw * BLOCK, a_plane = k->ah * k->aw / pool * BLOCK;
    const int place = pool == 1 && k->ah == 1 && k->aw == 1 && k->kh == k->xh && k->kw == k->xw && k->dilation_h == 1 &&
                      k->dilation_w == 1 && !k->padding_top && !k->padding_left;
    /* of 3 blocks one thread would have 2 */
    const int halves = rest && !place && k->blocks > 1 && (k->blocks % 2 == 0 || k->blocks > 6);
    if (parts < 0) {
        if (halves) F(add_rest)(k, rest, dw, db, part, -parts);
        return;
    }
    if (pool * LANE_ROWS > UNPOOL_MOST) return; /* no Program has such windows, unless somebody has tampered with it */
    if (place) {
        const Py_ssize_t channels = k->groups * (k->sums_of_x ? k->x_channels : k->a_channels);
        const Py_ssize_t plane = k->sums_of_x ? x_plane : a_plane;
        for (Py_ssize_t c = piece(channels, part, parts); db && c < piece(channels, part + 1, parts); c++)
            db[c] = F(channel_sum)((k->sums_of_x ? x : a) + c * plane, channels * plane, k->blocks, plane / BLOCK);
        F(correlate_place)(k, a, x, dw, part, parts);
        return;
    }
    if (!halves) {
        F(correlate_tiles)(k, a, position, y, x, dw, db, 0, 1, part, parts);
        return;
    }
    const Py_ssize_t begin = k->blocks / 2, a_at = begin * k->groups * k->a_channels * a_plane;
    Correlation some = *k;
    some.blocks = begin;
    F(correlate_tiles)(&some, a, position, y, x, dw, db, 0, 2, part, parts);
    some.blocks = k->blocks - begin;
    F(correlate_tiles)(&some, a + a_at, position ? position + a_at : 0, y ? y + a_at : 0,
                       x + begin * k->groups * k->x_channels * x_plane, rest,
                       db ? rest + k->groups * k->a_channels * k->dw_a : 0, 1, 2, part, parts);
    if (parts == 1) F(add_rest)(k, rest, dw, db, 0, 1);
}
