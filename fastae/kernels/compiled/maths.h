/* Activations on vectors: one formula each, the one stated in table.py.
 *
 * Everything exponential comes from one reduction of an argument <= 0:
 *   x = j ln2 + r with |r| <= ln2 / 2;   q = e^r - 1 by its Taylor series;   e^x = 2^j q + 2^j.
 * exp - 1 keeps its relative precision near 0, which tanh needs. The series has the terms that bring its error
 * below half an ulp: r^7 in float32, r^13 in float64. (In float32 with AVX-512 e^x is 2^j e^r, which it has the means for.)
 *
 * A formula is a chain of operations that wait for each other, for some 90 cycles in all; a core looks for others only
 * some dozens ahead. So a formula takes n vectors side by side, a constant where it is inlined, and each step is
 * written for all of them; what it makes may take the place of what it is made from.
 */
#ifndef SIDE
#define SIDE 4 /* most vectors side by side */
#define EACH UNROLL for (int k = 0; k < n; k++)
#endif

/* The larger of x and a number; a NaN stays one. */
INLINE V F(at_least)(V x, REAL bound)
{
#if defined(__AVX512F__) && REAL_BITS == 32
    return (V)_mm512_max_ps((__m512)F(splat)(bound), (__m512)x); /* of a NaN the second */
#elif defined(__AVX512F__)
    return (V)_mm512_max_pd((__m512d)F(splat)(bound), (__m512d)x);
#elif defined(__AVX2__) && REAL_BITS == 32
    return (V)_mm256_max_ps((__m256)F(splat)(bound), (__m256)x);
#elif defined(__AVX2__)
    return (V)_mm256_max_pd((__m256d)F(splat)(bound), (__m256d)x);
#else
    return F(pick)(x < bound, F(splat)(bound), x);
#endif
}

/* e^r - 1 of what is left of x; the lowest bits of t are those of MAGIC + j. */
INLINE void F(exp_reduced)(const int n, const V *x, V *t, V *q)
{
    V r[SIDE], p[SIDE];
    /* Adding MAGIC rounds to a whole number, which then stands in the lowest bits. */
    EACH t[k] = x[k] * (REAL)1.44269504088896340736 + (REAL)MAGIC;
    EACH p[k] = t[k] - (REAL)MAGIC;
    EACH r[k] = x[k] - p[k] * (REAL)LN2_HIGH;
    EACH r[k] = r[k] - p[k] * (REAL)LN2_LOW;
    EACH p[k] = F(splat)((REAL)INVERSE_FACTORIAL[SERIES_TERMS]);
    UNROLL for (int i = SERIES_TERMS - 1; i >= 2; i--) EACH p[k] = p[k] * r[k] + (REAL)INVERSE_FACTORIAL[i];
    EACH q[k] = r[k] + (r[k] * r[k]) * p[k];
}

/* 2^(j + shift), where the bits of `t` are those of MAGIC + j: the shift of the bits leaves nothing of MAGIC but the j. */
INLINE V F(power_of_two)(V t, int shift) { return (V)(((VI)t + (EXPONENT_BIAS + shift)) << MANTISSA_BITS); }

/* e^x of arguments <= 0. Below EXP_LOWEST it is 0. */
INLINE void F(exp)(const int n, const V *x, V *y)
{
    V t[SIDE], p[SIDE];
    EACH y[k] = F(at_least)(x[k], (REAL)EXP_LOWEST);
#if defined(__AVX512F__) && REAL_BITS == 32 /* rounds and scales by 2^j in one instruction each */
    EACH t[k] = (V)_mm512_roundscale_ps((__m512)(y[k] * (REAL)1.44269504088896340736), 0);
    EACH y[k] = y[k] - t[k] * (REAL)LN2_HIGH;
    EACH y[k] = y[k] - t[k] * (REAL)LN2_LOW;
    EACH p[k] = F(splat)((REAL)INVERSE_FACTORIAL[SERIES_TERMS]);
    UNROLL for (int i = SERIES_TERMS - 1; i >= 0; i--) EACH p[k] = p[k] * y[k] + (REAL)INVERSE_FACTORIAL[i];
    EACH y[k] = (V)_mm512_scalef_ps((__m512)p[k], (__m512)t[k]);
#else
    F(exp_reduced)(n, y, t, p);
    EACH t[k] = F(power_of_two)(t[k], TINY_EXPONENT); /* j itself may lie below the smallest normal exponent */
    EACH y[k] = (p[k] * t[k] + t[k]) * (1 / (REAL)TINY_SCALE);
#endif
}

