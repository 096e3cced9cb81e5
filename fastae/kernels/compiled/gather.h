/* Gathers over images in blocks of rows (lanes.h): convolutions and the gradients of their inputs, with a max-pooling of
 * what they make where that is asked for. */

/* R channels x T places in registers, `times` times, with `relu` ReLU of them, or times its derivative in `saved`, laid as
 * y. Steps are in elements: x_* in the source and w_* in the weight from one channel, kernel row and kernel column to the
 * next, x_t from place to place. */
INLINE void F(gather_tile)(const int R, const int T, Py_ssize_t times, const REAL *x, Py_ssize_t x_c, Py_ssize_t x_h,
                           Py_ssize_t x_w, Py_ssize_t x_t, const REAL *w, Py_ssize_t w_r, Py_ssize_t w_c, Py_ssize_t w_h,
                           Py_ssize_t w_w, Py_ssize_t channels, Py_ssize_t kh, Py_ssize_t kw, const REAL *bias, int relu,
                           const REAL *saved, REAL *y, Py_ssize_t y_r, Py_ssize_t y_t)
{
    for (Py_ssize_t i = 0; i < times * BLOCK; i += GATHER_PARTS * LANES) {
        V acc[GATHER_ROWS][12];
        const REAL *source = x + i / BLOCK * T * x_t + i % BLOCK;
        const Py_ssize_t at = i / BLOCK * T * y_t + i % BLOCK;
        UNROLL for (int r = 0; r < R; r++)
        {
            const V first = bias ? F(splat)(bias[r]) : (V){0};
            UNROLL for (int t = 0; t < T * GATHER_PARTS; t++) acc[r][t] = first;
        }
        for (Py_ssize_t c = 0; c < channels; c++)
            for (Py_ssize_t u = 0; u < kh; u++) {
                const REAL *from = source + c * x_c + u * x_h;
                const REAL *by = w + c * w_c + u * w_h;
                for (Py_ssize_t v = 0; v < kw; v++) {
                    V xt[12];
                    UNROLL for (int t = 0; t < T * GATHER_PARTS; t++)
                        xt[t] = F(load)(from + t / GATHER_PARTS * x_t + t % GATHER_PARTS * LANES);
                    UNROLL for (int r = 0; r < R; r++)
                    {
                        const V wr = F(splat)(by[r * w_r]);
                        UNROLL for (int t = 0; t < T * GATHER_PARTS; t++) acc[r][t] += wr * xt[t];
                    }
                    from += x_w;
                    by += w_w;
                }
            }
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < T * GATHER_PARTS; t++)
        {
            const Py_ssize_t to = at + r * y_r + t / GATHER_PARTS * y_t + t % GATHER_PARTS * LANES;
            V sum = acc[r][t] + 0; /* never -0: with cells.h products with zeros are added */
            if (relu) sum = saved ? F(slope)(sum, F(load)(saved + to), RELU) : F(relu)(sum);
            F(store)(y + to, sum);
        }
    }
}

#define GATHER_TILE(R, T) \
    case (R) * 16 + (T): \
        F(gather_tile)(R, T, times, x, x_c, x_h, x_w, x_t, w, g->w_out, g->w_in, w_h, w_w, g->channels, rows->count, \
                       columns.count, bias, relu, saved, y, y_r, y_t); \
        break;
#if GATHER_PARTS > 1
#define GATHER_TILES(TILE) \
    TILE(1, 1) TILE(1, 2) TILE(1, 3) TILE(1, 4) TILE(1, 5) TILE(1, 6) TILE(2, 1) TILE(2, 2) TILE(2, 3) \
    TILE(3, 1) TILE(3, 2) TILE(4, 1) TILE(5, 1) TILE(6, 1)
#else
#define GATHER_TILES LANE_TILES
#endif

/* Most places beside R channels in a tile. */
#define GATHER_BESIDE(R) (LANE_TILE / GATHER_PARTS / (R) < 8 ? LANE_TILE / GATHER_PARTS / (R) : 8)

