/* Images with several rows of the batch side by side: [row / BLOCK][channel][height][width][BLOCK].
 *
 * A vector holds one element of as many images, so every lane is filled whatever the number of channels and the size
 * of the image, every weight is a scalar for all lanes, and no lane ever needs its neighbour. A block is 64 bytes, one
 * vector of AVX-512, two of AVX2, four of SSE2 and NEON: the layout is the same for all of them.
 *
 *   gather        y[o] = bias[o] + sum of w x over what an output element sees: a convolution, and with the axes turned
 *                 round the gradient of its input, which is a transposed convolution (only phases that meet elements)
 *   correlate     dw = sum over images and places of a x; the lanes are added up at the end
 *
 * Every number is summed in an order that depends on the shape of the layer alone.
 */
#define BLOCK ((Py_ssize_t)(64 / sizeof(REAL)))

#ifndef LANE_TILE
#if TILE_COLUMNS > 3
#define LANE_TILE 24    /* most accumulators */
#define LANE_ROWS 8     /* most channels of a tile of sums over places */
#define GATHER_ROWS 8   /* and of one of a gather, */
#define GATHER_PARTS 1  /* which has so many vectors of a place */
#define POOL_ROWS 4     /* and of one with windows of 2 x 2 places */
#elif defined(__AVX2__)
#define LANE_TILE 12
#define LANE_ROWS 4
#define GATHER_ROWS 6
#define GATHER_PARTS 2  /* both halves of a line while it is near */
#define POOL_ROWS 3
#else
#define LANE_TILE 12
#define LANE_ROWS 4
#define GATHER_ROWS 4
#define GATHER_PARTS 1
#define POOL_ROWS 2
#endif
#endif

#ifndef FASTAE_AXIS
#define FASTAE_AXIS
/* Keeps a vector in its register: GCC would load it anew for every product it is used in, and loads are what is short. */
#if defined(__x86_64__)
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#elif defined(__aarch64__)
#define IN_REGISTER(v) __asm__("" : "+w"(v))
#else
#define IN_REGISTER(v) (void)0
#endif

/* One axis of a gather: element u of the kernel meets output place p at source place (p down + u dilation + offset) / up,
 * where that is whole. One of up and down is 1. */
typedef struct {
    Py_ssize_t up, down, dilation, offset;
    Py_ssize_t size;   /* of the source */
    Py_ssize_t kernel;
} Axis;

/* Elements of the kernel that meet a place: first, first + step, ..., with the source places they meet. */
typedef struct {
    Py_ssize_t first, step, count, source, source_step;
} Taps;

static inline Py_ssize_t common_divisor(Py_ssize_t a, Py_ssize_t b)
{
    while (b) {
        const Py_ssize_t rest = a % b;
        a = b;
        b = rest;
    }
    return a < 0 ? -a : a;
}

/* All taps of a place, those beyond the edges of the source too. */
static inline Taps taps_of(const Axis *axis, Py_ssize_t place)
{
    const Py_ssize_t base = place * axis->down + axis->offset;
    Taps taps = {0, axis->up / common_divisor(axis->up, axis->dilation), 0, 0, 0};
    taps.source_step = axis->dilation * taps.step / axis->up;
    for (Py_ssize_t u = 0; u < taps.step && u < axis->kernel; u++)
        if ((base + u * axis->dilation) % axis->up == 0) {
            taps.first = u;
            taps.count = (axis->kernel - 1 - u) / taps.step + 1;
            taps.source = (base + u * axis->dilation) / axis->up;
            break;
        }
    return taps;
}

/* Those of them that are inside the source. */
static inline Taps inside(Taps taps, Py_ssize_t size)
{
    while (taps.count > 0 && (taps.source < 0 || taps.source >= size)) {
        taps.first += taps.step;
        taps.source += taps.source_step;
        taps.count--;
    }
    while (taps.count > 0) {
        const Py_ssize_t last = taps.source + (taps.count - 1) * taps.source_step;
        if (last >= 0 && last < size) break;
        taps.count--;
    }
    return taps;
}

static inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
static inline Py_ssize_t least(Py_ssize_t a, Py_ssize_t b) { return a < b ? a : b; }
static inline Py_ssize_t most(Py_ssize_t a, Py_ssize_t b) { return a > b ? a : b; }

/* Places first to end of an axis that meet the same elements: those from begin to before stop of them (counted within the
 * phase), of which from `from` to before `to` all elements are inside. `step` is from place to place in the source. */
typedef struct {
    Taps taps;
    Py_ssize_t step, begin, stop, from, to;
} Phase;

