/* Convolutions that pass over zeros (see zeros.h): a max-pooling leaves one number of each window of the gradient, and ReLU
 * not even that. Every image has its own, so here channels lie side by side in a vector, and images come one by one:
 *
 *   scatter       the gradient of a convolution's input: each number of the source that is not 0 is added, times the
 *                 elements of the kernel, to the field of places it meets; the bits are those of the gather
 *   pooled        the gradient of a weight under a max-pooling: for each window's largest number the places it was made of
 */
#ifndef ZERO_FIELD
/* Places of the fields of an image, of which LANES are on the stack. Threads have little of one elsewhere. */
#if defined(__GLIBC__) || defined(__APPLE__)
#define ZERO_FIELD (VECTOR_BYTES < 64 ? 512 : 256)
#else
#define ZERO_FIELD 0
#endif
#define ZERO_PACKED 8192 /* numbers of a weight */
#define ZERO_PLACES 4096 /* of a plane */
#define ZERO_SOURCE 4096 /* words of a source */
#define ZERO_TAPS 12     /* most elements of the kernel in registers */
#define ZERO_CHANNELS 16 /* of a gradient in a tile, */
#define ZERO_BESIDE 8    /* and at a time */
#endif

/* Places of a plane with a margin, so that every window lies inside whole: `top` rows and `left` columns before it. */
typedef struct {
    Py_ssize_t height, width, top, left, rows, columns; /* of the field, of its margin, of the plane */
} F(Field);

static inline Py_ssize_t F(field_size)(const F(Field) *f) { return f->height * f->width * LANES; }

static inline F(Field) F(field_of)(Py_ssize_t windows_h, Py_ssize_t windows_w, Py_ssize_t stride_h, Py_ssize_t stride_w,
                                   Py_ssize_t reach_h, Py_ssize_t reach_w, Py_ssize_t top, Py_ssize_t left,
                                   Py_ssize_t rows, Py_ssize_t columns)
{
    return (F(Field)){(windows_h - 1) * stride_h + reach_h + 1, (windows_w - 1) * stride_w + reach_w + 1, top, left,
                      rows, columns};
}

/* Rows and columns of the plane that the field has. */
static inline void F(field_edges)(const F(Field) *f, Py_ssize_t *rows, Py_ssize_t *columns)
{
    *rows = most(least(f->rows, f->height - f->top), 0);
    *columns = most(least(f->columns, f->width - f->left), 0);
}

/* Fields of LANES images, one behind the other, of `channels` <= LANES planes with the images side by side. Gives 0 for
 * each channel that is finite, else NaN. */
STATIC V F(lay_fields)(const F(Field) *f, const REAL *x, Py_ssize_t channels, REAL *fields)
{
    const Py_ssize_t size = F(field_size)(f), plane = f->rows * f->columns * BLOCK;
    Py_ssize_t rows, columns;
    F(field_edges)(f, &rows, &columns);
    V bad = {0};
    if (rows < f->height || columns < f->width) memset(fields, 0, (size_t)(LANES * size) * sizeof(REAL));
    for (Py_ssize_t p = 0; p < rows; p++)
        for (Py_ssize_t q = 0; q < columns; q++) {
            V a[LANES];
            UNROLL for (int c = 0; c < LANES; c++)
                a[c] = c < channels ? F(load)(x + c * plane + (p * f->columns + q) * BLOCK) : (V){0};
            F(transpose)(a);
            REAL *to = fields + ((p + f->top) * f->width + q + f->left) * LANES;
            UNROLL for (int i = 0; i < LANES; i++)
            {
                F(store)(to + i * size, a[i]);
                bad += a[i] * 0;
            }
        }
    return bad;
}