/* `count` places from columns.source on, of one phase: places of the output that meet the same taps. */
STATIC void F(gather_places)(const Gather *g, const Taps *rows, Taps columns, Py_ssize_t count, const REAL *source,
                             const REAL *weight, const REAL *bias, int relu, const REAL *saved, Py_ssize_t channels,
                             Py_ssize_t x_t, REAL *y, Py_ssize_t y_r, Py_ssize_t y_t)
{
    const Py_ssize_t x_c = g->h.size * g->w.size * BLOCK;
    const Py_ssize_t x_h = rows->source_step * g->w.size * BLOCK, x_w = columns.source_step * BLOCK;
    const Py_ssize_t w_h = rows->step * g->w_h, w_w = columns.step * g->w_w;
    const REAL *x = source + (rows->source * g->w.size + columns.source) * BLOCK;
    const REAL *w = weight + rows->first * g->w_h + columns.first * g->w_w;
    if (count < 1) return;
    /* even tiles: the first of them one place larger than the others, where they do not all have as many */
    const Py_ssize_t tiles = count > 1 ? (count + GATHER_BESIDE(channels) - 1) / GATHER_BESIDE(channels) : 1;
    const Py_ssize_t places = count > 1 ? count / tiles : 1;
    const Py_ssize_t more = count - places * tiles;
    for (int larger = more > 0; larger >= 0; larger--) {
        const Py_ssize_t times = larger ? more : tiles - more;
        switch (channels * 16 + places + larger) { GATHER_TILES(GATHER_TILE) }
        x += times * (places + larger) * x_t;
        y += times * (places + larger) * y_t;
        if (saved) saved += times * (places + larger) * y_t;
    }
}

/* Places begin to stop of a phase of one axis, for elements of the other axis that are given; y is where place 0 of the
 * phase goes. Places with all their taps inside come in tiles, the others one by one. */
STATIC void F(gather_line)(const Gather *g, const Phase *phase, Py_ssize_t begin, Py_ssize_t stop, int down, Taps other,
                           const REAL *source, const REAL *weight, const REAL *bias, int relu, const REAL *saved,
                           Py_ssize_t channels, REAL *y, Py_ssize_t y_r, Py_ssize_t y_t)
{
    const Py_ssize_t x_t = phase->step * (down ? g->w.size : 1) * BLOCK;
    for (Py_ssize_t t = begin, count; t < stop; t += count) {
        Taps taps = phase->taps;
        taps.source += t * phase->step;
        count = t >= phase->from && t < phase->to ? phase->to - t : 1;
        if (t < phase->from || t >= phase->to) taps = inside(taps, down ? g->h.size : g->w.size);
        F(gather_places)(g, down ? &taps : &other, down ? other : taps, count, source, weight, bias, relu,
                         saved ? saved + t * y_t : 0, channels, x_t, y + t * y_t, y_r, y_t);
    }
}

/* Rows `row` to `row_end` of the output, places first to end, for `channels` <= GATHER_ROWS channels; y is where the first
 * place goes, rows are y_h apart. Tiles lie along the rows, and down the columns where not all taps are inside. */
STATIC void F(gather_rows)(const Gather *g, Py_ssize_t row, Py_ssize_t row_end, Py_ssize_t first, Py_ssize_t end,
                           const REAL *source, const REAL *weight, const REAL *bias, int relu, const REAL *saved,
                           Py_ssize_t channels, REAL *y, Py_ssize_t y_r, Py_ssize_t y_h)
{
    for (Py_ssize_t i = 0; i < least(g->w.up, end); i++) { /* a stride may be larger than the image */
        const Phase columns = phase_of(&g->w, i, first, end);
        for (Py_ssize_t p = row; p < row_end && columns.to > columns.from; p++) {
            const Py_ssize_t at = (i - first) * BLOCK + (p - row) * y_h;
            F(gather_line)(g, &columns, columns.from, columns.to, 0, inside(taps_of(&g->h, p), g->h.size), source, weight,
                           bias, relu, saved ? saved + at : 0, channels, y + at, y_r, g->w.up * BLOCK);
        }
        for (Py_ssize_t t = columns.begin; t < columns.stop; t++) {
            if (t >= columns.from && t < columns.to) continue;
            Taps taps = columns.taps;
            taps.source += t * columns.step;
            taps = inside(taps, g->w.size);
            for (Py_ssize_t j = 0; j < least(g->h.up, row_end); j++) {
                const Phase rows = phase_of(&g->h, j, row, row_end);
                const Py_ssize_t at = (i + t * g->w.up - first) * BLOCK + (j - row) * y_h;
                F(gather_line)(g, &rows, rows.begin, rows.stop, 1, taps, source, weight, bias, relu, saved ? saved + at : 0,
                               channels, y + at, y_r, g->h.up * y_h);
            }
        }
    }
}

