/* Updates of parameters, which a tile applies to its gradients while they are in registers. */
typedef struct {
    int adam;                  /* 0: gradient descent */
    REAL rate;                 /* learning_rate; with Adam learning_rate / (1 - beta1^t) */
    REAL decay;                /* L2 penalty added to the gradient */
    REAL shrink;               /* AdamW: w is multiplied by this first; else 1 */
    REAL beta1, beta2, rest1, rest2; /* rest = 1 - beta */
    REAL root;                 /* 1 / sqrt(1 - beta2^t) */
    REAL epsilon;
    ptrdiff_t first, second;   /* from w to its exp_avg and exp_avg_sq, in elements */
    ptrdiff_t ahead;           /* from the tile at hand to the next one, 0 at the last */
} F(Update);

INLINE F(Update) F(descend)(double learning_rate, double weight_decay)
{
    return (F(Update)){.rate = (REAL)learning_rate, .decay = (REAL)weight_decay};
}

INLINE F(Update) F(adam_of)(int64_t step, double learning_rate, double beta1, double beta2, double epsilon,
                            double weight_decay, int decoupled)
{
    const double t = (double)(step + 1);
    return (F(Update)){
        .adam = 1,
        .rate = (REAL)(learning_rate / (1 - pow(beta1, t))),
        .decay = decoupled ? 0 : (REAL)weight_decay,
        .shrink = decoupled ? (REAL)(1 - learning_rate * weight_decay) : 1,
        .beta1 = (REAL)beta1, .rest1 = (REAL)(1 - beta1),
        .beta2 = (REAL)beta2, .rest2 = (REAL)(1 - beta2),
        .root = (REAL)(1 / sqrt(1 - pow(beta2, t))),
        .epsilon = (REAL)epsilon,
    };
}

INLINE V F(square_root)(V x)
{
#if defined(__AVX512F__)
#if REAL_BITS == 32
    return (V)_mm512_sqrt_ps((__m512)x);
#else
    return (V)_mm512_sqrt_pd((__m512d)x);
#endif
#elif defined(__AVX2__)
#if REAL_BITS == 32
    return (V)_mm256_sqrt_ps((__m256)x);
#else
    return (V)_mm256_sqrt_pd((__m256d)x);
#endif
#else
    for (int i = 0; i < LANES; i++) x[i] = REAL_SQRT(x[i]);
    return x;
#endif
}

/* m / (sqrt(v) root + epsilon). In float32 with AVX-512 the quotient comes from an estimate of 14 bits and one Newton
 * step, which leaves it an error of an ulp or two; the root has a unit of its own, and takes no time beside the rest. */
INLINE V F(adam_quotient)(const F(Update) *u, V m, V v)
{
    const V d = F(square_root)(v) * u->root + u->epsilon;
#if defined(__AVX512F__) && REAL_BITS == 32
    const V q = (V)_mm512_rcp14_ps((__m512)d), t = m * q;
    return t + t * (1 - d * q);
#else
    return m / d;
#endif
}

/* The parameters at `at`, updated by the gradient g; `plain` where nothing decays. */
INLINE V F(updated)(const F(Update) *u, const int plain, V g, REAL *at, Py_ssize_t count)
{
    const V w = F(load_part)(at, count);
    if (!u->adam) return w - u->rate * (g + u->decay * w);
    V m = F(load_part)(at + u->first, count), v = F(load_part)(at + u->second, count);
    if (!plain) g += u->decay * w;
    m = u->beta1 * m + u->rest1 * g;
    v = u->beta2 * v + u->rest2 * (g * g);
    F(store_part)(at + u->first, m, count);
    F(store_part)(at + u->second, v, count);
    return (plain ? w : u->shrink * w) - u->rate * F(adam_quotient)(u, m, v);
}

INLINE void F(update_rows_of)(const F(Update) update, const int plain, const REAL *g, Py_ssize_t g_row, REAL *w,
                              Py_ssize_t w_row, Py_ssize_t rows, Py_ssize_t size)
{
    for (Py_ssize_t r = 0; r < rows; r++, g += g_row, w += w_row) {
        Py_ssize_t i = 0;
        for (; i + LANES <= size; i += LANES)
            F(store)(w + i, F(updated)(&update, plain, F(load)(g + i), w + i, LANES));
        if (i < size) F(store_part)(w + i, F(updated)(&update, plain, F(load_part)(g + i, size - i), w + i, size - i), size - i);
    }
}

/* Rows of parameters, updated by rows of gradients. */
STATIC void F(update_rows)(const F(Update) *u, const REAL *g, Py_ssize_t g_row, REAL *w, Py_ssize_t w_row,
                           Py_ssize_t rows, Py_ssize_t size)
{
    if (u->adam && u->decay == 0 && u->shrink == 1)
        F(update_rows_of)(*u, 1, g, g_row, w, w_row, rows, size);
    else
        F(update_rows_of)(*u, 0, g, g_row, w, w_row, rows, size);
}

STATIC void F(update_map)(const F(Update) *u, const REAL *g, REAL *w, Py_ssize_t size)
{
    F(update_rows)(u, g, 0, w, 0, 1, size);
}