/* e^x - 1 of arguments <= 0. Below EXPM1_LOWEST it is -1. */
INLINE void F(expm1)(const int n, const V *x, V *y)
{
    V t[SIDE];
    EACH y[k] = F(at_least)(x[k], (REAL)EXPM1_LOWEST);
    F(exp_reduced)(n, y, t, y);
    EACH t[k] = F(power_of_two)(t[k], 0);
    EACH y[k] = y[k] * t[k] + (t[k] - 1);
}

/* The sigmoid of x, where e = exp(-|x|). 1 / (1 + e) comes in float32 with AVX-512 from an estimate of 14 bits and one
 * Newton step. */
INLINE void F(sigmoid_of)(const int n, const V *x, const V *e, V *y)
{
    V q[SIDE];
#if defined(__AVX512F__) && REAL_BITS == 32
    EACH q[k] = (V)_mm512_rcp14_ps((__m512)(1 + e[k]));
    EACH q[k] = q[k] + q[k] * (1 - (1 + e[k]) * q[k]);
#else
    EACH q[k] = 1 / (1 + e[k]);
#endif
    EACH y[k] = F(pick)((VI)x[k] < 0, e[k] * q[k], q[k]); /* by the sign, which needs no comparison */
}

INLINE void F(sigmoid)(const int n, const V *x, V *y)
{
    V e[SIDE];
    EACH e[k] = F(minus_magnitude)(x[k]);
    F(exp)(n, e, e);
    F(sigmoid_of)(n, x, e, y);
}

INLINE void F(tanh)(const int n, const V *x, V *y)
{
    V e[SIDE];
    EACH e[k] = -2 * F(magnitude)(x[k]);
    F(expm1)(n, e, e); /* e^(-2|x|) - 1, in [-1, 0] */
    EACH e[k] = -e[k] / (2 + e[k]);
    EACH y[k] = (V)((VI)e[k] | ((VI)x[k] & ~INTEGER_MAX)); /* with the sign of x */
}

/* 2 atanh(s) = log((1 + s) / (1 - s)) for |s| <= 1/3, by its series; relative precision near 0 too. */
INLINE void F(two_atanh)(const int n, const V *s, V *y)
{
    V square[SIDE], p[SIDE];
    EACH square[k] = s[k] * s[k];
    EACH p[k] = F(splat)((REAL)(2.0 / (2 * ATANH_TERMS - 1)));
    UNROLL for (int i = ATANH_TERMS - 1; i >= 1; i--) EACH p[k] = p[k] * square[k] + (REAL)(2.0 / (2 * i - 1));
    EACH y[k] = p[k] * s[k];
}

/* log(x) for x in [0, 1], not below -100 (the bound of the cross-entropy); x = m 2^j with m in [sqrt(1/2), sqrt(2)). */
INLINE void F(log_unit)(const int n, const V *x, V *y)
{
    V mantissa[SIDE], j[SIDE];
    EACH
    {
        const VI tiny = x[k] < (REAL)TINY;
        const V normal = F(pick)(tiny, x[k] * (REAL)TINY_SCALE, x[k]);
        const VI shifted = (VI)normal - (VI)F(splat)((REAL)0.70710678118654752440);
        const VI whole = shifted >> MANTISSA_BITS;
        const V power = (V)((VI)F(splat)((REAL)MAGIC) + whole) - (REAL)MAGIC; /* the integer as a number */
        mantissa[k] = (V)((VI)normal - (whole << MANTISSA_BITS));
        j[k] = F(pick)(tiny, power - (REAL)TINY_EXPONENT, power);
    }
    EACH mantissa[k] = (mantissa[k] - 1) / (mantissa[k] + 1);
    F(two_atanh)(n, mantissa, mantissa);
    EACH
    {
        const V log = mantissa[k] + j[k] * (REAL)LN2_LOW + j[k] * (REAL)LN2_HIGH;
        y[k] = F(pick)((x[k] > 0) & (log > -100), log, F(pick)(x[k] >= 0, F(splat)(-100), F(splat)(NAN)));
    }
}

/* log(1 - x) for x in [0, 1], not below -100; what rounding took from 1 - x is given back. */
INLINE void F(log_one_minus)(const int n, const V *x, V *y)
{
    V u[SIDE], log[SIDE];
    EACH u[k] = 1 - x[k];
    F(log_unit)(n, u, log);
    EACH y[k] = F(pick)(u[k] > (REAL)0.5, log[k] + ((1 - u[k]) - x[k]) / u[k], log[k]);
}

/* log(1 + e) for e in [0, 1] */
INLINE void F(log1p_of)(const int n, const V *e, V *y)
{
    EACH y[k] = e[k] / (2 + e[k]);
    F(two_atanh)(n, y, y);
}

INLINE void F(softplus)(const int n, const V *x, V *y)
{
    V e[SIDE];
    EACH e[k] = F(minus_magnitude)(x[k]);
    F(exp)(n, e, e);
    F(log1p_of)(n, e, e);
    EACH y[k] = F(pick)(x[k] < 0, F(splat)(0), x[k]) + e[k];
}

