/* Batch normalisation of a panel of at most NORM_COLUMNS columns.
 *
 * Every sum runs down its own column, row by row and in a register: its bits depend on the batch alone, whatever the
 * panel and the number of threads.
 */

/* C vectors of columns; C is a constant where this is inlined, `last` the columns of the last vector. */
INLINE void F(norm_statistics)(const int C, Py_ssize_t last, const REAL *x, Py_ssize_t row, Py_ssize_t n, REAL epsilon,
                               REAL momentum, REAL *running_mean, REAL *running_var, REAL *mean, REAL *inv_std)
{
    V shift[4], sums[4];
#define AT(p, c) F(load_part)((p) + (c) * LANES, (c) == C - 1 ? last : LANES)
#define PUT(p, c, v) F(store_part)((p) + (c) * LANES, v, (c) == C - 1 ? last : LANES)
    UNROLL for (int c = 0; c < C; c++)
    {
        shift[c] = AT(x, c); /* sums of what is left are small, so is their rounding */
        sums[c] = (V){0};
    }
    for (Py_ssize_t i = 0; i < n; i++)
        UNROLL for (int c = 0; c < C; c++) sums[c] += AT(x + i * row, c) - shift[c];
    UNROLL for (int c = 0; c < C; c++)
    {
        shift[c] += sums[c] * (REAL)(1.0 / n);
        sums[c] = (V){0};
    }
    for (Py_ssize_t i = 0; i < n; i++)
        UNROLL for (int c = 0; c < C; c++)
        {
            const V d = AT(x + i * row, c) - shift[c];
            sums[c] += d * d;
        }
    const REAL unbiased = (REAL)((double)n / (n > 1 ? n - 1 : 1));
    UNROLL for (int c = 0; c < C; c++)
    {
        const V var = sums[c] * (REAL)(1.0 / n), m = AT(running_mean, c), v = AT(running_var, c);
        PUT(mean, c, shift[c]);
        PUT(inv_std, c, 1 / F(square_root)(var + epsilon));
        PUT(running_mean, c, m + momentum * (shift[c] - m));
        PUT(running_var, c, v + momentum * (var * unbiased - v));
    }
}

/* y = f((x - mean) scale + beta), row by row; y may be x. */
INLINE void F(norm_rows_of)(const int activation, const REAL *x, REAL *y, Py_ssize_t row, Py_ssize_t n, Py_ssize_t size,
                            const REAL *mean, const REAL *scale, const REAL *beta)
{
    for (Py_ssize_t i = 0; i < n; i++)
        for (Py_ssize_t j = 0; j < size; j += LANES) {
            const Py_ssize_t count = size - j;
            const V d = F(load_part)(x + i * row + j, count) - F(load_part)(mean + j, count);
            V v = d * F(load_part)(scale + j, count) + F(load_part)(beta + j, count);
            F(activate)(1, &v, activation);
            F(store_part)(y + i * row + j, v, count);
        }
}

STATIC void F(norm_rows)(const REAL *x, REAL *y, Py_ssize_t row, Py_ssize_t n, Py_ssize_t size, const REAL *mean,
                         const REAL *scale, const REAL *beta, int activation)
{
    if (activation == RELU) {
        F(norm_rows_of)(RELU, x, y, row, n, size, mean, scale, beta);
    } else if (activation == LEAKY_RELU) {
        F(norm_rows_of)(LEAKY_RELU, x, y, row, n, size, mean, scale, beta);
    } else {
        F(norm_rows_of)(LINEAR, x, y, row, n, size, mean, scale, beta);
        if (activation != LINEAR) F(map_activate)(y, y, row, n, size, activation);
    }
}

/* scale = gamma / sqrt(var + epsilon) */
STATIC void F(norm_scale)(const REAL *gamma, const REAL *var, double epsilon, REAL *scale, Py_ssize_t size)
{
    for (Py_ssize_t j = 0; j < size; j += LANES) {
        const V root = F(square_root)(F(load_part)(var + j, size - j) + (REAL)epsilon);
        F(store_part)(scale + j, F(load_part)(gamma + j, size - j) / root, size - j);
    }
}

