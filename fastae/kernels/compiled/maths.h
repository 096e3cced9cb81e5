/* Activations on vectors: one formula each, the one stated in table.py.
 *
 * Everything exponential comes from one reduction of an argument <= 0:
 *   x = j ln2 + r with |r| <= ln2 / 2;   q = e^r - 1 by its Taylor series;   e^x = 2^j q + 2^j.
 * exp - 1 keeps its relative precision near 0, which tanh needs. The series has the terms that bring its error
 * below half an ulp: r^7 in float32, r^13 in float64. (In float32 with AVX-512 e^x is 2^j e^r, which it has the means for.)
 */

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

/* e^r - 1 of what is left of x; the lowest bits of *t are those of MAGIC + j. */
INLINE V F(exp_reduced)(V x, V *t)
{
    /* Adding MAGIC rounds to a whole number, which then stands in the lowest bits. */
    *t = x * (REAL)1.44269504088896340736 + (REAL)MAGIC;
    const V j = *t - (REAL)MAGIC;
    const V r = (x - j * (REAL)LN2_HIGH) - j * (REAL)LN2_LOW;
    V p = F(splat)((REAL)INVERSE_FACTORIAL[SERIES_TERMS]);
    UNROLL for (int i = SERIES_TERMS - 1; i >= 2; i--) p = p * r + (REAL)INVERSE_FACTORIAL[i];
    return r + (r * r) * p;
}

/* 2^(j + shift), where the bits of `t` are those of MAGIC + j: the shift of the bits leaves nothing of MAGIC but the j. */
INLINE V F(power_of_two)(V t, int shift) { return (V)(((VI)t + (EXPONENT_BIAS + shift)) << MANTISSA_BITS); }

/* e^x of an argument <= 0. Below EXP_LOWEST it is 0. */
INLINE V F(exp)(V x)
{
    x = F(at_least)(x, (REAL)EXP_LOWEST);
#if defined(__AVX512F__) && REAL_BITS == 32 /* rounds and scales by 2^j in one instruction each */
    const __m512 j = _mm512_roundscale_ps((__m512)(x * (REAL)1.44269504088896340736), 0);
    const V r = (x - (V)j * (REAL)LN2_HIGH) - (V)j * (REAL)LN2_LOW;
    V p = F(splat)((REAL)INVERSE_FACTORIAL[SERIES_TERMS]);
    UNROLL for (int i = SERIES_TERMS - 1; i >= 0; i--) p = p * r + (REAL)INVERSE_FACTORIAL[i];
    return (V)_mm512_scalef_ps((__m512)p, j);
#else
    V t;
    const V q = F(exp_reduced)(x, &t);
    const V s = F(power_of_two)(t, TINY_EXPONENT); /* j itself may lie below the smallest normal exponent */
    return (q * s + s) * (1 / (REAL)TINY_SCALE);
#endif
}

/* e^x - 1 of an argument <= 0. Below EXPM1_LOWEST it is -1. */
INLINE V F(expm1)(V x)
{
    V t;
    const V q = F(exp_reduced)(F(at_least)(x, (REAL)EXPM1_LOWEST), &t);
    const V s = F(power_of_two)(t, 0);
    return q * s + (s - 1);
}

/* 1 / d for d in [1, 2]: in float32 with AVX-512 from an estimate of 14 bits and one Newton step. */
INLINE V F(reciprocal)(V d)
{
#if defined(__AVX512F__) && REAL_BITS == 32
    const V q = (V)_mm512_rcp14_ps((__m512)d);
    return q + q * (1 - d * q);
#else
    return 1 / d;
#endif
}

/* The sigmoid of x, where e = exp(-|x|). */
INLINE V F(sigmoid_of)(V x, V e)
{
    const V q = F(reciprocal)(1 + e);
    return F(pick)((VI)x < 0, e * q, q); /* by the sign, which needs no comparison */
}

INLINE V F(sigmoid)(V x) { return F(sigmoid_of)(x, F(exp)(F(minus_magnitude)(x))); }

INLINE V F(tanh)(V x)
{
    const V e = F(expm1)(-2 * F(magnitude)(x)); /* e^(-2|x|) - 1, in [-1, 0] */
    const V t = -e / (2 + e);
    return (V)((VI)t | ((VI)x & ~INTEGER_MAX)); /* with the sign of x */
}