/* How many outputs a tile of a gather of one place has, which has blocks of rows beside them: as many as need the fewest
 * loads for a product. */
INLINE Py_ssize_t F(place_rows)(Py_ssize_t blocks)
{
    Py_ssize_t best = GATHER_ROWS, loads = 0;
    for (Py_ssize_t rows = GATHER_ROWS; rows >= GATHER_ROWS / 2; rows--) {
        const Py_ssize_t tiles = (blocks + GATHER_BESIDE(rows) - 1) / GATHER_BESIDE(rows);
        const Py_ssize_t now = tiles * rows + blocks * GATHER_PARTS;
        if (rows == GATHER_ROWS || now * best < loads * rows) {
            best = rows;
            loads = now;
        }
    }
    return best;
}

/* A gather whose source and output have one place: a product of matrices, in which blocks of rows lie side by side in a
 * tile, for outputs `first` to `end` of all groups. */
STATIC void F(gather_place)(const Gather *g, const REAL *x, const REAL *w, const REAL *bias, int relu, const REAL *saved,
                            REAL *y, Py_ssize_t group, Py_ssize_t first, Py_ssize_t end)
{
    /* channels take the place of the columns of a kernel, whose loop is the innermost */
    const Taps one = {0, 1, 1, 0, 1}, all = {0, 1, g->channels, 0, 1};
    Gather line = *g;
    line.channels = 1;
    line.w_w = g->w_in;
    const Py_ssize_t x_t = g->groups * g->channels * BLOCK, y_t = g->groups * g->outputs * BLOCK;
    const Py_ssize_t count = end - first, output = group * g->outputs + first;
    const Py_ssize_t at = output * BLOCK;
    REAL biases[GATHER_ROWS];
    for (Py_ssize_t r = 0; bias && r < count; r++) biases[r] = bias[(output + r) / g->places];
    F(gather_places)(&line, &one, all, g->blocks, x + group * g->channels * BLOCK, w + group * g->w_group + first * g->w_out,
                     bias ? biases : 0, relu, saved ? saved + at : 0, count, x_t, y + at, BLOCK, y_t);
}

/* -- with a max-pooling ---------------------------------------------------------------------------------------------- */

/* The largest of *old and one more number, and where it is; a NaN is the largest. */
INLINE void F(pool_number)(V new, REAL number, V *old, V *at)
{
    const VI take = ~(new <= *old) & (*old == *old);
    *old = F(pick)(take, new, *old);
    *at = F(pick)(take, F(splat)(number), *at);
}

/* The same of rows x columns numbers. */
INLINE void F(pool_window)(const Py_ssize_t rows, const Py_ssize_t columns, const REAL *from, Py_ssize_t row, REAL number,
                           Py_ssize_t pool_w, V *old, V *at)
{
    for (Py_ssize_t u = 0; u < rows; u++)
        for (Py_ssize_t i = 0; i < columns; i++)
            F(pool_number)(F(load)(from + u * row + i * BLOCK), number + (REAL)(u * pool_w + i), old, at);
}

/* R channels of `count` windows of 2 x 2 places, from element `at` of x on: no place leaves the registers. Steps as in
 * gather_tile; x_d is from a place to the one below. Not `whole`, the places have the taps of their two rows and columns. */
