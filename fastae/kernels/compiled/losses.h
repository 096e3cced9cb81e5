/* Losses of one row: the sum, and da = its gradient before the activation of y; both times `scale`. */
INLINE V F(clip)(V x, REAL bound)
{
    x = F(pick)(x > bound, F(splat)(bound), x);
    return F(pick)(x < -bound, F(splat)(-bound), x);
}

/* Loss of each element of n vectors side by side (maths.h) and, in `slope`, its derivative in y. */
INLINE void F(loss_elements)(const int n, const int loss, const V *y, const V *target, REAL delta, V *element, V *slope)
{
    V error[SIDE], e[SIDE], log[SIDE];
    EACH error[k] = y[k] - target[k];
    switch (loss) {
    case SQUARED_ERROR:
        EACH slope[k] = 2 * error[k];
        EACH element[k] = error[k] * error[k];
        break;
    case ABSOLUTE_ERROR:
        EACH slope[k] = F(pick)(error[k] > 0, F(splat)(1), F(pick)(error[k] < 0, F(splat)(-1), error[k]));
        EACH element[k] = F(magnitude)(error[k]);
        break;
    case HUBER:
        EACH slope[k] = F(clip)(error[k], delta);
        EACH
        {
            const V size = F(magnitude)(error[k]);
            element[k] = F(pick)(size > delta, delta * (size - delta / 2), error[k] * error[k] / 2);
        }
        break;
    case CROSS_ENTROPY:
        EACH
        {
            const V small = y[k] * (1 - y[k]);
            slope[k] = error[k] / F(pick)(small < (REAL)1e-12, F(splat)((REAL)1e-12), small);
        }
        F(log_unit)(n, y, e);
        F(log_one_minus)(n, y, log);
        EACH element[k] = -(target[k] * e[k] + (1 - target[k]) * log[k]);
        break;
    default: /* CROSS_ENTROPY_OF_LOGITS: one exponential for the sigmoid and the logarithm */
        EACH e[k] = F(minus_magnitude)(y[k]);
        F(exp)(n, e, e);
        F(sigmoid_of)(n, y, e, slope);
        EACH slope[k] -= target[k];
        F(log1p_of)(n, e, log);
        EACH element[k] = F(pick)(y[k] < 0, F(splat)(0), y[k]) - y[k] * target[k] + log[k];
    }
}

/* n vectors of a row, of which the last has `last` numbers; adds their losses to *sum. What the missing lanes have made
 * of zeros does not count. */
INLINE void F(loss_next)(const int n, const int loss, const int activation, const REAL *y, const REAL *target, REAL *da,
                         Py_ssize_t last, REAL scale, REAL delta, V *sum)
{
    V output[SIDE], wanted[SIDE], element[SIDE], slope[SIDE];
    EACH output[k] = F(load_part)(y + k * LANES, k == n - 1 ? last : LANES);
    EACH wanted[k] = F(load_part)(target + k * LANES, k == n - 1 ? last : LANES);
    F(loss_elements)(n, loss, output, wanted, delta, element, slope);
    EACH F(store_part)(da + k * LANES, F(slope)(slope[k] * scale, output[k], activation), k == n - 1 ? last : LANES);
    if (last < LANES) {
        REAL lanes[LANES];
        F(store)(lanes, element[n - 1]);
        element[n - 1] = F(load_part)(lanes, last);
    }
    EACH *sum += element[k];
}

INLINE REAL F(loss_row_of)(const int loss, const int activation, const REAL *y, const REAL *target, REAL *da,
                           Py_ssize_t size, REAL scale, REAL delta)
{
    V sum = {0};
    Py_ssize_t i = 0;
    for (; i + SIDE * LANES <= size; i += SIDE * LANES)
        F(loss_next)(SIDE, loss, activation, y + i, target + i, da + i, LANES, scale, delta, &sum);
    for (; i + LANES <= size; i += LANES)
        F(loss_next)(1, loss, activation, y + i, target + i, da + i, LANES, scale, delta, &sum);
    if (i < size) F(loss_next)(1, loss, activation, y + i, target + i, da + i, size - i, scale, delta, &sum);
    return F(lane_sum)(sum) * scale;
}

/* The derivatives of the usual activations are applied in the same pass. */
#define LOSS(code) \
    case code: \
        sum = activation == SIGMOID ? F(loss_row_of)(code, SIGMOID, y, target, da, size, scale, delta) \
              : activation == RELU  ? F(loss_row_of)(code, RELU, y, target, da, size, scale, delta) \
                                    : F(loss_row_of)(code, LINEAR, y, target, da, size, scale, delta); \
        break;
STATIC REAL F(loss_row)(int loss, const REAL *y, const REAL *target, REAL *da, Py_ssize_t size, REAL scale, REAL delta,
                        int activation)
{
    REAL sum;
    switch (loss) {
        LOSS(SQUARED_ERROR)
        LOSS(ABSOLUTE_ERROR)
        LOSS(HUBER)
        LOSS(CROSS_ENTROPY)
    default: sum = F(loss_row_of)(CROSS_ENTROPY_OF_LOGITS, LINEAR, y, target, da, size, scale, delta);
    }
    if (activation != LINEAR && activation != RELU && activation != SIGMOID) F(map_slope)(da, y, da, size, activation);
    return sum;
}
#undef LOSS

/* Softmax of one row and its gradient. */
STATIC void F(softmax_row)(const REAL *x, REAL *y, Py_ssize_t size)
{
    REAL most = x[0];
    for (Py_ssize_t i = 1; i < size; i++) most = x[i] > most ? x[i] : most;
    V sum = {0};
    for (Py_ssize_t i = 0; i < size; i += LANES) {
        V e = F(load_part)(x + i, size - i) - most;
        F(exp)(1, &e, &e);
        F(store_part)(y + i, e, size - i);
        sum += F(load_part)(y + i, size - i);
    }
    const REAL whole = F(lane_sum)(sum);
    for (Py_ssize_t i = 0; i < size; i += LANES)
        F(store_part)(y + i, F(load_part)(y + i, size - i) / whole, size - i);
}

STATIC void F(softmax_slope_row)(const REAL *dy, const REAL *y, REAL *dx, Py_ssize_t size)
{
    V sum = {0};
    for (Py_ssize_t i = 0; i < size; i += LANES) sum += F(load_part)(dy + i, size - i) * F(load_part)(y + i, size - i);
    const REAL mean = F(lane_sum)(sum);
    for (Py_ssize_t i = 0; i < size; i += LANES)
        F(store_part)(dx + i, F(load_part)(y + i, size - i) * (F(load_part)(dy + i, size - i) - mean), size - i);
}
