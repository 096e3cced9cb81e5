/* Losses of one row: the sum, and da = its gradient before the activation of y; both times `scale`. */
INLINE V F(clip)(V x, REAL bound)
{
    x = F(pick)(x > bound, F(splat)(bound), x);
    return F(pick)(x < -bound, F(splat)(-bound), x);
}

/* Loss of each element and, in *slope, its derivative in y. */
INLINE V F(loss_element)(const int loss, V y, V target, REAL delta, V *slope)
{
    const V error = y - target;
    V size, small, e;
    switch (loss) {
    case SQUARED_ERROR: *slope = 2 * error; return error * error;
    case ABSOLUTE_ERROR:
        *slope = F(pick)(error > 0, F(splat)(1), F(pick)(error < 0, F(splat)(-1), error));
        return F(magnitude)(error);
    case HUBER:
        *slope = F(clip)(error, delta);
        size = F(magnitude)(error);
        return F(pick)(size > delta, delta * (size - delta / 2), error * error / 2);
    case CROSS_ENTROPY:
        small = y * (1 - y);
        *slope = error / F(pick)(small < (REAL)1e-12, F(splat)((REAL)1e-12), small);
        return -(target * F(log_unit)(y) + (1 - target) * F(log_one_minus)(y));
    default: /* CROSS_ENTROPY_OF_LOGITS: one exponential for the sigmoid and the logarithm */
        e = F(exp)(F(minus_magnitude)(y));
        *slope = F(sigmoid_of)(y, e) - target;
        return F(pick)(y < 0, F(splat)(0), y) - y * target + F(log1p_of)(e);
    }
}

INLINE REAL F(loss_row_of)(const int loss, const int activation, const REAL *y, const REAL *target, REAL *da,
                           Py_ssize_t size, REAL scale, REAL delta)
{
    V sum = {0}, slope;
    Py_ssize_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        const V output = F(load)(y + i);
        sum += F(loss_element)(loss, output, F(load)(target + i), delta, &slope);
        F(store)(da + i, F(slope)(slope * scale, output, activation));
    }
    if (i < size) { /* what the missing lanes have made of zeros does not count */
        const V output = F(load_part)(y + i, size - i);
        const V element = F(loss_element)(loss, output, F(load_part)(target + i, size - i), delta, &slope);
        REAL lanes[LANES];
        F(store)(lanes, element);
        sum += F(load_part)(lanes, size - i);
        F(store_part)(da + i, F(slope)(slope * scale, output, activation), size - i);
    }
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
        const V e = F(exp)(F(load_part)(x + i, size - i) - most);
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