#define STATISTICS(C, last) \
    F(norm_statistics)(C, last, x + j, row, n, (REAL)epsilon, (REAL)momentum, running_mean + j, running_var + j, \
                       mean + j, inv_std + j)
STATIC void F(norm_forward)(const REAL *x, Py_ssize_t row, Py_ssize_t n, Py_ssize_t size, const REAL *gamma,
                            const REAL *beta, int activation, double epsilon, double momentum, REAL *running_mean,
                            REAL *running_var, REAL *y, REAL *mean, REAL *inv_std)
{
    REAL scale[NORM_COLUMNS];
    Py_ssize_t j = 0;
    for (; j + 4 * LANES <= size; j += 4 * LANES) STATISTICS(4, LANES);
    for (; j + LANES <= size; j += LANES) STATISTICS(1, LANES);
    if (j < size) STATISTICS(1, size - j);
    for (j = 0; j < size; j++) scale[j] = gamma[j] * inv_std[j];
    F(norm_rows)(x, y, row, n, size, mean, scale, beta, activation);
}
#undef STATISTICS

/* As norm_statistics: da = dy f'(y) into dx, its sums and those of its products with h; then dx. */
INLINE void F(norm_gradient)(const int C, Py_ssize_t last, const REAL *dy, const REAL *x, const REAL *y,
                             Py_ssize_t row, Py_ssize_t n, const REAL *gamma, const REAL *mean, const REAL *inv_std,
                             int activation, REAL *dx, REAL *dgamma, REAL *dbeta)
{
    V sums[4], products[4], centre[4], std[4];
    UNROLL for (int c = 0; c < C; c++)
    {
        sums[c] = products[c] = (V){0};
        centre[c] = AT(mean, c);
        std[c] = AT(inv_std, c);
    }
    for (Py_ssize_t i = 0; i < n; i++)
        UNROLL for (int c = 0; c < C; c++)
        {
            const V da = F(slope)(AT(dy + i * row, c), AT(y + i * row, c), activation);
            PUT(dx + i * row, c, da);
            sums[c] += da;
            products[c] += da * ((AT(x + i * row, c) - centre[c]) * std[c]);
        }
    V by_da[4], by_one[4], by_h[4];
    UNROLL for (int c = 0; c < C; c++)
    {
        PUT(dbeta, c, sums[c]);
        PUT(dgamma, c, products[c]);
        by_da[c] = AT(gamma, c) * std[c];
        by_one[c] = sums[c] / (REAL)n;
        by_h[c] = products[c] / (REAL)n * std[c];
    }
    for (Py_ssize_t i = 0; i < n; i++)
        UNROLL for (int c = 0; c < C; c++)
        {
            const V rest = AT(dx + i * row, c) - by_one[c] - (AT(x + i * row, c) - centre[c]) * by_h[c];
            PUT(dx + i * row, c, by_da[c] * rest);
        }
#undef AT
#undef PUT
}

#define GRADIENT(C, last, f) \
    F(norm_gradient)(C, last, dy + j, x + j, y + j, row, n, gamma + j, mean + j, inv_std + j, f, dx + j, dgamma + j, \
                     dbeta + j)
#define PANEL(f) \
    for (; j + 4 * LANES <= size; j += 4 * LANES) GRADIENT(4, LANES, f); \
    for (; j + LANES <= size; j += LANES) GRADIENT(1, LANES, f); \
    if (j < size) GRADIENT(1, size - j, f);
STATIC void F(norm_backward)(const REAL *dy, const REAL *x, const REAL *y, Py_ssize_t row, Py_ssize_t n,
                             Py_ssize_t size, const REAL *gamma, const REAL *mean, const REAL *inv_std, int activation,
                             REAL *dx, REAL *dgamma, REAL *dbeta)
{
    Py_ssize_t j = 0;
    if (activation == RELU) {
        PANEL(RELU)
        return;
    }
    if (activation != LINEAR) { /* the longer ones in a pass of their own */
        for (Py_ssize_t i = 0; i < n; i++) F(map_slope)(dy + i * row, y + i * row, dx + i * row, size, activation);
        dy = dx;
    }
    PANEL(LINEAR)
}
#undef PANEL
#undef GRADIENT
