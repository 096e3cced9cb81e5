/* Products that pass over the zeros of a factor: what ReLU and the background of an image leave of a matrix is often half
 * of it or less.
 *
 *   c[r, :] = sum of a(r, p) b[p, :] over the p where a(r, p) is not 0, vectors along the columns
 *
 * The terms that are there are added in the order of the outer tile (tiles.h), and a product with 0 adds nothing as long as
 * b is finite, but the sign of a zero, which both leave positive: the bits are the same, and which of the two is taken is a
 * matter of time alone. Where b is not finite no term is left out.
 */
#define ZERO_STEPS 64  /* whose bits are a word, and whose rows of b stay in the first cache */
#define ZERO_COLUMNS 8 /* vectors of c that stay in registers: as many as a core adds to while one sum is made */
#define ZERO_WORDS 2048 /* of bits at a time, */
#define ZERO_WIDEST (ZERO_WORDS / 8 * ZERO_STEPS) /* of at least 8 rows */
#define ZERO_ROWS (VECTOR_BYTES < 64 ? 64 : 32) /* rows of a weight at a time, */
#define ZERO_MOST 512   /* for the gradients of which there are so many steps at most */
#define ZERO_SAMPLES (1024 / VECTOR_BYTES) /* vectors that tell how many zeros there are */

/* Bit i: whether x[i] is not 0, for the first LANES numbers. */
INLINE uint64_t F(others_than_zero)(const REAL *x)
{
    const VI is = F(load)(x) != (V){0};
#if defined(__AVX512F__)
#if REAL_BITS == 32
    return _mm512_movepi32_mask((__m512i)is);
#else
    return _mm512_movepi64_mask((__m512i)is);
#endif
#elif defined(__AVX2__)
#if REAL_BITS == 32
    return (uint64_t)(unsigned)_mm256_movemask_ps((__m256)is);
#else
    return (uint64_t)(unsigned)_mm256_movemask_pd((__m256d)is);
#endif
#else
    uint64_t bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (uint64_t)(is[i] & 1) << i;
    return bits;
#endif
}

/* The same of `count` <= ZERO_STEPS numbers. */
INLINE uint64_t F(word_of)(const REAL *x, Py_ssize_t count)
{
    uint64_t word = 0;
    Py_ssize_t i = 0;
    for (; i + LANES <= count; i += LANES) word |= F(others_than_zero)(x + i) << i;
    for (; i < count; i++) word |= (uint64_t)(x[i] != 0) << i;
    return word;
}

/* Bit p of words[i]: whether x[p, i] is not 0, for `rows` <= ZERO_STEPS rows. */
STATIC void F(words_down)(const REAL *x, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t columns, uint64_t *words)
{
    for (Py_ssize_t i = 0; i < columns; i += LANES) {
        const Py_ssize_t count = columns - i < LANES ? columns - i : LANES;
        VI low = {0}, high = {0};
        for (Py_ssize_t p = 0; p < rows && p < 32; p++)
            low |= (F(load_part)(x + p * row + i, count) != (V){0}) & (INTEGER)(1u << p);
        for (Py_ssize_t p = 32; p < rows; p++)
            high |= (F(load_part)(x + p * row + i, count) != (V){0}) & (INTEGER)(1u << (p - 32));
        for (Py_ssize_t l = 0; l < count; l++) words[i + l] = (uint32_t)low[l] | (uint64_t)(uint32_t)high[l] << 32;
    }
}

/* How many numbers of `rows` rows are others than 0, as a share of all. Some ZERO_SAMPLES vectors of a few rows tell. */
STATIC double F(share_of_others)(const REAL *a, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t size)
{
    if (rows < 1 || size < 1) return 1;
    const Py_ssize_t some = rows < 8 ? rows : 8, vectors = size / LANES;
    Py_ssize_t others = 0, all = 0;
    if (vectors == 0)
        for (; all < some * size; all += size, a += row) others += __builtin_popcountll(F(word_of)(a, size));
    const Py_ssize_t hop = some * vectors < ZERO_SAMPLES ? 1 : some * vectors / ZERO_SAMPLES, next = rows / some * row;
    for (Py_ssize_t i = 0; i < some; i++, a += next)
        for (Py_ssize_t v = i % hop; v < vectors; v += hop, all += LANES)
            others += __builtin_popcountll(F(others_than_zero)(a + v * LANES));
    return (double)others / (double)all;
}