/* The other way; places that the field has not are 0. */
STATIC void F(take_fields)(const F(Field) *f, const REAL *fields, Py_ssize_t channels, REAL *y)
{
    const Py_ssize_t size = F(field_size)(f), plane = f->rows * f->columns * BLOCK;
    Py_ssize_t rows, columns;
    F(field_edges)(f, &rows, &columns);
    for (Py_ssize_t p = 0; p < f->rows; p++)
        for (Py_ssize_t q = 0; q < f->columns; q++) {
            V a[LANES];
            const int there = p < rows && q < columns;
            const REAL *from = fields + ((p + f->top) * f->width + q + f->left) * LANES;
            UNROLL for (int i = 0; i < LANES; i++) a[i] = there ? F(load)(from + i * size) + 0 : (V){0}; /* never -0 */
            F(transpose)(a);
            UNROLL for (int c = 0; c < LANES; c++)
                if (c < channels) F(store)(y + c * plane + (p * f->columns + q) * BLOCK, a[c]);
        }
}

/* Rows x columns of a kernel that are taken together. */
#define ZERO_KERNELS(TILE) \
    TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) \
    TILE(1, 3) TILE(2, 3) TILE(3, 3) TILE(4, 3) TILE(1, 4) TILE(2, 4) TILE(3, 4) TILE(1, 5) TILE(2, 5) TILE(1, 6) TILE(2, 6) \
    TILE(1, 7) TILE(1, 8)
static inline Py_ssize_t F(kernel_rows)(Py_ssize_t kw) { return least(ZERO_TAPS / kw, 4); }

/* `count` numbers times U x W elements of the kernel are added to the field, each from its place on. */
INLINE void F(scatter_tile)(const int U, const int W, const REAL *numbers, const int32_t *places, Py_ssize_t count,
                            const REAL *w, REAL *field, Py_ssize_t down, Py_ssize_t right)
{
    V by[ZERO_TAPS];
    UNROLL for (int t = 0; t < U * W; t++) by[t] = F(load)(w + t * LANES);
    for (Py_ssize_t i = 0; i < count; i++) {
        const V number = F(splat)(numbers[i]);
        REAL *to = field + places[i];
        UNROLL for (int u = 0; u < U; u++) UNROLL for (int v = 0; v < W; v++)
        {
            REAL *at = to + u * down + v * right;
            F(store)(at, F(load)(at) + number * by[u * W + v]);
        }
    }
}

STATIC void F(scatter_numbers)(Py_ssize_t kh, Py_ssize_t kw, const REAL *numbers, const int32_t *places, Py_ssize_t count,
                               const REAL *w, REAL *field, Py_ssize_t down, Py_ssize_t right)
{
    switch (16 * kh + kw) {
#define SCATTER_TILE(U, W) \
    case 16 * (U) + (W): \
        F(scatter_tile)(U, W, numbers, places, count, w, field, down, right); \
        break;
        ZERO_KERNELS(SCATTER_TILE)
#undef SCATTER_TILE
    }
}

static inline F(Field) F(field_of_result)(const Gather *g)
{
    return F(field_of)(g->h.size, g->w.size, g->h.up, g->w.up, -g->h.dilation * (g->h.kernel - 1),
                       -g->w.dilation * (g->w.kernel - 1), g->h.offset, g->w.offset, g->oh, g->ow);
}

/* Of how many vectors of outputs the fields, and the weights, are on the stack. */
static inline Py_ssize_t F(scattered_beside)(const Gather *g)
{
    const F(Field) f = F(field_of_result)(g);
    if (f.height > ZERO_FIELD || f.width > ZERO_FIELD) return 0; /* a stride may be large: the product would overflow */
    return least(least(ZERO_FIELD / (f.height * f.width), ZERO_PACKED / (g->h.kernel * g->w.kernel * g->channels * LANES)),
                 (g->outputs + LANES - 1) / LANES);
}

