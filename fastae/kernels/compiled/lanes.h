/* Images with several rows of the batch side by side: [row / BLOCK][channel][height][width][BLOCK].
 *
 * A vector holds one element of as many images (of few images other things: cells.h), so every lane is filled whatever
 * the number of channels and the size of the image, every weight is a scalar for all lanes, and no lane ever needs its
 * neighbour. A block is 64 bytes, one vector of AVX-512, two of AVX2, four of SSE2 and NEON: the layout is the same for all
 * of them.
 *
 *   gather        y[o] = bias[o] + sum of w x over what an output element sees: a convolution, and with the axes turned
 *                 round the gradient of its input, which is a transposed convolution (only phases that meet elements)
 *   correlate     dw = sum over images and places of a x; the lanes are added up at the end
 *
 * Every number is summed in an order that depends on the shape of the layer alone; dw also on how many images there are.
 */
#define BLOCK ((Py_ssize_t)(64 / sizeof(REAL)))

#ifndef LANE_TILE
#if TILE_COLUMNS > 3
#define LANE_TILE 24    /* most accumulators */
#define LANE_ROWS 8     /* most channels of a tile of sums over places */
#define GATHER_ROWS 8   /* and of one of a gather, */
#define GATHER_PARTS 1  /* which has so many vectors of a place */
#define POOL_ROWS 4     /* and of one with windows of 2 x 2 places, */
#define POOL_CHANNELS 16 /* of a source with so many channels at most */
#elif defined(__AVX2__)
#define LANE_TILE 12
#define LANE_ROWS 4
#define GATHER_ROWS 6
#define GATHER_PARTS 2  /* both halves of a line while it is near */
#define POOL_ROWS 3
#define POOL_CHANNELS 4
#else
#define LANE_TILE 12
#define LANE_ROWS 4
#define GATHER_ROWS 4
#define GATHER_PARTS 1
#define POOL_ROWS 2
#define POOL_CHANNELS 4
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

/* What a gather of `rows` images reads and makes, in each of `groups` blocks of channels. */
typedef struct {
    Axis h, w;
    Py_ssize_t rows, blocks, groups, channels, outputs, oh, ow; /* blocks of rows; channels and outputs of a group */
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

/* -- tiles ---------------------------------------------------------------------------------------------------------- */

/* Tiles of sums: channels x taps, channels or places beside them, of which there are at most LANE_BESIDE. */
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
#define LANE_BESIDE(R) (LANE_TILE / (R) < 8 ? LANE_TILE / (R) : 8)

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
