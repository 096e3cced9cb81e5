/* Vectors of REAL, as wide as the instruction set this file is compiled for.
 *
 * Included twice by kernels.h, with REAL float and double. F(name) gives name_f32 or name_f64.
 * GCC's and Clang's vector extensions do the arithmetic, so that one text serves SSE2, AVX2, AVX-512 and NEON; what
 * they cannot say well, as loads and stores of a part of a vector, has instructions of its own.
 */
typedef REAL F(V) __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL F(VU) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef INTEGER F(VI) __attribute__((vector_size(VECTOR_BYTES)));

#define V F(V)
#define VI F(VI)
#define LANES ((Py_ssize_t)(VECTOR_BYTES / sizeof(REAL)))

INLINE V F(load)(const REAL *p) { return *(const F(VU) *)p; }
INLINE void F(store)(REAL *p, V v) { *(F(VU) *)p = v; }
INLINE V F(splat)(REAL a) { return a - (V){0}; }
/* a where the mask is set, else b; every lane of the mask is all ones or all zeros. */
INLINE V F(pick)(VI mask, V a, V b)
{
#if defined(__AVX2__) && !defined(__AVX512F__) && REAL_BITS == 32
    return (V)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return (V)_mm256_blendv_pd((__m256d)b, (__m256d)a, (__m256d)mask);
#else
    return (V)((mask & (VI)a) | (~mask & (VI)b));
#endif
}
INLINE V F(magnitude)(V v) { return (V)((VI)v & INTEGER_MAX); }
INLINE V F(minus_magnitude)(V v) { return (V)((VI)v | ~INTEGER_MAX); }

/* The first `count` lanes; the rest read as zero and are not touched in memory. */
#if defined(__AVX512F__)
#define MASK(count) ((1u << (count)) - 1)
#if REAL_BITS == 32
#define LOAD_MASKED(p, count) _mm512_maskz_loadu_ps((__mmask16)MASK(count), p)
#define STORE_MASKED(p, count, v) _mm512_mask_storeu_ps(p, (__mmask16)MASK(count), (__m512)(v))
#else
#define LOAD_MASKED(p, count) _mm512_maskz_loadu_pd((__mmask8)MASK(count), p)
#define STORE_MASKED(p, count, v) _mm512_mask_storeu_pd(p, (__mmask8)MASK(count), (__m512d)(v))
#endif
#elif defined(__AVX2__)
#if REAL_BITS == 32
#define MASK(count) (__m256i)((VI){0, 1, 2, 3, 4, 5, 6, 7} < (INTEGER)(count))
#define LOAD_MASKED(p, count) _mm256_maskload_ps(p, MASK(count))
#define STORE_MASKED(p, count, v) _mm256_maskstore_ps(p, MASK(count), (__m256)(v))
#else
#define MASK(count) (__m256i)((VI){0, 1, 2, 3} < (INTEGER)(count))
#define LOAD_MASKED(p, count) _mm256_maskload_pd(p, MASK(count))
#define STORE_MASKED(p, count, v) _mm256_maskstore_pd(p, MASK(count), (__m256d)(v))
#endif
#endif

INLINE V F(load_part)(const REAL *p, Py_ssize_t count)
{
    if (count >= LANES) return F(load)(p);
#if defined(LOAD_MASKED)
    return (V)LOAD_MASKED(p, count);
#else
    V v = {0};
    for (Py_ssize_t i = 0; i < count; i++) v[i] = p[i];
    return v;
#endif
}

INLINE void F(store_part)(REAL *p, V v, Py_ssize_t count)
{
    if (count >= LANES)
        F(store)(p, v);
    else
#if defined(STORE_MASKED)
        STORE_MASKED(p, count, v);
#else
        for (Py_ssize_t i = 0; i < count; i++) p[i] = v[i];
#endif
}
#undef MASK
#undef LOAD_MASKED
#undef STORE_MASKED

/* Sums of the lanes of LANES vectors at once: lane i of the result is the sum of a[i].
 * Each level folds two vectors to half, lanes so far apart on each other, and puts them side by side: LANES - 1 additions
 * in all. With 32 bytes what crosses the middle, and takes longer, comes last. */
#if VECTOR_BYTES * 8 / REAL_BITS == 16
INLINE V F(fold8)(V a, V b) { return SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) + SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31); }
INLINE V F(fold4)(V a, V b) { return SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) + SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31); }
INLINE V F(fold2)(V a, V b) { return SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) + SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31); }
INLINE V F(fold1)(V a, V b) { return SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) + SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31); }
INLINE V F(lane_sums)(V *a)
{
    UNROLL for (int i = 0; i < 8; i++) a[i] = F(fold8)(a[i], a[i + 8]);
    UNROLL for (int i = 0; i < 4; i++) a[i] = F(fold4)(a[i], a[i + 4]);
    UNROLL for (int i = 0; i < 2; i++) a[i] = F(fold2)(a[i], a[i + 2]);
    return F(fold1)(a[0], a[1]);
}
#elif VECTOR_BYTES * 8 / REAL_BITS == 8
INLINE V F(fold2)(V a, V b) { return SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15); }
INLINE V F(fold1)(V a, V b) { return SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15); }
INLINE V F(fold4)(V a, V b) { return SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15); }
INLINE V F(lane_sums)(V *a)
{
    UNROLL for (int i = 0; i < 4; i++) a[i] = F(fold2)(a[2 * i], a[2 * i + 1]);
    UNROLL for (int i = 0; i < 2; i++) a[i] = F(fold1)(a[2 * i], a[2 * i + 1]);
    return F(fold4)(a[0], a[1]);
}
#elif VECTOR_BYTES * 8 / REAL_BITS == 4
INLINE V F(fold1)(V a, V b) { return SHUFFLE(a, b, 0, 4, 2, 6) + SHUFFLE(a, b, 1, 5, 3, 7); }
INLINE V F(fold2)(V a, V b) { return SHUFFLE(a, b, 0, 1, 4, 5) + SHUFFLE(a, b, 2, 3, 6, 7); }
INLINE V F(lane_sums)(V *a)
{
    if (VECTOR_BYTES == 32) return F(fold2)(F(fold1)(a[0], a[1]), F(fold1)(a[2], a[3]));
    return F(fold1)(F(fold2)(a[0], a[2]), F(fold2)(a[1], a[3]));
}
#else
INLINE V F(lane_sums)(V *a) { return SHUFFLE(a[0], a[1], 0, 2) + SHUFFLE(a[0], a[1], 1, 3); }
#endif

/* Sum of the lanes, always in the same order. */
INLINE REAL F(lane_sum)(V v)
{
    REAL lanes[LANES];
    F(store)(lanes, v);
    for (Py_ssize_t width = LANES / 2; width > 0; width /= 2)
        for (Py_ssize_t i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}