/* 2 atanh(s) = log((1 + s) / (1 - s)) for |s| <= 1/3, by its series; relative precision near 0 too. */
INLINE V F(two_atanh)(V s)
{
    const V square = s * s;
    V p = F(splat)((REAL)(2.0 / (2 * ATANH_TERMS - 1)));
    UNROLL for (int i = ATANH_TERMS - 1; i >= 1; i--) p = p * square + (REAL)(2.0 / (2 * i - 1));
    return p * s;
}

/* log(x) for x in [0, 1], not below -100 (the bound of the cross-entropy); x = m 2^j with m in [sqrt(1/2), sqrt(2)). */
INLINE V F(log_unit)(V x)
{
    const VI tiny = x < (REAL)TINY;
    const V y = F(pick)(tiny, x * (REAL)TINY_SCALE, x);
    const VI shifted = (VI)y - (VI)F(splat)((REAL)0.70710678118654752440);
    const VI whole = shifted >> MANTISSA_BITS;
    const V mantissa = (V)((VI)y - (whole << MANTISSA_BITS));
    const V j = (V)((VI)F(splat)((REAL)MAGIC) + whole) - (REAL)MAGIC; /* the integer as a number */
    const V high = F(pick)(tiny, j - (REAL)TINY_EXPONENT, j);
    const V log = F(two_atanh)((mantissa - 1) / (mantissa + 1)) + high * (REAL)LN2_LOW + high * (REAL)LN2_HIGH;
    return F(pick)((x > 0) & (log > -100), log, F(pick)(x >= 0, F(splat)(-100), F(splat)(NAN)));
}

/* log(1 - x) for x in [0, 1], not below -100; what rounding took from 1 - x is given back. */
INLINE V F(log_one_minus)(V x)
{
    const V u = 1 - x, log = F(log_unit)(u);
    return F(pick)(u > (REAL)0.5, log + ((1 - u) - x) / u, log);
}

/* log(1 + e) for e in [0, 1] */
INLINE V F(log1p_of)(V e) { return F(two_atanh)(e / (2 + e)); }

INLINE V F(softplus)(V x)
{
    return F(pick)(x < 0, F(splat)(0), x) + F(log1p_of)(F(exp)(F(minus_magnitude)(x)));
}

INLINE V F(elu)(V x)
{
    return F(pick)(x > 0, x, F(expm1)(F(pick)(x > 0, F(splat)(0), x)));
}

INLINE V F(activate)(V x, int activation)
{
    switch (activation) {
    case RELU: return F(pick)(x < 0, F(splat)(0), x); /* keeps a NaN */
    case SIGMOID: return F(sigmoid)(x);
    case TANH: return F(tanh)(x);
    case LEAKY_RELU: return F(pick)(x > 0, x, x * (REAL)0.01);
    case ELU: return F(elu)(x);
    case SOFTPLUS: return F(softplus)(x);
    default: return x;
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
    case SOFTPLUS: return dy * -F(expm1)(-y);
    default: return dy;
    }
}

/* The same two on `size` numbers in a row, the former on several rows; the switch on the activation is taken once. Any of
 * the arrays may be one. */
#define MAP_FORWARD(code) \
    case code: \
        for (Py_ssize_t r = 0; r < rows; r++, x += row, y += row) \
            for (Py_ssize_t i = 0; i < size; i += LANES) \
                F(store_part)(y + i, F(activate)(F(load_part)(x + i, size - i), code), size - i); \
        break;
#define MAP_BACKWARD(code) \
    case code: \
        for (i = 0; i < size; i += LANES) \
            F(store_part)(dx + i, F(slope)(F(load_part)(dy + i, size - i), F(load_part)(y + i, size - i), code), size - i); \
        break;

STATIC void F(map_activate)(const REAL *x, REAL *y, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t size, int activation)
{
    switch (activation) {
        MAP_FORWARD(LINEAR)
        MAP_FORWARD(RELU)
        MAP_FORWARD(SIGMOID)
        MAP_FORWARD(TANH)
        MAP_FORWARD(LEAKY_RELU)
        MAP_FORWARD(ELU)
        MAP_FORWARD(SOFTPLUS)
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
#undef MAP_BACKWARD