/* Whether a gather is the gradient of a convolution's input, or a transposed one, of a source with few numbers other than 0. */
STATIC int F(can_scatter)(const Gather *g, const REAL *x, const REAL *w, Py_ssize_t parts)
{
    const Py_ssize_t places = g->h.size * g->w.size, words = (places + ZERO_STEPS - 1) / ZERO_STEPS * g->channels * LANES;
    if (g->h.dilation >= 0 || g->w.dilation >= 0 || g->w.kernel > 8 || g->outputs < LANES || places < 16 ||
        places > ZERO_PLACES || words > ZERO_SOURCE || F(scattered_beside)(g) < 1 ||
        (g->blocks % parts && g->blocks < 4 * parts))
        return 0;
    /* each number takes two or three times as long as in a tile */
    return F(share_of_others)(x, places * BLOCK, g->blocks * g->groups * g->channels, places * BLOCK) < 0.3 &&
           F(are_finite)(w, 0, 1, g->groups * g->w_group);
}

/* [outputs / LANES][channel][element of the kernel][LANES] */
STATIC void F(pack_weights)(const Gather *g, const REAL *w, Py_ssize_t outputs, REAL *packed)
{
    for (Py_ssize_t r = 0; r < outputs; r += LANES)
        for (Py_ssize_t c = 0; c < g->channels; c++)
            for (Py_ssize_t u = 0; u < g->h.kernel; u++)
                for (Py_ssize_t v = 0; v < g->w.kernel; v++)
                    for (Py_ssize_t l = 0; l < LANES; l++)
                        *packed++ = r + l < outputs ? w[(r + l) * g->w_out + c * g->w_in + u * g->w_h + v * g->w_w] : 0;
}

/* This part's share of such a gather: blocks of images of its own. */
STATIC __attribute__((noinline)) void F(scatter)(const Gather *g, const REAL *x, const REAL *w, const REAL *saved,
                                                 int activation, REAL *y, Py_ssize_t part, Py_ssize_t parts)
{
    REAL fields[ZERO_FIELD * LANES * LANES] __attribute__((aligned(64))), packed[ZERO_PACKED] __attribute__((aligned(64)));
    REAL numbers[ZERO_PLACES];
    uint64_t words[ZERO_SOURCE];
    int32_t at[ZERO_PLACES], to[ZERO_PLACES];
    const Py_ssize_t kh = g->h.kernel, kw = g->w.kernel, taps = kh * kw, together = F(kernel_rows)(kw);
    const Py_ssize_t places = g->h.size * g->w.size, plane = g->oh * g->ow * BLOCK;
    const Py_ssize_t steps = (places + ZERO_STEPS - 1) / ZERO_STEPS, beside = F(scattered_beside)(g) * LANES;
    const F(Field) f = F(field_of_result)(g);
    const Py_ssize_t size = F(field_size)(&f), down = -g->h.dilation * f.width * LANES, right = -g->w.dilation * LANES;
    const REAL *there = 0;
    for (Py_ssize_t p = 0; p < places; p++)
        at[p] = (int32_t)((p / g->w.size * g->h.up * f.width + p % g->w.size * g->w.up) * LANES);
    const Py_ssize_t first = piece(g->blocks, part, parts) * g->groups, end = piece(g->blocks, part + 1, parts) * g->groups;
    for (Py_ssize_t i = first; i < end; i++) {
        const REAL *source = x + i * g->channels * places * BLOCK;
        REAL *made = y + i * g->outputs * plane;
        for (Py_ssize_t lane = 0; lane < BLOCK; lane += LANES) {
            for (Py_ssize_t c = 0; c < g->channels; c++)
                for (Py_ssize_t p = 0; p < places; p += ZERO_STEPS)
                    F(words_down)(source + (c * places + p) * BLOCK + lane, BLOCK, least(places - p, ZERO_STEPS), LANES,
                                  words + (c * steps + p / ZERO_STEPS) * LANES);
            for (Py_ssize_t r = 0, some; r < g->outputs; r += some) {
                const REAL *weight = w + i % g->groups * g->w_group + r * g->w_out;
                some = least(beside, g->outputs - r);
                if (weight != there) F(pack_weights)(g, weight, some, packed);
                there = weight;
                memset(fields, 0, (size_t)((some + LANES - 1) / LANES * LANES * size) * sizeof(REAL));
                for (Py_ssize_t l = 0; l < LANES; l++)
                    for (Py_ssize_t c = 0; c < g->channels; c++) {
                        /* the last of them first: so the kernel's elements meet a place in the order they do in a gather */
                        Py_ssize_t count = 0;
                        for (Py_ssize_t step = steps - 1; step >= 0; step--)
                            for (uint64_t word = words[(c * steps + step) * LANES + l]; word; count++) {
                                const int bit = 63 - __builtin_clzll(word);
                                const Py_ssize_t p = step * ZERO_STEPS + bit;
                                word ^= (uint64_t)1 << bit;
                                numbers[count] = source[(c * places + p) * BLOCK + lane + l];
                                to[count] = at[p];
                            }
                        for (Py_ssize_t v = 0; v * LANES < some; v++)
                            for (Py_ssize_t u = 0; u < kh; u += together)
                                F(scatter_numbers)(least(kh - u, together), kw, numbers, to, count,
                                                   packed + ((v * g->channels + c) * taps + u * kw) * LANES,
                                                   fields + (v * LANES + l) * size + u * down, down, right);
                    }
                for (Py_ssize_t v = 0; v * LANES < some; v++)
                    F(take_fields)(&f, fields + v * LANES * size, least(some - v * LANES, LANES),
                                   made + (r + v * LANES) * plane + lane);
            }
        }
        for (Py_ssize_t r = 0; activation != LINEAR && r < g->outputs; r++) {
            const Py_ssize_t from = (i * g->outputs + r) * plane;
            F(go_over)(saved ? saved + from : 0, y + from, plane, activation);
        }
    }
}

