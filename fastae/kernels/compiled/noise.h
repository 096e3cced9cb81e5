/* Normal deviates by Box and Muller: sqrt(-2 log u) cos(2 pi v), for random bits in `first` and `second`. */
INLINE V F(cosine_of_turn)(V v)
{
    /* With q = |v - 1/2|: cos(2 pi v) = -cos(2 pi q) = sin(2 pi (q - 1/4)), an angle within a quarter turn. */
    const V a = (F(magnitude)(v - (REAL)0.5) - (REAL)0.25) * (REAL)6.28318530717958647693;
    const V square = a * a;
    V p = {0};
    UNROLL for (int i = SINE_TERMS; i >= 0; i--)
        p = p * square + (REAL)(i % 2 ? -INVERSE_FACTORIAL[2 * i + 1] : INVERSE_FACTORIAL[2 * i + 1]);
    return p * a;
}

/* y = x + stddev z; the bits of up to 64 elements */
STATIC void F(add_normal)(const REAL *x, REAL *y, const uint32_t *first, const uint32_t *second, Py_ssize_t count,
                          REAL stddev)
{
    REAL u[64], v[64];
    for (Py_ssize_t i = 0; i < 64; i++) u[i] = (REAL)((int32_t)(first[i] >> 8) + 1) * (REAL)(1. / 16777216);
    for (Py_ssize_t i = 0; i < 64; i++) v[i] = (REAL)(int32_t)(second[i] >> 8) * (REAL)(1. / 16777216);
    for (Py_ssize_t i = 0; i < count; i += LANES) {
        V log = F(load)(u + i);
        F(log_unit)(1, &log, &log);
        const V z = F(square_root)(-2 * log) * F(cosine_of_turn)(F(load)(v + i));
        F(store_part)(y + i, F(load_part)(x + i, count - i) + stddev * z, count - i);
    }
}
