/* Activations on vectors: one formula each, the one stated in table.py.
 *
 * Everything exponential comes from one function, exp and exp - 1 of an argument <= 0:
 *   x = j ln2 + r with |r| <= ln2 / 2;   q = e^r - 1 by its Taylor series;   e^x = 2^j q + 2^j.
 * exp - 1 keeps its relative precision near 0, which tanh needs. The series has the terms that bring its error
 * below half an ulp: r^7 in float32, r^13 in float64.
 */
typedef struct { V exp, expm1; } F(Exp);

/* 2^j, where the bits of `j` are those of MAGIC + j: the shift leaves nothing of MAGIC but the j. */
INLINE V F(power_of_two)(VI j) { return (V)((j + EXPONENT_BIAS) << MANTISSA_BITS); }

INLINE F(Exp) F(exp_negative)(V x)
{
    /* Below EXP_LOWEST the exponential is 0; the clamp keeps 2^(j/2) in range. A NaN stays one. */
    x = F(pick)(x < (REAL)EXP_LOWEST, F(splat)((REAL)EXP_LOWEST), x);
    /* Adding MAGIC rounds to a whole number, which then stands in the lowest bits. */
    const V t = x * (REAL)1.44269504088896340736 + (REAL)MAGIC;
    const V j = t - (REAL)MAGIC;
    const V r = (x - j * (REAL)LN2_HIGH) - j * (REAL)LN2_LOW;
    V p = F(splat)((REAL)INVERSE_FACTORIAL[SERIES_TERMS]);
    UNROLL for (int i = SERIES_TERMS - 1; i >= 2; i--) p = p * r + (REAL)INVERSE_FACTORIAL[i];
    const V q = r + (r * r) * p;
    /* 2^j in two factors: j itself may lie below the smallest normal exponent. */
    const V half = j * (REAL)0.5 + (REAL)MAGIC;
    const V s1 = F(power_of_two)((VI)half), s2 = F(power_of_two)((VI)t - (VI)half + (VI)F(splat)((REAL)MAGIC));
    return (F(Exp)){.exp = (q * s1 + s1) * s2, .expm1 = (q * s1) * s2 + (s1 * s2 - 1)};
}

/* e^x of an argument <= 0 where e^x - 1 is not asked for. AVX-512 rounds and scales by 2^j in one instruction each. */
INLINE V F(exp_alone)(V x)
{
#if defined(__AVX512F__) && REAL_BITS == 32
    const __m512 bounded = _mm512_max_ps(_mm512_set1_ps((float)EXP_LOWEST), (__m512)x); /* of a NaN the second */
    const __m512 j = _mm512_roundscale_ps((__m512)((V)bounded * (REAL)1.44269504088896340736), 0);
    const V r = ((V)bounded - (V)j * (REAL)LN2_HIGH) - (V)j * (REAL)LN2_LOW;
    V p = F(splat)((REAL)INVERSE_FACTORIAL[SERIES_TERMS]);
    UNROLL for (int i = SERIES_TERMS - 1; i >= 0; i--) p = p * r + (REAL)INVERSE_FACTORIAL[i];
    return (V)_mm512_scalef_ps((__m512)p, j);
#else
    return F(exp_negative)(x).exp;
#endif
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
    return F(pick)(x < 0, e * q, q);
}

INLINE V F(sigmoid)(V x) { return F(sigmoid_of)(x, F(exp_alone)(-F(magnitude)(x))); }

INLINE V F(tanh)(V x)
{
    const V e = F(exp_negative)(-2 * F(magnitude)(x)).expm1; /* e^(-2|x|) - 1, in [-1, 0] */
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
    return F(pick)(x < 0, F(splat)(0), x) + F(log1p_of)(F(exp_alone)(-F(magnitude)(x)));
}

INLINE V F(elu)(V x)
{
    return F(pick)(x > 0, x, F(exp_negative)(F(pick)(x > 0, F(splat)(0), x)).expm1);
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
    case SOFTPLUS: return dy * -F(exp_negative)(-y).expm1;
    default: return dy;
    }
}

/* The same two on `size` numbers in a row; the switch on the activation is taken once. Any of the arrays may be one. */
#define MAP_FORWARD(code) \
    case code: \
        for (i = 0; i < size; i += LANES) \
            F(store_part)(y + i, F(activate)(F(load_part)(x + i, size - i), code), size - i); \
        break;
#define MAP_BACKWARD(code) \
    case code: \
        for (i = 0; i < size; i += LANES) \
            F(store_part)(dx + i, F(slope)(F(load_part)(dy + i, size - i), F(load_part)(y + i, size - i), code), size - i); \
        break;

STATIC void F(map_activate)(const REAL *x, REAL *y, Py_ssize_t size, int activation)
{
    Py_ssize_t i;
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