/* -- the gradient of a weight under a max-pooling -------------------------------------------------------------------- */

/* Numbers a[p] whose bit is set, times U x W places of the field from places[p] on, are added to the sums. */
INLINE void F(pooled_tile)(const int U, const int W, const REAL *a, uint64_t word, const INTEGER *places, const REAL *field,
                           Py_ssize_t down, Py_ssize_t right, REAL *sums)
{
    V acc[ZERO_TAPS];
    UNROLL for (int t = 0; t < U * W; t++) acc[t] = F(load)(sums + t * LANES);
    for (; word; word &= word - 1) {
        const Py_ssize_t p = __builtin_ctzll(word) * LANES;
        const V number = F(splat)(a[p]);
        const REAL *from = field + places[p];
        UNROLL for (int u = 0; u < U; u++) UNROLL for (int v = 0; v < W; v++)
            acc[u * W + v] += number * F(load)(from + u * down + v * right);
    }
    UNROLL for (int t = 0; t < U * W; t++) F(store)(sums + t * LANES, acc[t]);
}

STATIC void F(pooled_number)(Py_ssize_t kh, Py_ssize_t kw, const REAL *a, uint64_t word, const INTEGER *places,
                             const REAL *field, Py_ssize_t down, Py_ssize_t right, REAL *sums)
{
    switch (16 * kh + kw) {
#define POOLED_TILE(U, W) \
    case 16 * (U) + (W): \
        F(pooled_tile)(U, W, a, word, places, field, down, right, sums); \
        break;
        ZERO_KERNELS(POOLED_TILE)
#undef POOLED_TILE
    }
}

static inline F(Field) F(field_of_source)(const Correlation *k)
{
    return F(field_of)(k->ah, k->aw, k->stride_h, k->stride_w, k->dilation_h * (k->kh - 1), k->dilation_w * (k->kw - 1),
                       k->padding_top, k->padding_left, k->xh, k->xw);
}