static inline Phase phase_of(const Axis *axis, Py_ssize_t phase, Py_ssize_t first, Py_ssize_t end)
{
    Phase p = {taps_of(axis, phase), axis->up > 1 ? 1 : axis->down, 0, 0, 0, 0};
    const Py_ssize_t last = p.taps.source + (p.taps.count - 1) * p.taps.source_step, furthest = most(p.taps.source, last);
    p.begin = most(ceil_div(first - phase, axis->up), 0);
    p.stop = ceil_div(end - phase, axis->up);
    p.from = least(most(ceil_div(-least(p.taps.source, last), p.step), p.begin), p.stop);
    p.to = most(least(axis->size > furthest ? (axis->size - 1 - furthest) / p.step + 1 : 0, p.stop), p.from);
    return p;
}

/* What a gather reads and makes, in each of `groups` blocks of channels. */
typedef struct {
    Axis h, w;
    Py_ssize_t blocks, groups, channels, outputs, oh, ow; /* blocks of rows; channels and outputs of a group */
    Py_ssize_t w_group, w_out, w_in, w_h, w_w;            /* steps in the weight */
    Py_ssize_t places;                                    /* outputs that share a bias; 1 but for a source of one place */
} Gather;

/* What a correlation reads and makes: places of a are windows of x. */
typedef struct {
    Py_ssize_t blocks, groups, a_channels, x_channels; /* channels of a group */
    Py_ssize_t ah, aw, xh, xw, kh, kw;
    Py_ssize_t stride_h, stride_w, padding_top, padding_left, dilation_h, dilation_w;
    Py_ssize_t dw_a, dw_x, dw_group; /* steps in dw */
    int sums_of_x;                   /* whether x is the gradient of the output, not a */
    Py_ssize_t pool_h, pool_w;       /* 0, or the windows of a max-pooling whose gradient stands for a */
    int activation;                  /* whose slope is asked for then */
} Correlation;

typedef struct {
    Py_ssize_t ih, iw, oh, ow, kernel_h, kernel_w, stride_h, stride_w, padding_top, padding_left;
} Pooling;

/* Where the k-th of `pieces` even pieces begins. */
static inline Py_ssize_t piece(Py_ssize_t count, Py_ssize_t k, Py_ssize_t pieces) { return count * k / pieces; }

/* Windows whose element u is inside the source: from *first to before *end. */
static inline void windows_inside(Py_ssize_t u, Py_ssize_t stride, Py_ssize_t padding, Py_ssize_t dilation,
                                     Py_ssize_t size, Py_ssize_t windows, Py_ssize_t *first, Py_ssize_t *end)
{
    const Py_ssize_t start = u * dilation - padding;
    *first = least(start < 0 ? ceil_div(-start, stride) : 0, windows);
    *end = most(start < size ? least((size - 1 - start) / stride + 1, windows) : 0, *first);
}
#endif

/* -- layout -------------------------------------------------------------------------------------------------------- */

/* Two vectors change the high half of each block of the one for the low half of that block of the other. */
#define SWAP(name, low, high) \
    INLINE void F(name)(V *a, V *b) \
    { \
        const V lows = low, highs = high; \
        *a = lows; \
        *b = highs; \
    }
