/* Register tiles: the two products a dense layer is made of, for one small block of the result.
 *
 * outer tile   c[r, :] = sum_p a(r, p) b[p, :]      vectors along the columns; forward (a = x, b = w) and dw (a = x^T, b = da)
 * dot tile     c[r, q] = sum_m a[r, m] b[q, m]      vectors along the sum; dx (a = da, b = w), where w stays as it is
 *
 * Every number is summed in an order that depends on the shape of the layer alone: a row has the same bits
 * wherever it stands in whichever batch, and on any number of threads.
 */

/* R rows x C vectors of accumulators; R and C are constants where this is inlined, so they live in registers. They begin
 * with zeros, a row `start`, or where that is c itself with the sums that are there.
 * `last` is the number of columns of the last vector. The sums are stored in c or, with `update`, are the gradient
 * by which c is updated. */
INLINE void F(outer_tile)(const int R, const int C, const REAL *a, Py_ssize_t a_row, Py_ssize_t a_step, const REAL *b,
                          Py_ssize_t b_step, Py_ssize_t steps, const REAL *start, REAL *c, Py_ssize_t c_row,
                          Py_ssize_t last, const F(Update) *update)
{
    V acc[TILE_MOST_ROWS][TILE_COLUMNS];
    if (start == c) {
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int j = 0; j < C; j++)
            acc[r][j] = F(load_part)(c + r * c_row + j * LANES, j == C - 1 ? last : LANES);
    } else {
        UNROLL for (int j = 0; j < C; j++)
        {
            const V first = start ? F(load_part)(start + j * LANES, j == C - 1 ? last : LANES) : (V){0};
            UNROLL for (int r = 0; r < R; r++) acc[r][j] = first;
        }
    }
    Py_ssize_t p = 0;
    /* What is updated comes from a far cache: the next tile is asked for during the sums, a row at a time, for a core
     * waits for only so many lines at once. */
    for (int row = update && update->ahead ? 0 : R - 1; row < R; row++) {
        const Py_ssize_t until = steps * (row + 1) / R;
        if (update && update->ahead) UNROLL for (int j = 0; j < C; j += 64 / VECTOR_BYTES)
        {
            REAL *next = c + update->ahead + row * c_row + j * LANES;
            ASK_TO_UPDATE(next);
            if (update->adam) {
                ASK_TO_UPDATE(next + update->first);
                ASK_TO_UPDATE(next + update->second);
            }
        }
        if (last == LANES) {
            for (; p < until; p++, a += a_step, b += b_step) {
                V bp[TILE_COLUMNS];
                UNROLL for (int j = 0; j < C; j++) bp[j] = F(load)(b + j * LANES);
                UNROLL for (int r = 0; r < R; r++)
                {
                    const V ar = F(splat)(a[r * a_row]);
                    UNROLL for (int j = 0; j < C; j++) acc[r][j] += ar * bp[j];
                }
            }
        } else {
            for (; p < until; p++, a += a_step, b += b_step) {
                V bp[TILE_COLUMNS];
                UNROLL for (int j = 0; j < C - 1; j++) bp[j] = F(load)(b + j * LANES);
                bp[C - 1] = F(load_part)(b + (C - 1) * LANES, last);
                UNROLL for (int r = 0; r < R; r++)
                {
                    const V ar = F(splat)(a[r * a_row]);
                    UNROLL for (int j = 0; j < C; j++) acc[r][j] += ar * bp[j];
                }
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int j = 0; j < C; j++) acc[r][j] += (V){0}; /* never -0: see zeros.h */
    if (update && update->adam) { /* long: not unrolled, from the first cache */
        REAL g[TILE_MOST_ROWS * TILE_COLUMNS * LANES];
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int j = 0; j < C; j++)
            F(store)(g + (r * C + j) * LANES, acc[r][j]);
        F(update_rows)(update, g, C * LANES, c, c_row, R, (C - 1) * LANES + last);
    } else if (update) {
        const REAL rate = update->rate, decay = update->decay;
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int j = 0; j < C; j++)
        {
            REAL *to = c + r * c_row + j * LANES;
            const Py_ssize_t count = j == C - 1 ? last : LANES;
            const V w = F(load_part)(to, count);
            F(store_part)(to, w - rate * (acc[r][j] + decay * w), count);
        }
    } else {
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int j = 0; j < C; j++)
            F(store_part)(c + r * c_row + j * LANES, acc[r][j], j == C - 1 ? last : LANES);
    }
}

/* Either the rows or the steps of a lie one behind the other: with a constant there, an address is one register. */
#define OUTER(R, C) \
    case (C) * 16 + (R): \
        if (a_row == 1) \
            F(outer_tile)(R, C, a, 1, a_step, b, b_step, steps, start, c, c_row, last, update); \
        else \
            F(outer_tile)(R, C, a, a_row, 1, b, b_step, steps, start, c, c_row, last, NULL); \
        break;
#define OUTER_1_4(C) OUTER(1, C) OUTER(2, C) OUTER(3, C) OUTER(4, C)