/* Whether the gradient of a weight comes image by image: where a pooling leaves a quarter of the numbers or less. */
STATIC int F(pools_away)(const Correlation *k)
{
    const F(Field) f = F(field_of_source)(k);
    return k->pool_h * k->pool_w >= 4 && k->kw <= 8 && k->x_channels >= LANES &&
           ZERO_CHANNELS * k->kh * k->kw * LANES <= ZERO_PACKED && f.height <= ZERO_FIELD &&
           f.width <= ZERO_FIELD && f.height * f.width <= ZERO_FIELD;
}

/* The slope of each window of LANES images, its bits, and where it was made, for `count` <= ZERO_STEPS windows from `first`
 * on; gives the sum of the slopes. */
STATIC V F(lay_windows)(const Correlation *k, const F(Field) *f, const REAL *dy, const REAL *position, const REAL *y,
                        Py_ssize_t first, Py_ssize_t count, REAL *slopes, INTEGER *places, uint64_t *words)
{
    const Py_ssize_t columns = k->aw / k->pool_w;
    const REAL by = 1 / (REAL)k->pool_w, down = (REAL)(k->stride_h * f->width * LANES);
    const REAL right = (REAL)(k->stride_w * LANES);
    const V last = F(splat)((REAL)(k->pool_h * k->pool_w - 1));
    V sum = {0};
    Py_ssize_t p = first / columns, q = first % columns;
    for (Py_ssize_t i = 0; i < count; i++) {
        const Py_ssize_t at = (first + i) * BLOCK;
        V slope = F(load)(dy + at);
        if (y && k->activation != LINEAR) slope = F(slope)(slope, F(load)(y + at), k->activation);
        V place = F(load)(position + at);
        place = F(pick)((place >= (V){0}) & (place <= last), place, (V){0}); /* whatever there is, it lies inside */
        const V row = __builtin_convertvector(__builtin_convertvector((place + (REAL)0.5) * by, VI), V);
        const V to = row * down + (place - row * (REAL)k->pool_w) * right;
        const INTEGER base = (INTEGER)((p * k->pool_h * k->stride_h * f->width + q * k->pool_w * k->stride_w) * LANES);
        const VI where = __builtin_convertvector(to, VI) + base;
        F(store)(slopes + i * LANES, slope);
        memcpy(places + i * LANES, &where, sizeof(where));
        sum += slope;
        if (++q == columns) {
            q = 0;
            p++;
        }
    }
    F(words_down)(slopes, LANES, count, LANES, words);
    return sum;
}

/* dw for R <= ZERO_CHANNELS channels of the gradient and S <= LANES channels of x, at their first channel; with `db`, its
 * sums. Image after image, each window after the other. */