INLINE void F(pool_tile)(const int R, const int whole, const Taps *rows, const Taps *columns, Py_ssize_t count, const REAL *x,
                         Py_ssize_t at, Py_ssize_t x_c, Py_ssize_t x_h, Py_ssize_t x_w, Py_ssize_t x_t, Py_ssize_t x_d,
                         const REAL *w, Py_ssize_t w_r, Py_ssize_t w_c, Py_ssize_t w_h, Py_ssize_t w_w, Py_ssize_t channels,
                         Py_ssize_t kh, Py_ssize_t kw, const REAL *bias, int relu, REAL *y, REAL *position, Py_ssize_t y_r)
{
    for (Py_ssize_t i = 0; i < count * BLOCK; i += LANES) {
        V acc[POOL_ROWS][4];
        const Py_ssize_t source = at + i / BLOCK * 2 * x_t + i % BLOCK;
        UNROLL for (int r = 0; r < R; r++)
        {
            const V first = bias ? F(splat)(bias[r]) : (V){0};
            UNROLL for (int t = 0; t < 4; t++) acc[r][t] = first;
        }
        for (Py_ssize_t c = 0; c < channels; c++)
            for (Py_ssize_t u = 0; u < kh; u++) {
                Py_ssize_t from = source + c * x_c + u * x_h;
                const REAL *by = w + c * w_c + u * w_h;
                for (Py_ssize_t v = 0; v < kw; v++) {
                    V wr[POOL_ROWS];
                    UNROLL for (int r = 0; r < R; r++) wr[r] = F(splat)(by[r * w_r]);
                    UNROLL for (int t = 0; t < 4; t++)
                    {
                        const Taps *down = rows + t / 2, *right = columns + t % 2;
                        if (!whole && (u < down->first || u >= down->first + down->count || v < right->first ||
                                       v >= right->first + right->count))
                            continue;
                        const V xt = F(load)(x + from + t / 2 * x_d + t % 2 * x_t);
                        UNROLL for (int r = 0; r < R; r++) acc[r][t] += wr[r] * xt;
                    }
                    from += x_w;
                    by += w_w;
                }
            }
        UNROLL for (int r = 0; r < R; r++)
        {
            V largest = acc[r][0] + 0, place = {0};
            if (relu) largest = F(relu)(largest);
            UNROLL for (int t = 1; t < 4; t++) F(pool_number)(acc[r][t] + 0, (REAL)t, &largest, &place);
            F(store)(y + r * y_r + i, largest);
            if (position) F(store)(position + r * y_r + i, place);
        }
    }
}

/* Windows q to q_end of 2 x 2 places of a row of windows: all with all their taps, or a single one. */
STATIC void F(pool_places)(const Gather *g, Py_ssize_t row, Py_ssize_t q, Py_ssize_t q_end, int whole, const REAL *source,
                           const REAL *weight, const REAL *bias, int relu, Py_ssize_t channels, REAL *y, REAL *position,
                           Py_ssize_t y_r)
{
    const Py_ssize_t x_c = g->h.size * g->w.size * BLOCK, x_h = g->h.dilation * g->w.size * BLOCK;
    const Py_ssize_t x_w = g->w.dilation * BLOCK, x_t = g->w.down * BLOCK, x_d = g->h.down * g->w.size * BLOCK;
    const Py_ssize_t top = 2 * row * g->h.down + g->h.offset, left = 2 * q * g->w.down + g->w.offset;
    const Py_ssize_t at = (top * g->w.size + left) * BLOCK;
    Taps rows[2], columns[2];
    for (int t = 0; t < 2; t++) {
        rows[t] = inside(taps_of(&g->h, 2 * row + t), g->h.size);
        columns[t] = inside(taps_of(&g->w, 2 * q + t), g->w.size);
    }
    for (Py_ssize_t r = 0, some; r < channels; r += some) {
        const REAL *w = weight + r * g->w_out, *b = bias ? bias + r : 0;
        REAL *to = y + r * y_r + q * BLOCK, *place = position ? position + r * y_r + q * BLOCK : 0;
        some = least(POOL_ROWS, channels - r);
        switch (2 * some + whole) {
#define POOL_TILE(R, WHOLE) \
    case 2 * (R) + (WHOLE): \
        F(pool_tile)(R, WHOLE, rows, columns, q_end - q, source, at, x_c, x_h, x_w, x_t, x_d, w, g->w_out, g->w_in, g->w_h, \
                     g->w_w, g->channels, g->h.kernel, g->w.kernel, b, relu, to, place, y_r); \
        break;
            POOL_TILE(1, 0) POOL_TILE(1, 1) POOL_TILE(2, 0) POOL_TILE(2, 1)
#if POOL_ROWS > 2
            POOL_TILE(3, 0) POOL_TILE(3, 1)
#endif
#if POOL_ROWS > 3
            POOL_TILE(4, 0) POOL_TILE(4, 1)
#endif
#undef POOL_TILE
        }
    }
}

#define POOL_MOST 512 /* vectors of a gather that wait to be pooled: they stay in the first cache */

/* One row of a max-pooling of windows side by side, over rows of a gather that are made as they are needed: all rows of a
 * window at once, or one after the other where its rows are many. */