#if VECTOR_BYTES * 8 / REAL_BITS == 16
SWAP(swap8, SHUFFLE(*a, *b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
     SHUFFLE(*a, *b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
SWAP(swap4, SHUFFLE(*a, *b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
     SHUFFLE(*a, *b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
SWAP(swap2, SHUFFLE(*a, *b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
     SHUFFLE(*a, *b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
SWAP(swap1, SHUFFLE(*a, *b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
     SHUFFLE(*a, *b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
#elif VECTOR_BYTES * 8 / REAL_BITS == 8
SWAP(swap4, SHUFFLE(*a, *b, 0, 1, 2, 3, 8, 9, 10, 11),
     SHUFFLE(*a, *b, 4, 5, 6, 7, 12, 13, 14, 15))
SWAP(swap2, SHUFFLE(*a, *b, 0, 1, 8, 9, 4, 5, 12, 13),
     SHUFFLE(*a, *b, 2, 3, 10, 11, 6, 7, 14, 15))
SWAP(swap1, SHUFFLE(*a, *b, 0, 8, 2, 10, 4, 12, 6, 14),
     SHUFFLE(*a, *b, 1, 9, 3, 11, 5, 13, 7, 15))
#elif VECTOR_BYTES * 8 / REAL_BITS == 4
SWAP(swap2, SHUFFLE(*a, *b, 0, 1, 4, 5),
     SHUFFLE(*a, *b, 2, 3, 6, 7))
SWAP(swap1, SHUFFLE(*a, *b, 0, 4, 2, 6),
     SHUFFLE(*a, *b, 1, 5, 3, 7))
#else
SWAP(swap1, SHUFFLE(*a, *b, 0, 2),
     SHUFFLE(*a, *b, 1, 3))
#endif
#undef SWAP

/* Rows become columns: lane i of a[j] changes places with lane j of a[i]. */
INLINE void F(transpose)(V *a)
{
#if VECTOR_BYTES * 8 / REAL_BITS >= 16
    UNROLL for (int i = 0; i < 8; i++) F(swap8)(a + i, a + i + 8);
#endif
#if VECTOR_BYTES * 8 / REAL_BITS >= 8
    UNROLL for (int i = 0; i < LANES; i++) if (!(i & 4)) F(swap4)(a + i, a + i + 4);
#endif
#if VECTOR_BYTES * 8 / REAL_BITS >= 4
    UNROLL for (int i = 0; i < LANES; i++) if (!(i & 2)) F(swap2)(a + i, a + i + 2);
#endif
    UNROLL for (int i = 0; i < LANES; i++) if (!(i & 1)) F(swap1)(a + i, a + i + 1);
}

/* y[j][i] = x[i][j] for `rows` <= LANES rows and `columns` <= LANES columns; rows that are not there are zeros in y. */
INLINE void F(transpose_square)(const REAL *x, Py_ssize_t x_row, Py_ssize_t rows, Py_ssize_t columns, REAL *y,
                                Py_ssize_t y_row, Py_ssize_t y_columns)
{
    V a[LANES];
    if (rows >= LANES && columns >= LANES && y_columns >= LANES) {
        UNROLL for (int i = 0; i < LANES; i++) a[i] = F(load)(x + i * x_row);
        F(transpose)(a);
        UNROLL for (int i = 0; i < LANES; i++) F(store)(y + i * y_row, a[i]);
        return;
    }
    UNROLL for (int i = 0; i < LANES; i++) a[i] = i < rows ? F(load_part)(x + i * x_row, columns) : (V){0};
    F(transpose)(a);
    UNROLL for (int i = 0; i < LANES; i++) if (i < columns) F(store_part)(y + i * y_row, a[i], y_columns);
}

/* `rows` <= BLOCK rows of `size` numbers, `x_row` apart, side by side; zeros for the rows that are not there. */
STATIC void F(interleave)(const REAL *x, Py_ssize_t x_row, Py_ssize_t rows, Py_ssize_t size, REAL *y)
{
    for (Py_ssize_t i = 0; i < size; i += LANES)
        for (Py_ssize_t l = 0; l < BLOCK; l += LANES)
            F(transpose_square)(x + l * x_row + i, x_row, rows - l, size - i, y + i * BLOCK + l, BLOCK, LANES);
}

STATIC void F(deinterleave)(const REAL *x, Py_ssize_t rows, Py_ssize_t size, REAL *y, Py_ssize_t y_row)
{
    for (Py_ssize_t l = 0; l < rows; l += LANES)
        for (Py_ssize_t i = 0; i < size; i += LANES)
            F(transpose_square)(x + i * BLOCK + l, BLOCK, size - i, least(rows - l, LANES), y + l * y_row + i, y_row,
                                size - i);
}

/* -- gather -------------------------------------------------------------------------------------------------------- */

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
            V sum = acc[r][t];
            if (relu) sum = saved ? F(slope)(sum, F(load)(saved + to), RELU) : F(activate)(sum, RELU);
            F(store)(y + to, sum);
        }
    }
}

#define GATHER_TILE(R, T) \
    case (R) * 16 + (T): \
        F(gather_tile)(R, T, times, x, x_c, x_h, x_w, x_t, w, g->w_out, g->w_in, w_h, w_w, g->channels, rows->count, \
                       columns.count, bias, relu, saved, y, y_r, y_t); \
        break;
#if TILE_COLUMNS > 3
#define LANE_TILES(TILE) \
    TILE(1, 1) TILE(1, 2) TILE(1, 3) TILE(1, 4) TILE(1, 5) TILE(1, 6) TILE(1, 7) TILE(1, 8) \
    TILE(2, 1) TILE(2, 2) TILE(2, 3) TILE(2, 4) TILE(2, 5) TILE(2, 6) TILE(2, 7) TILE(2, 8) \
    TILE(3, 1) TILE(3, 2) TILE(3, 3) TILE(3, 4) TILE(3, 5) TILE(3, 6) TILE(3, 7) TILE(3, 8) \
    TILE(4, 1) TILE(4, 2) TILE(4, 3) TILE(4, 4) TILE(4, 5) TILE(4, 6) \
    TILE(5, 1) TILE(5, 2) TILE(5, 3) TILE(5, 4) \
    TILE(6, 1) TILE(6, 2) TILE(6, 3) TILE(6, 4) \
    TILE(7, 1) TILE(7, 2) TILE(7, 3) \
    TILE(8, 1) TILE(8, 2) TILE(8, 3)
#else
#define LANE_TILES(TILE) \
    TILE(1, 1) TILE(1, 2) TILE(1, 3) TILE(1, 4) TILE(1, 5) TILE(1, 6) TILE(1, 7) TILE(1, 8) \
    TILE(2, 1) TILE(2, 2) TILE(2, 3) TILE(2, 4) TILE(2, 5) TILE(2, 6) \
    TILE(3, 1) TILE(3, 2) TILE(3, 3) TILE(3, 4) \
    TILE(4, 1) TILE(4, 2) TILE(4, 3)
#endif
#if GATHER_PARTS > 1
#define GATHER_TILES(TILE) \
    TILE(1, 1) TILE(1, 2) TILE(1, 3) TILE(1, 4) TILE(1, 5) TILE(1, 6) TILE(2, 1) TILE(2, 2) TILE(2, 3) \
    TILE(3, 1) TILE(3, 2) TILE(4, 1) TILE(5, 1) TILE(6, 1)
#else
#define GATHER_TILES LANE_TILES
#endif

/* Most taps (or channels) beside R channels in a tile, and most places. */
#define LANE_BESIDE(R) (LANE_TILE / (R) < 8 ? LANE_TILE / (R) : 8)
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
    const Taps one = {0, 1, 1, 0, 1};
    const Py_ssize_t x_t = g->groups * g->channels * BLOCK, y_t = g->groups * g->outputs * BLOCK;
    const Py_ssize_t count = end - first, output = group * g->outputs + first;
    const Py_ssize_t at = output * BLOCK;
    REAL biases[GATHER_ROWS];
    for (Py_ssize_t r = 0; bias && r < count; r++) biases[r] = bias[(output + r) / g->places];
    F(gather_places)(g, &one, one, g->blocks, x + group * g->channels * BLOCK, w + group * g->w_group + first * g->w_out,
                     bias ? biases : 0, relu, saved ? saved + at : 0, count, x_t, y + at, BLOCK, y_t);
}

/* -- correlate ----------------------------------------------------------------------------------------------------- */

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
#define UNPOOL_MOST 448 /* vectors of `a` made of a pooling's gradient at a time, likewise */

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
            for (Py_ssize_t t = u; t < u_end; t++) {
                Py_ssize_t top, bottom;
                windows_inside(t, k->stride_h, k->padding_top, k->dilation_h, k->xh, k->ah, &top, &bottom);
                top = most(top, begin);
                bottom = least(bottom, begin + rows * k->pool_h);
                if (bottom <= top) continue;
                const Py_ssize_t source = top * k->stride_h + t * k->dilation_h - k->padding_top;
                F(correlate_rows)(k, laid + (top - begin) * wide * k->pool_w * BLOCK, plane, wide * k->pool_w,
                                  x + n * x_n + (source * k->xw + q * k->pool_w * k->stride_w) * BLOCK, R, S, v, taps, from,
                                  to, 1, bottom - top, sums + (t - u) * R * S * taps * LANES);
            }
        }
    }
}

/* dw[r][s][u, v] for R channels of `a`, S channels of `x` and kernel elements (u to u_end, v to v_end): `a` and `x` are at
 * their first channel. Kernel rows go over the same few rows of `a` one after the other, while these are in the first
 * cache. With `db`, the sums of those channels of `a` or `x` that are the gradient of the output. With a pooling `a` is
 * the gradient of its numbers, of which `position` and `y` tell. */
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
    Py_ssize_t height = most(CORRELATE_ROWS / (R * k->aw), 1), together = 1;
    if (R * k->ah * k->aw <= 64) together = k->blocks;
    if (k->pool_h) F(correlate_pooled)(k, a, position, y, x, R, S, u, u_end, v, taps, first, end, sums, biases);
    for (Py_ssize_t n = 0; n < k->blocks && !k->pool_h; n += together) {
        for (Py_ssize_t b = n; db && b < n + together; b++)
            for (Py_ssize_t c = 0; c < (k->sums_of_x ? S : R); c++)
                biases[c] += k->sums_of_x ? F(plane_lanes)(x + b * x_n + c * x_plane, k->xh * k->xw)
                                          : F(plane_lanes)(a + b * a_n + c * a_plane, k->ah * k->aw);
        for (Py_ssize_t p = 0; p < k->ah; p += height)
            for (Py_ssize_t t = u; t < u_end; t++) {
                Py_ssize_t top, bottom;
                windows_inside(t, k->stride_h, k->padding_top, k->dilation_h, k->xh, k->ah, &top, &bottom);
                top = most(top, p);
                bottom = least(bottom, p + height);
                if (bottom > top)
                    F(correlate_rows)(k, a + n * a_n + top * k->aw * BLOCK, a_plane, k->aw,
                                      x + n * x_n + (top * k->stride_h + t * k->dilation_h - k->padding_top) * k->xw * BLOCK,
                                      R, S, v, taps, first, end, together, bottom - top, sums + (t - u) * each * LANES);
            }
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

/* -- pooling, upsampling, layout: `lanes` numbers side by side, BLOCK or, in plain arrays, 1 ------------------------- */

/* The largest of the windows of one image plane, and where in the window the first such is; a NaN is the largest. */
INLINE void F(max_pool_plane)(const Py_ssize_t lanes, const Pooling *k, const REAL *x, REAL *y, REAL *position)
{
    for (Py_ssize_t p = 0; p < k->oh; p++)
        for (Py_ssize_t q = 0; q < k->ow; q++) {
            const Py_ssize_t top = p * k->stride_h - k->padding_top, left = q * k->stride_w - k->padding_left;
            REAL value[BLOCK] = {0}, place[BLOCK] = {0};
            int some = 0;
            for (Py_ssize_t u = most(-top, 0); u < k->kernel_h && top + u < k->ih; u++)
                for (Py_ssize_t v = most(-left, 0); v < k->kernel_w && left + v < k->iw; v++) {
                    const REAL *from = x + ((top + u) * k->iw + left + v) * lanes;
                    const REAL here = (REAL)(u * k->kernel_w + v);
                    for (Py_ssize_t l = 0; l < lanes; l++) {
                        const int take = !some | (from[l] > value[l]) | ((from[l] != from[l]) & (value[l] == value[l]));
                        value[l] = take ? from[l] : value[l];
                        place[l] = take ? here : place[l];
                    }
                    some = 1;
                }
            memcpy(y + (p * k->ow + q) * lanes, value, (size_t)lanes * sizeof(REAL));
            if (position) memcpy(position + (p * k->ow + q) * lanes, place, (size_t)lanes * sizeof(REAL));
        }
}

/* dx of one plane: the slope of each window goes to the place its largest number came from. */
INLINE void F(max_unpool_plane)(const Py_ssize_t lanes, const Pooling *k, const REAL *dy, const REAL *position,
                                const REAL *y, int activation, REAL *dx)
{
    const int apart = k->stride_h >= k->kernel_h && k->stride_w >= k->kernel_w;
    const int even = k->stride_h == k->kernel_h && k->stride_w == k->kernel_w && !k->padding_top && !k->padding_left;
    const int covered = even && k->oh * k->kernel_h == k->ih && k->ow * k->kernel_w == k->iw; /* every place once */
    const Py_ssize_t most_places = 64 * BLOCK / lanes;
    REAL slopes[64 * BLOCK];
    if (!covered) memset(dx, 0, (size_t)(k->ih * k->iw * lanes) * sizeof(REAL));
    for (Py_ssize_t p = 0; p < k->oh; p++)
        for (Py_ssize_t begin = 0; begin < k->ow; begin += most_places) {
            const Py_ssize_t count = least(most_places, k->ow - begin), row = (p * k->ow + begin) * lanes;
            const REAL *from = dy + row;
            if (y && activation != LINEAR) {
                F(map_slope)(dy + row, y + row, slopes, count * lanes, activation);
                from = slopes;
            }
            for (Py_ssize_t q = 0; q < count; q++) {
                const Py_ssize_t top = p * k->stride_h - k->padding_top;
                const Py_ssize_t left = (begin + q) * k->stride_w - k->padding_left;
                const Py_ssize_t u_end = least(k->kernel_h, k->ih - top), v_end = least(k->kernel_w, k->iw - left);
                for (Py_ssize_t l = 0; l < lanes; l += lanes == 1 ? 1 : LANES) {
                    const REAL *place = position + row + q * lanes + l, *slope = from + q * lanes + l;
                    const V at = lanes == 1 ? (V){0} : F(load)(place), all = lanes == 1 ? (V){0} : F(load)(slope);
                    for (Py_ssize_t u = most(-top, 0); u < u_end; u++)
                        for (Py_ssize_t v = most(-left, 0); v < v_end; v++) {
                            REAL *to = dx + ((top + u) * k->iw + left + v) * lanes + l;
                            const REAL here = (REAL)(u * k->kernel_w + v);
                            if (lanes == 1) {
                                const REAL one = *place == here ? *slope : 0;
                                *to = apart ? one : *to + one;
                            } else {
                                const V some = F(pick)(at == here, all, (V){0});
                                F(store)(to, apart ? some : F(load)(to) + some);
                            }
                        }
                }
            }
        }
}

INLINE Py_ssize_t F(pool_count)(const Pooling *k, Py_ssize_t top, Py_ssize_t left, int all)
{
    if (all) return k->kernel_h * k->kernel_w;
    return (least(top + k->kernel_h, k->ih) - most(top, 0)) * (least(left + k->kernel_w, k->iw) - most(left, 0));
}

INLINE void F(avg_pool_plane)(const Py_ssize_t lanes, const Pooling *k, int all, const REAL *x, REAL *y)
{
    for (Py_ssize_t p = 0; p < k->oh; p++)
        for (Py_ssize_t q = 0; q < k->ow; q++) {
            const Py_ssize_t top = p * k->stride_h - k->padding_top, left = q * k->stride_w - k->padding_left;
            const REAL count = (REAL)F(pool_count)(k, top, left, all);
            REAL sum[BLOCK] = {0};
            for (Py_ssize_t u = most(-top, 0); u < k->kernel_h && top + u < k->ih; u++)
                for (Py_ssize_t v = most(-left, 0); v < k->kernel_w && left + v < k->iw; v++) {
                    const REAL *from = x + ((top + u) * k->iw + left + v) * lanes;
                    for (Py_ssize_t l = 0; l < lanes; l++) sum[l] += from[l];
                }
            for (Py_ssize_t l = 0; l < lanes; l++) y[(p * k->ow + q) * lanes + l] = sum[l] / count;
        }
}

INLINE void F(avg_unpool_plane)(const Py_ssize_t lanes, const Pooling *k, int all, const REAL *dy, REAL *dx)
{
    memset(dx, 0, (size_t)(k->ih * k->iw * lanes) * sizeof(REAL));
    for (Py_ssize_t p = 0; p < k->oh; p++)
        for (Py_ssize_t q = 0; q < k->ow; q++) {
            const Py_ssize_t top = p * k->stride_h - k->padding_top, left = q * k->stride_w - k->padding_left;
            const REAL count = (REAL)F(pool_count)(k, top, left, all);
            REAL each[BLOCK];
            for (Py_ssize_t l = 0; l < lanes; l++) each[l] = dy[(p * k->ow + q) * lanes + l] / count;
            for (Py_ssize_t u = most(-top, 0); u < k->kernel_h && top + u < k->ih; u++)
                for (Py_ssize_t v = most(-left, 0); v < k->kernel_w && left + v < k->iw; v++) {
                    REAL *to = dx + ((top + u) * k->iw + left + v) * lanes;
                    for (Py_ssize_t l = 0; l < lanes; l++) to[l] += each[l];
                }
        }
}

INLINE void F(upsample_plane)(const Py_ssize_t lanes, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t fh, Py_ssize_t fw,
                              const REAL *x, REAL *y)
{
    for (Py_ssize_t p = 0; p < ih * fh; p++)
        for (Py_ssize_t j = 0; j < iw; j++)
            for (Py_ssize_t b = 0; b < fw; b++)
                for (Py_ssize_t l = 0; l < lanes; l++)
                    y[(p * iw * fw + j * fw + b) * lanes + l] = x[(p / fh * iw + j) * lanes + l];
}

INLINE void F(downsum_plane)(const Py_ssize_t lanes, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t fh, Py_ssize_t fw,
                             const REAL *dy, REAL *dx)
{
    for (Py_ssize_t i = 0; i < ih; i++)
        for (Py_ssize_t j = 0; j < iw; j++) {
            REAL sum[BLOCK] = {0};
            for (Py_ssize_t a = 0; a < fh; a++)
                for (Py_ssize_t b = 0; b < fw; b++)
                    for (Py_ssize_t l = 0; l < lanes; l++)
                        sum[l] += dy[((i * fh + a) * iw * fw + j * fw + b) * lanes + l];
            memcpy(dx + (i * iw + j) * lanes, sum, (size_t)lanes * sizeof(REAL));
        }
}

STATIC void F(max_pool)(Py_ssize_t lanes, const Pooling *k, const REAL *x, REAL *y, REAL *position)
{
    if (lanes == 1)
        F(max_pool_plane)(1, k, x, y, position);
    else
        F(max_pool_plane)(BLOCK, k, x, y, position);
}

STATIC void F(max_unpool)(Py_ssize_t lanes, const Pooling *k, const REAL *dy, const REAL *position, const REAL *y,
                          int activation, REAL *dx)
{
    if (lanes == 1)
        F(max_unpool_plane)(1, k, dy, position, y, activation, dx);
    else
        F(max_unpool_plane)(BLOCK, k, dy, position, y, activation, dx);
}

STATIC void F(avg_pool)(Py_ssize_t lanes, const Pooling *k, int all, const REAL *x, REAL *y)
{
    if (lanes == 1)
        F(avg_pool_plane)(1, k, all, x, y);
    else
        F(avg_pool_plane)(BLOCK, k, all, x, y);
}

STATIC void F(avg_unpool)(Py_ssize_t lanes, const Pooling *k, int all, const REAL *dy, REAL *dx)
{
    if (lanes == 1)
        F(avg_unpool_plane)(1, k, all, dy, dx);
    else
        F(avg_unpool_plane)(BLOCK, k, all, dy, dx);
}

STATIC void F(upsample)(Py_ssize_t lanes, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t fh, Py_ssize_t fw, const REAL *x, REAL *y)
{
    if (lanes == 1)
        F(upsample_plane)(1, ih, iw, fh, fw, x, y);
    else
        F(upsample_plane)(BLOCK, ih, iw, fh, fw, x, y);
}

STATIC void F(downsum)(Py_ssize_t lanes, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t fh, Py_ssize_t fw, const REAL *dy, REAL *dx)
{
    if (lanes == 1)
        F(downsum_plane)(1, ih, iw, fh, fw, dy, dx);
    else
        F(downsum_plane)(BLOCK, ih, iw, fh, fw, dy, dx);
}

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
            V largest = F(activate)(acc[r][0], relu ? RELU : LINEAR), place = {0};
            UNROLL for (int t = 1; t < 4; t++) F(pool_number)(acc[r][t], (REAL)t, &largest, &place);
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

/* One row of a max-pooling of windows side by side, over rows of a gather that are made as they are needed: all rows of
 * a window at once, or one after the other where its rows are many. */
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
                        V old = begun ? F(load)(value + part)
                                      : F(activate)(F(load)(from), activation == RELU ? RELU : LINEAR);
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

/* The same; windows of 2 x 2 places are made in registers, unless the activation goes over what is made. */
STATIC void F(gather_pool_row)(const Gather *g, Py_ssize_t row, Py_ssize_t pool_h, Py_ssize_t pool_w, Py_ssize_t width,
                               const REAL *source, const REAL *weight, const REAL *bias, Py_ssize_t channels,
                               int activation, REAL *y, REAL *position, Py_ssize_t y_r)
{
    if (pool_h != 2 || pool_w != 2 || (activation != LINEAR && activation != RELU)) {
        F(gather_pool)(g, row, pool_h, pool_w, width, source, weight, bias, channels, activation, y, position, y_r);
        return;
    }
    const Phase rows = phase_of(&g->h, 0, 2 * row, 2 * row + 2), columns = phase_of(&g->w, 0, 0, 2 * width);
    const int whole = rows.to - rows.from == 2;
    const Py_ssize_t from = (columns.from + 1) / 2, to = columns.to / 2;
    for (Py_ssize_t q = 0, count; q < width; q += count) {
        const int inner = whole && q >= from && q < to;
        count = inner ? to - q : 1;
        F(pool_places)(g, row, q, q + count, inner, source, weight, bias, activation == RELU, channels, y, position, y_r);
    }
}

/* This part's share of a gather: y, in blocks of rows, is made of x. With `pool_h` > 0 windows of that size are pooled
 * as soon as their rows are there, and `position` may be asked for; else y is multiplied by the derivative of
 * `activation` in `saved` where that is given, and is f(y) of it where not. */
STATIC void F(gather)(const Gather *g, const REAL *x, const REAL *w, const REAL *bias, const REAL *saved, int activation,
                      Py_ssize_t pool_h, Py_ssize_t pool_w, REAL *y, REAL *position, Py_ssize_t part, Py_ssize_t parts)
{
    const Py_ssize_t height = pool_h ? g->oh / pool_h : g->oh, width = pool_h ? g->ow / pool_w : g->ow;
    const Py_ssize_t x_plane = g->h.size * g->w.size * BLOCK, y_plane = height * width * BLOCK;
    const Py_ssize_t tiles = (g->outputs + GATHER_ROWS - 1) / GATHER_ROWS, bands = g->groups * tiles;
    const Py_ssize_t all = g->blocks * bands * height;
    const int relu = activation == RELU, passes = activation != LINEAR && !relu; /* others go over what is made */
    /* The weights of a tile, where they are larger than the source they meet, are used for all blocks before the next. */
    const int weights_stay = GATHER_ROWS * g->w.kernel > g->w.size * BLOCK;
    if (!pool_h && g->oh == 1 && g->ow == 1 && g->h.size == 1 && g->w.size == 1 && g->h.kernel == 1 && g->w.kernel == 1) {
        const Py_ssize_t rows = F(place_rows)(g->blocks), tiles = (g->outputs + rows - 1) / rows, bands = g->groups * tiles;
        for (Py_ssize_t i = piece(bands, part, parts); i < piece(bands, part + 1, parts); i++) {
            const Py_ssize_t group = i / tiles, first = piece(g->outputs, i % tiles, tiles);
            const Py_ssize_t end = piece(g->outputs, i % tiles + 1, tiles);
            F(gather_place)(g, x, w, bias, relu, saved, y, group, first, end);
            for (Py_ssize_t block = 0; passes && block < g->blocks; block++) {
                const Py_ssize_t at = ((block * g->groups + group) * g->outputs + first) * BLOCK;
                if (saved)
                    F(map_slope)(y + at, saved + at, y + at, (end - first) * BLOCK, activation);
                else
                    F(map_activate)(y + at, y + at, 0, 1, (end - first) * BLOCK, activation);
            }
        }
        return;
    }
    const Py_ssize_t stop = piece(all, part + 1, parts);
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
            F(gather_pool_row)(g, row, pool_h, pool_w, width, source, weight, from, end - first, activation, y + at,
                               position ? position + at : 0, y_plane);
            continue;
        }
        F(gather_rows)(g, row, row + rows, 0, width, source, weight, from, relu, saved ? saved + at : 0, end - first, y + at,
                       y_plane, width * BLOCK);
        for (Py_ssize_t r = 0; passes && r < end - first; r++) {
            REAL *made = y + at + r * y_plane;
            if (saved)
                F(map_slope)(made, saved + at + r * y_plane, made, rows * width * BLOCK, activation);
            else
                F(map_activate)(made, made, 0, 1, rows * width * BLOCK, activation);
        }
    }
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

/* This part's share of a correlation, and of the sums of its channels, if these are asked for. With a pooling `a` is the
 * gradient of its numbers, of which `position` and, for the slope, `y` tell. */
STATIC void F(correlation)(const Correlation *k, const REAL *a, const REAL *position, const REAL *y, const REAL *x, REAL *dw,
                           REAL *db, Py_ssize_t part, Py_ssize_t parts)
{
    const Py_ssize_t x_plane = k->xh * k->xw * BLOCK;
    const Py_ssize_t a_plane = k->ah * k->aw / (k->pool_h ? k->pool_h * k->pool_w : 1) * BLOCK;
    if (!k->pool_h && k->ah == 1 && k->aw == 1 && k->kh == k->xh && k->kw == k->xw && k->dilation_h == 1 &&
        k->dilation_w == 1 && !k->padding_top && !k->padding_left) {
        const Py_ssize_t channels = k->groups * (k->sums_of_x ? k->x_channels : k->a_channels);
        const Py_ssize_t plane = k->sums_of_x ? x_plane : a_plane;
        for (Py_ssize_t c = piece(channels, part, parts); db && c < piece(channels, part + 1, parts); c++)
            db[c] = F(channel_sum)((k->sums_of_x ? x : a) + c * plane, channels * plane, k->blocks, plane / BLOCK);
        F(correlate_place)(k, a, x, dw, part, parts);
        return;
    }
    const Py_ssize_t a_tiles = (k->a_channels + LANE_ROWS - 1) / LANE_ROWS;
    const Py_ssize_t most_rows = (k->a_channels + a_tiles - 1) / a_tiles;
    const Py_ssize_t beside = LANE_BESIDE(most_rows);
    const Py_ssize_t x_tiles = (k->x_channels + beside - 1) / beside;
    const Py_ssize_t most_taps = k->x_channels > 1 ? 8 : beside, tap_tiles = (k->kw + most_taps - 1) / most_taps;
    const Py_ssize_t all = k->groups * a_tiles * x_tiles * tap_tiles * k->kh, stop = piece(all, part + 1, parts);
    for (Py_ssize_t i = piece(all, part, parts), rows; i < stop; i += rows) {
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

/* -- batch normalisation of a channel: `blocks` planes of places x lanes numbers, `step` apart; of the last block the
 * first `valid` lanes count ------------------------------------------------------------------------------------------ */

/* Sum of (x - shift), or of its square, or of it times b - b_shift. */
STATIC double F(plane_sum)(const REAL *x, REAL shift, const REAL *b, REAL b_shift, int square, Py_ssize_t step,
                           Py_ssize_t blocks, Py_ssize_t places, Py_ssize_t lanes, Py_ssize_t valid)
{
    double total = 0;
    const Py_ssize_t size = places * lanes;
    for (Py_ssize_t n = 0; n < blocks; n++) {
        REAL sums[BLOCK] = {0};
        const REAL *from = x + n * step, *beside = b ? b + n * step : from;
        const REAL beside_shift = b ? b_shift : shift;
        Py_ssize_t i = 0;
        if (b || square)
            for (; i + BLOCK <= size; i += BLOCK)
                for (Py_ssize_t l = 0; l < BLOCK; l++) sums[l] += (from[i + l] - shift) * (beside[i + l] - beside_shift);
        else
            for (; i + BLOCK <= size; i += BLOCK)
                for (Py_ssize_t l = 0; l < BLOCK; l++) sums[l] += from[i + l] - shift;
        for (Py_ssize_t l = 0; i + l < size; l++)
            sums[l] += b || square ? (from[i + l] - shift) * (beside[i + l] - beside_shift) : from[i + l] - shift;
        const Py_ssize_t count = lanes > 1 && n == blocks - 1 ? valid : BLOCK;
        for (Py_ssize_t l = 0; l < count; l++) total += (double)sums[l];
    }
    return total;
}

/* Zeros in the lanes of rows that are not there. */
STATIC void F(clear_lanes)(REAL *x, Py_ssize_t places, Py_ssize_t valid)
{
    if (valid == BLOCK) return;
    for (Py_ssize_t i = 0; i < places; i++)
        for (Py_ssize_t l = valid; l < BLOCK; l++) x[i * BLOCK + l] = 0;
}

/* y = (x - shift) scale + offset */
INLINE void F(scale_plane)(const REAL *x, REAL *y, Py_ssize_t size, REAL shift, REAL scale, REAL offset)
{
    for (Py_ssize_t i = 0; i < size; i++) y[i] = (x[i] - shift) * scale + offset;
}

#undef GATHER_TILE
#undef CORRELATE_TILE
#undef LANE_TILES
#undef GATHER_TILES