STATIC __attribute__((noinline)) void F(pooled)(const Correlation *k, const REAL *dy, const REAL *position, const REAL *y,
                                                const REAL *x, Py_ssize_t R, Py_ssize_t S, REAL *dw, REAL *db)
{
    REAL fields[ZERO_FIELD * LANES * LANES] __attribute__((aligned(64))), sums[ZERO_PACKED] __attribute__((aligned(64)));
    REAL slopes[ZERO_BESIDE * ZERO_STEPS * LANES];
    INTEGER places[ZERO_BESIDE * ZERO_STEPS * LANES];
    uint64_t words[ZERO_BESIDE * LANES];
    V biases[ZERO_CHANNELS] = {{0}}, bad = {0};
    const F(Field) f = F(field_of_source)(k);
    const Py_ssize_t size = F(field_size)(&f), windows = k->ah / k->pool_h * (k->aw / k->pool_w);
    const Py_ssize_t taps = k->kh * k->kw, together = F(kernel_rows)(k->kw);
    const Py_ssize_t down = k->dilation_h * f.width * LANES, right = k->dilation_w * LANES;
    const Py_ssize_t a_n = k->groups * k->a_channels * windows * BLOCK;
    const Py_ssize_t x_n = k->groups * k->x_channels * k->xh * k->xw * BLOCK;
    memset(sums, 0, (size_t)(R * taps * LANES) * sizeof(REAL));
    for (Py_ssize_t n = 0; n < k->blocks; n++)
        for (Py_ssize_t lane = 0; lane < BLOCK; lane += LANES) {
            bad += F(lay_fields)(&f, x + n * x_n + lane, S, fields);
            for (Py_ssize_t r = 0, some; r < R; r += some) {
                some = least(R - r, ZERO_BESIDE);
                for (Py_ssize_t i = 0; i < windows; i += ZERO_STEPS) {
                    for (Py_ssize_t c = 0; c < some; c++) {
                        const Py_ssize_t at = n * a_n + (r + c) * windows * BLOCK + lane;
                        biases[r + c] += F(lay_windows)(k, &f, dy + at, position + at, y ? y + at : 0, i,
                                                        least(windows - i, ZERO_STEPS), slopes + c * ZERO_STEPS * LANES,
                                                        places + c * ZERO_STEPS * LANES, words + c * LANES);
                    }
                    for (Py_ssize_t l = 0; l < LANES; l++)
                        for (Py_ssize_t c = 0; c < some; c++)
                            for (Py_ssize_t u = 0; u < k->kh; u += together)
                                F(pooled_number)(least(k->kh - u, together), k->kw, slopes + c * ZERO_STEPS * LANES + l,
                                                 words[c * LANES + l], places + c * ZERO_STEPS * LANES + l,
                                                 fields + l * size + u * down, down, right,
                                                 sums + ((r + c) * taps + u * k->kw) * LANES);
                }
            }
        }
    /* what a zero would have been multiplied by */
    for (Py_ssize_t t = 0; t < R * taps; t++) F(store)(sums + t * LANES, F(load)(sums + t * LANES) + bad);
    for (Py_ssize_t r = 0; r < R; r++) {
        for (Py_ssize_t s = 0; s < S; s++)
            for (Py_ssize_t t = 0; t < taps; t++) dw[r * k->dw_a + s * k->dw_x + t] = sums[(r * taps + t) * LANES + s];
        if (db) db[r] = F(lane_sum)(biases[r]);
    }
}

/* This part's share of the tiles of that gradient; halves as in correlate_tiles. */
STATIC void F(pooled_tiles)(const Correlation *k, const REAL *dy, const REAL *position, const REAL *y, const REAL *x, REAL *dw,
                            REAL *db, Py_ssize_t half, Py_ssize_t halves, Py_ssize_t part, Py_ssize_t parts)
{
    const Py_ssize_t x_plane = k->xh * k->xw * BLOCK, a_plane = k->ah * k->aw / (k->pool_h * k->pool_w) * BLOCK;
    const Py_ssize_t a_tiles = (k->a_channels + ZERO_CHANNELS - 1) / ZERO_CHANNELS;
    const Py_ssize_t x_tiles = (k->x_channels + LANES - 1) / LANES, all = k->groups * x_tiles * a_tiles;
    const Py_ssize_t stop = least(piece(halves * all, part + 1, parts) - half * all, all);
    for (Py_ssize_t i = most(piece(halves * all, part, parts) - half * all, 0); i < stop; i++) {
        const Py_ssize_t group = i / a_tiles / x_tiles, s = i / a_tiles % x_tiles * LANES;
        const Py_ssize_t r = piece(k->a_channels, i % a_tiles, a_tiles), r_end = piece(k->a_channels, i % a_tiles + 1, a_tiles);
        const Py_ssize_t at = (group * k->a_channels + r) * a_plane;
        F(pooled)(k, dy + at, position + at, y ? y + at : 0, x + (group * k->x_channels + s) * x_plane, r_end - r,
                  least(k->x_channels - s, LANES), dw + group * k->dw_group + r * k->dw_a + s * k->dw_x,
                  db && !s ? db + group * k->a_channels + r : 0);
    }
}