STATIC void F(gather_pool)(const Gather *g, Py_ssize_t row, Py_ssize_t pool_h, Py_ssize_t pool_w, Py_ssize_t width,
                           const REAL *source, const REAL *weight, const REAL *bias, Py_ssize_t channels,
                               int activation, REAL *y, REAL *position, Py_ssize_t y_r)
{
    REAL made[POOL_MOST * BLOCK];
    const Py_ssize_t together = channels * pool_h * pool_w <= POOL_MOST ? pool_h : 1;
    const Py_ssize_t most_columns = most(POOL_MOST / (channels * together) / pool_w, 1) * pool_w;
    const Py_ssize_t step = least(most_columns, POOL_MOST / channels); /* a window wider than that comes in pieces */
    for (Py_ssize_t top = 0; top < pool_h; top += together)
        for (Py_ssize_t first = 0; first < width * pool_w; first += step) {
            const Py_ssize_t columns = least(step, width * pool_w - first);
            F(gather_rows)(g, row * pool_h + top, row * pool_h + top + together, first, first + columns, source, weight,
                           bias, 0, 0, channels, made, together * columns * BLOCK, columns * BLOCK);
            if (activation != LINEAR && activation != RELU)
                F(map_activate)(made, made, 0, 1, channels * together * columns * BLOCK, activation);
            for (Py_ssize_t r = 0; r < channels; r++)
                for (Py_ssize_t j = 0, v; j < columns; j += v) {
                    const Py_ssize_t q = (first + j) / pool_w, left = (first + j) % pool_w;
                    REAL *value = y + r * y_r + q * BLOCK, *place = position ? position + r * y_r + q * BLOCK : 0;
                    v = least(pool_w - left, columns - j);
                    for (Py_ssize_t part = 0; part < BLOCK; part += LANES) {
                        const REAL *from = made + (r * together * columns + j) * BLOCK + part;
                        const int begun = top || left;
                        /* the largest number and 0: ReLU is asked of the first alone */
                        V old = F(load)(begun ? value + part : from);
                        if (!begun && activation == RELU) old = F(relu)(old);
                        V at = begun && place ? F(load)(place + part) : (V){0};
                        const REAL number = (REAL)(top * pool_w + left);
                        if (together == 2 && v == 2)
                            F(pool_window)(2, 2, from, columns * BLOCK, number, pool_w, &old, &at);
                        else
                            F(pool_window)(together, v, from, columns * BLOCK, number, pool_w, &old, &at);
                        F(store)(value + part, old);
                        if (place) F(store)(place + part, at);
                    }
                }
        }
}

/* One row of a max-pooling of windows side by side. Windows of 2 x 2 places are made in registers where most of them have
 * all their taps and the activation does not go over what is made; of many channels only with registers for larger tiles,
 * for there the products are what counts. */
STATIC void F(gather_pool_row)(const Gather *g, Py_ssize_t row, Py_ssize_t pool_h, Py_ssize_t pool_w, Py_ssize_t height,
                               Py_ssize_t width, const REAL *source, const REAL *weight, const REAL *bias,
                               Py_ssize_t channels, int activation, REAL *y, REAL *position, Py_ssize_t y_r)
{
    const Phase rows = phase_of(&g->h, 0, 0, 2 * height), columns = phase_of(&g->w, 0, 0, 2 * width);
    const Py_ssize_t top = (rows.from + 1) / 2, bottom = rows.to / 2, left = (columns.from + 1) / 2, right = columns.to / 2;
    if (pool_h != 2 || pool_w != 2 || (activation != LINEAR && activation != RELU) || g->channels > POOL_CHANNELS ||
        2 * most(bottom - top, 0) * most(right - left, 0) < height * width) {
        F(gather_pool)(g, row, pool_h, pool_w, width, source, weight, bias, channels, activation, y, position, y_r);
        return;
    }
    for (Py_ssize_t q = 0, count; q < width; q += count) {
        const int whole = row >= top && row < bottom && q >= left && q < right;
        count = whole ? right - q : 1;
        F(pool_places)(g, row, q, q + count, whole, source, weight, bias, activation == RELU, channels, y, position, y_r);
    }
}

/* y times the derivative of `activation` in `saved` where that is given, f(y) where not. */
STATIC void F(go_over)(const REAL *saved, REAL *y, Py_ssize_t size, int activation)
{
    if (saved)
        F(map_slope)(y, saved, y, size, activation);
    else
        F(map_activate)(y, y, 0, 1, size, activation);
}