/* Whether rows of b are finite, in so many columns. They are near after that. */
INLINE int F(are_finite)(const REAL *b, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t columns)
{
    V sum[2] = {{0}, {0}};
    for (Py_ssize_t p = 0; p < rows; p++)
        for (Py_ssize_t j = 0; j < columns; j += 2 * LANES) {
            sum[0] += F(load_part)(b + p * row + j, columns - j) * 0;
            if (j + LANES < columns) sum[1] += F(load_part)(b + p * row + j + LANES, columns - j - LANES) * 0;
        }
    return F(lane_sum)(sum[0] + sum[1]) == 0;
}

/* One row of c, in C vectors. */
INLINE void F(zero_tile)(const int C, const REAL *a, Py_ssize_t a_step, uint64_t word, const REAL *b, Py_ssize_t b_step,
                         const REAL *start, REAL *c, Py_ssize_t last)
{
    V acc[ZERO_COLUMNS];
    UNROLL for (int j = 0; j < C; j++)
        acc[j] = start ? F(load_part)(start + j * LANES, j == C - 1 ? last : LANES) : (V){0};
    if (last == LANES)
        for (; word; word &= word - 1) {
            const Py_ssize_t p = __builtin_ctzll(word);
            const REAL *bp = b + p * b_step;
            const V by = F(splat)(a[p * a_step]);
            UNROLL for (int j = 0; j < C; j++) acc[j] += by * F(load)(bp + j * LANES);
        }
    else
        for (; word; word &= word - 1) {
            const Py_ssize_t p = __builtin_ctzll(word);
            const REAL *bp = b + p * b_step;
            const V by = F(splat)(a[p * a_step]);
            UNROLL for (int j = 0; j < C - 1; j++) acc[j] += by * F(load)(bp + j * LANES);
            acc[C - 1] += by * F(load_part)(bp + (C - 1) * LANES, last);
        }
    UNROLL for (int j = 0; j < C; j++) F(store_part)(c + j * LANES, acc[j] + 0, j == C - 1 ? last : LANES);
}

/* Have a row of parameters fetched that is updated soon. */
INLINE void F(ask_for_row)(const F(Update) *update, const REAL *w, Py_ssize_t columns)
{
    for (Py_ssize_t j = 0; j < columns; j += 64 / (Py_ssize_t)sizeof(REAL)) {
        ASK_TO_UPDATE(w + j);
        if (update->adam) {
            ASK_TO_UPDATE(w + j + update->first);
            ASK_TO_UPDATE(w + j + update->second);
        }
    }
}

#define ZERO_TILE(C) \
    case C: \
        for (Py_ssize_t r = 0; r < rows; r++) { \
            if (update) F(ask_for_row)(update, soon + r * soon_row, columns); \
            F(zero_tile)(C, a + r * a_row, a_step, finite ? words[r * word_step] : all, b, b_step, \
                         start ? start + r * start_row : 0, c + r * c_row, last); \
        } \
        break;

/* Rows of c, in at most ZERO_COLUMNS vectors, for `steps` <= ZERO_STEPS; the words of a row say where a is not 0, which
 * counts where b is `finite`. With `update` the rows of parameters at `soon` are fetched meanwhile. */
STATIC void F(zero_rows)(const REAL *a, Py_ssize_t a_row, Py_ssize_t a_step, const uint64_t *words, Py_ssize_t word_step,
                         const REAL *b, Py_ssize_t b_step, Py_ssize_t steps, int finite, const REAL *start,
                         Py_ssize_t start_row, REAL *c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns,
                         const F(Update) *update, const REAL *soon, Py_ssize_t soon_row)
{
    const Py_ssize_t vectors = (columns + LANES - 1) / LANES, last = columns - (vectors - 1) * LANES;
    const uint64_t all = ~(uint64_t)0 >> (ZERO_STEPS - steps);
    switch (vectors) {
        ZERO_TILE(1) ZERO_TILE(2) ZERO_TILE(3) ZERO_TILE(4)
        ZERO_TILE(5) ZERO_TILE(6) ZERO_TILE(7) ZERO_TILE(8)
    }
}
#undef ZERO_TILE