/* One tile of `rows` <= most rows x `columns` columns. One of a_row and a_step is 1; with `update` a_row is. */
STATIC void F(outer)(const REAL *a, Py_ssize_t a_row, Py_ssize_t a_step, const REAL *b, Py_ssize_t b_step,
                     Py_ssize_t steps, const REAL *start, REAL *c, Py_ssize_t c_row, Py_ssize_t rows,
                     Py_ssize_t columns, const F(Update) *update)
{
    const Py_ssize_t vectors = (columns + LANES - 1) / LANES;
    const Py_ssize_t last = columns - (vectors - 1) * LANES;
    switch (vectors * 16 + rows) {
        OUTER_1_4(1) OUTER(5, 1) OUTER(6, 1) OUTER(7, 1) OUTER(8, 1)
        OUTER_1_4(2)
#if TILE_COLUMNS > 2 || defined(__AVX2__)
        OUTER(5, 2) OUTER(6, 2)
#endif
#if TILE_COLUMNS > 2
        OUTER(7, 2) OUTER(8, 2)
        OUTER_1_4(3) OUTER(5, 3) OUTER(6, 3) OUTER(7, 3) OUTER(8, 3)
        OUTER_1_4(4) OUTER(5, 4) OUTER(6, 4)
        OUTER_1_4(5) OUTER(5, 5)
#endif
    }
}
#undef OUTER
#undef OUTER_1_4

/* DOT_ROWS x Q dot products of length m; rows and columns beyond the edge repeat the last one and are not stored. */
#define DOT_SUMS(Q) ((DOT_ROWS * (Q) + LANES - 1) / LANES * LANES)
INLINE void F(dot_tile)(const int Q, const REAL *a, Py_ssize_t a_row, const REAL *b, Py_ssize_t b_row, Py_ssize_t m,
                        REAL *c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns)
{
    const REAL *ar[DOT_ROWS], *bq[4];
    V acc[DOT_SUMS(4)];
    UNROLL for (int r = 0; r < DOT_ROWS; r++) ar[r] = a + (r < rows ? r : rows - 1) * a_row;
    UNROLL for (int q = 0; q < Q; q++) bq[q] = b + (q < columns ? q : columns - 1) * b_row;
    UNROLL for (int i = 0; i < DOT_SUMS(Q); i++) acc[i] = (V){0};
    const Py_ssize_t whole = m / LANES * LANES;
    for (Py_ssize_t i = 0; i < whole; i += LANES) {
        V av[DOT_ROWS];
        UNROLL for (int r = 0; r < DOT_ROWS; r++) av[r] = F(load)(ar[r] + i);
        UNROLL for (int q = 0; q < Q; q++)
        {
            const V bv = F(load)(bq[q] + i);
            UNROLL for (int r = 0; r < DOT_ROWS; r++) acc[r * Q + q] += av[r] * bv;
        }
    }
    if (whole < m) { /* zeros beyond the end: the padding of a row is never read */
        V av[DOT_ROWS];
        UNROLL for (int r = 0; r < DOT_ROWS; r++) av[r] = F(load_part)(ar[r] + whole, m - whole);
        UNROLL for (int q = 0; q < Q; q++)
        {
            const V bv = F(load_part)(bq[q] + whole, m - whole);
            UNROLL for (int r = 0; r < DOT_ROWS; r++) acc[r * Q + q] += av[r] * bv;
        }
    }
    REAL sums[DOT_SUMS(4)];
    UNROLL for (int i = 0; i < DOT_SUMS(Q); i += LANES) F(store)(sums + i, F(lane_sums)(acc + i));
    if (columns == 4)
        for (Py_ssize_t r = 0; r < rows; r++) memcpy(c + r * c_row, sums + r * 4, 4 * sizeof(REAL));
    else
        for (Py_ssize_t r = 0; r < rows; r++)
            for (Py_ssize_t q = 0; q < columns; q++) c[r * c_row + q] = sums[r * Q + q];
}
#undef DOT_SUMS

/* At most 4 columns. The last two of ten, say, are a smaller tile, with the same bits. */
STATIC void F(dot)(const REAL *a, Py_ssize_t a_row, const REAL *b, Py_ssize_t b_row, Py_ssize_t m, REAL *c,
                   Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns)
{
    if (columns > 2)
        F(dot_tile)(4, a, a_row, b, b_row, m, c, c_row, rows, columns);
    else
        F(dot_tile)(2, a, a_row, b, b_row, m, c, c_row, rows, columns);
}

/* Sums of the rows of a, for some vectors of columns at a time, which stay in registers. */
#define SUMS 4
STATIC void F(column_sums)(const REAL *a, Py_ssize_t a_row, Py_ssize_t rows, REAL *sums, Py_ssize_t columns)
{
    for (; columns >= SUMS * LANES; columns -= SUMS * LANES, a += SUMS * LANES, sums += SUMS * LANES) {
        V sum[SUMS] = {0};
        for (Py_ssize_t i = 0; i < rows; i++)
            UNROLL for (int j = 0; j < SUMS; j++) sum[j] += F(load)(a + i * a_row + j * LANES);
        UNROLL for (int j = 0; j < SUMS; j++) F(store)(sums + j * LANES, sum[j]);
    }
    for (; columns > 0; columns -= LANES, a += LANES, sums += LANES) {
        V sum = {0};
        for (Py_ssize_t i = 0; i < rows; i++) sum += F(load_part)(a + i * a_row, columns);
        F(store_part)(sums, sum, columns);
    }
}
#undef SUMS