/* This part's share of a gather of one place from one, a product of matrices: y is multiplied by the derivative of
 * `activation` in `saved` where that is given, and is f(y) of it where not. */
STATIC void F(gather_product)(const Gather *g, const REAL *x, const REAL *w, const REAL *bias, const REAL *saved,
                              int activation, REAL *y, Py_ssize_t part, Py_ssize_t parts)
{
    const int relu = activation == RELU, passes = activation != LINEAR && !relu; /* others go over what is made */
    const Py_ssize_t pieces = (g->outputs - 1) / F(place_rows)(g->blocks) + 1, stop = g->groups * pieces;
    for (Py_ssize_t i = piece(stop, part, parts); i < piece(stop, part + 1, parts); i++) {
        const Py_ssize_t group = i / pieces, first = piece(g->outputs, i % pieces, pieces);
        const Py_ssize_t end = piece(g->outputs, i % pieces + 1, pieces);
        F(gather_place)(g, x, w, bias, relu, saved, y, group, first, end);
        for (Py_ssize_t block = 0; passes && block < g->blocks; block++) {
            const Py_ssize_t at = ((block * g->groups + group) * g->outputs + first) * BLOCK;
            F(go_over)(saved ? saved + at : 0, y + at, (end - first) * BLOCK, activation);
        }
    }
}

/* This part's share of a gather of blocks of images, tile by tile. With `pool_h` > 0 windows of that size are pooled as soon
 * as their rows are there, and `position` may be asked for; else as gather_product. */
STATIC void F(gather_blocks)(const Gather *g, const REAL *x, const REAL *w, const REAL *bias, const REAL *saved,
                             int activation, Py_ssize_t pool_h, Py_ssize_t pool_w, REAL *y, REAL *position,
                             Py_ssize_t part, Py_ssize_t parts)
{
    const Py_ssize_t height = pool_h ? g->oh / pool_h : g->oh, width = pool_h ? g->ow / pool_w : g->ow;
    const Py_ssize_t x_plane = g->h.size * g->w.size * BLOCK, y_plane = height * width * BLOCK;
    const Py_ssize_t tiles = (g->outputs + GATHER_ROWS - 1) / GATHER_ROWS, bands = g->groups * tiles;
    const Py_ssize_t all = g->blocks * bands * height, stop = piece(all, part + 1, parts);
    const int relu = activation == RELU, passes = activation != LINEAR && !relu;
    /* The weights of a tile, where they are larger than the source they meet, are used for all blocks before the next. */
    const int weights_stay = GATHER_ROWS * g->w.kernel > g->w.size * BLOCK;
    for (Py_ssize_t i = piece(all, part, parts), rows; i < stop; i += rows) {
        const Py_ssize_t block = weights_stay ? i % g->blocks : i / (bands * height);
        const Py_ssize_t rest = weights_stay ? i / g->blocks : i % (bands * height);
        const Py_ssize_t row = rest % height, group = rest / height / tiles, tile = rest / height % tiles;
        const Py_ssize_t first = piece(g->outputs, tile, tiles), end = piece(g->outputs, tile + 1, tiles);
        const Py_ssize_t output = group * g->outputs + first;
        const REAL *source = x + (block * g->groups + group) * g->channels * x_plane;
        const REAL *weight = w + group * g->w_group + first * g->w_out, *from = bias ? bias + output : 0;
        const Py_ssize_t at = (block * g->groups * g->outputs + output) * y_plane + row * width * BLOCK;
        rows = weights_stay || pool_h ? 1 : least(stop - i, height - row);
        if (passes) rows = least(rows, 2 * LANE_BESIDE(end - first));
        if (pool_h) {
            F(gather_pool_row)(g, row, pool_h, pool_w, height, width, source, weight, from, end - first, activation, y + at,
                               position ? position + at : 0, y_plane);
            continue;
        }
        F(gather_rows)(g, row, row + rows, 0, width, source, weight, from, relu, saved ? saved + at : 0, end - first, y + at,
                       y_plane, width * BLOCK);
        for (Py_ssize_t r = 0; passes && r < end - first; r++) {
            const Py_ssize_t made = at + r * y_plane;
            F(go_over)(saved ? saved + made : 0, y + made, rows * width * BLOCK, activation);
        }
    }
}