INLINE void F(elu)(const int n, const V *x, V *y)
{
    V e[SIDE];
    EACH e[k] = F(pick)(x[k] > 0, F(splat)(0), x[k]);
    F(expm1)(n, e, e);
    EACH y[k] = F(pick)(x[k] > 0, x[k], e[k]);
}

INLINE V F(relu)(V x) { return F(pick)(x < 0, F(splat)(0), x); } /* keeps a NaN */

INLINE void F(activate)(const int n, V *x, int activation)
{
    switch (activation) {
    case RELU: EACH x[k] = F(relu)(x[k]); break;
    case SIGMOID: F(sigmoid)(n, x, x); break;
    case TANH: F(tanh)(n, x, x); break;
    case LEAKY_RELU: EACH x[k] = F(pick)(x[k] > 0, x[k], x[k] * (REAL)0.01); break;
    case ELU: F(elu)(n, x, x); break;
    case SOFTPLUS: F(softplus)(n, x, x); break;
    }
}

/* dy f'(x), written in y = f(x) */
INLINE V F(slope)(V dy, V y, int activation)
{
    switch (activation) {
    case RELU: return F(pick)(y > 0, dy, F(splat)(0));
    case SIGMOID: return dy * (y * (1 - y));
    case TANH: return dy * (1 - y * y);
    case LEAKY_RELU: return F(pick)(y > 0, dy, dy * (REAL)0.01);
    case ELU: return F(pick)(y > 0, dy, dy * (y + 1));
    case SOFTPLUS:
        y = -y;
        F(expm1)(1, &y, &y);
        return dy * -y;
    default: return dy;
    }
}

/* f(x) of the next n vectors of rows of `size` numbers: from place i of the row at `first`. */
INLINE void F(activate_next)(const int n, const REAL *x, REAL *y, Py_ssize_t row, Py_ssize_t size, Py_ssize_t *first,
                             Py_ssize_t *i, const int activation)
{
    Py_ssize_t at[SIDE], count[SIDE];
    V v[SIDE];
    EACH
    {
        at[k] = *first + *i;
        count[k] = size - *i;
        v[k] = F(load_part)(x + at[k], count[k]);
        *i += LANES;
        if (*i >= size) *i = 0, *first += row;
    }
    F(activate)(n, v, activation);
    EACH F(store_part)(y + at[k], v[k], count[k]);
}

/* The same two on `size` numbers in a row, the former on several rows; the switch on the activation is taken once. Any of
 * the arrays may be one. */
#define MAP_FORWARD(code) \
    case code: \
        for (Py_ssize_t r = 0; r < rows; r++, x += row, y += row) \
            for (i = 0; i < size; i += LANES) { \
                V v = F(load_part)(x + i, size - i); \
                F(activate)(1, &v, code); \
                F(store_part)(y + i, v, size - i); \
            } \
        break;
#define MAP_CHAIN(code) \
    case code: \
        for (; left >= SIDE; left -= SIDE) F(activate_next)(SIDE, x, y, row, size, &first, &i, code); \
        for (; left > 0; left--) F(activate_next)(1, x, y, row, size, &first, &i, code); \
        break;
#define MAP_BACKWARD(code) \
    case code: \
        for (i = 0; i < size; i += LANES) \
            F(store_part)(dx + i, F(slope)(F(load_part)(dy + i, size - i), F(load_part)(y + i, size - i), code), size - i); \
        break;

STATIC void F(map_activate)(const REAL *x, REAL *y, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t size, int activation)
{
    Py_ssize_t left = rows * ((size + LANES - 1) / LANES), first = 0, i = 0; /* vectors */
    switch (activation) {
        MAP_FORWARD(LINEAR)
        MAP_FORWARD(RELU)
        MAP_CHAIN(SIGMOID)
        MAP_CHAIN(TANH)
        MAP_FORWARD(LEAKY_RELU)
        MAP_CHAIN(ELU)
        MAP_CHAIN(SOFTPLUS)
    }
}

STATIC void F(map_slope)(const REAL *dy, const REAL *y, REAL *dx, Py_ssize_t size, int activation)
{
    Py_ssize_t i;
    switch (activation) {
        MAP_BACKWARD(LINEAR)
        MAP_BACKWARD(RELU)
        MAP_BACKWARD(SIGMOID)
        MAP_BACKWARD(TANH)
        MAP_BACKWARD(LEAKY_RELU)
        MAP_BACKWARD(ELU)
        MAP_BACKWARD(SOFTPLUS)
    }
}
#undef MAP_FORWARD
#undef MAP_CHAIN
#undef MAP_BACKWARD