/* c = f(a b + bias) for all rows and columns; the steps of a lie one behind the other. */
STATIC void F(zero_product)(const REAL *a, Py_ssize_t a_row, const REAL *b, Py_ssize_t b_step, Py_ssize_t steps,
                            const REAL *bias, REAL *c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns, int activation)
{
    uint64_t words[ZERO_WORDS];
    const Py_ssize_t each = (steps + ZERO_STEPS - 1) / ZERO_STEPS, most_rows = ZERO_WORDS / each;
    const Py_ssize_t vectors = (columns + LANES - 1) / LANES, panels = (vectors + ZERO_COLUMNS - 1) / ZERO_COLUMNS;
    for (Py_ssize_t count; rows > 0; rows -= count, a += count * a_row, c += count * c_row) {
        count = rows < most_rows ? rows : most_rows;
        for (Py_ssize_t r = 0; r < count; r++)
            for (Py_ssize_t p = 0; p < steps; p += ZERO_STEPS)
                words[r * each + p / ZERO_STEPS] =
                    F(word_of)(a + r * a_row + p, steps - p < ZERO_STEPS ? steps - p : ZERO_STEPS);
        for (Py_ssize_t panel = 0; panel < panels; panel++) {
            const Py_ssize_t j = vectors * panel / panels * LANES, next = vectors * (panel + 1) / panels * LANES;
            const Py_ssize_t wide = (next < columns ? next : columns) - j;
            for (Py_ssize_t p = 0; p < steps; p += ZERO_STEPS) {
                const Py_ssize_t some = steps - p < ZERO_STEPS ? steps - p : ZERO_STEPS;
                const REAL *bp = b + p * b_step + j;
                F(zero_rows)(a + p, a_row, 1, words + p / ZERO_STEPS, each, bp, b_step, some,
                             F(are_finite)(bp, b_step, some, wide), p ? c + j : bias ? bias + j : 0, p ? c_row : 0,
                             c + j, c_row, count, wide, 0, 0, 0);
            }
            if (activation != LINEAR) F(map_activate)(c + j, c + j, c_row, count, wide, activation);
        }
    }
}

/* c = a^T b, or c updated by that gradient: `rows` columns of a, one behind the other, some of them at a time. */
STATIC void F(zero_update)(const REAL *a, Py_ssize_t a_step, const REAL *b, Py_ssize_t b_step, Py_ssize_t steps, REAL *c,
                           Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns, const F(Update) *update)
{
    uint64_t words[ZERO_MOST / ZERO_STEPS * ZERO_ROWS];
    REAL made[ZERO_ROWS * ZERO_COLUMNS * LANES];
    const Py_ssize_t vectors = (columns + LANES - 1) / LANES, panels = (vectors + ZERO_COLUMNS - 1) / ZERO_COLUMNS;
    const int finite = F(are_finite)(b, b_step, steps, columns); /* b is met again and again */
    for (Py_ssize_t i = 0, count; i < rows; i += count) {
        count = rows - i < ZERO_ROWS ? rows - i : ZERO_ROWS;
        for (Py_ssize_t p = 0; p < steps; p += ZERO_STEPS)
            F(words_down)(a + p * a_step + i, a_step, steps - p < ZERO_STEPS ? steps - p : ZERO_STEPS, count,
                          words + p / ZERO_STEPS * ZERO_ROWS);
        for (Py_ssize_t panel = 0; panel < panels; panel++) {
            const Py_ssize_t j = vectors * panel / panels * LANES, next = vectors * (panel + 1) / panels * LANES;
            const Py_ssize_t wide = (next < columns ? next : columns) - j;
            REAL *to = c + i * c_row + j, *sums = update ? made : to;
            const Py_ssize_t sums_row = update ? ZERO_COLUMNS * LANES : c_row;
            for (Py_ssize_t p = 0; p < steps; p += ZERO_STEPS)
                F(zero_rows)(a + p * a_step + i, 1, a_step, words + p / ZERO_STEPS * ZERO_ROWS, 1, b + p * b_step + j, b_step,
                             steps - p < ZERO_STEPS ? steps - p : ZERO_STEPS, finite, p ? sums : 0, sums_row, sums, sums_row,
                             count, wide, p ? 0 : update, to, c_row);
            if (update) F(update_rows)(update, made, sums_row, to, c_row, count, wide);
        }
    }
}
