/* The C part of the compiled kernels: vectors, their maths and the register tiles, for float and double. */
#ifndef FASTAE_KERNELS_H
#define FASTAE_KERNELS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if !defined(__GNUC__)
#error "fastae is compiled with GCC or Clang: its kernels are written in their vector extensions"
#endif

#include "random.h"

#define INLINE static inline __attribute__((always_inline))
#define STATIC static __attribute__((unused))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define UNROLL _Pragma("GCC unroll 32")
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (VI){__VA_ARGS__}) /* GCC 11 has no other */
#endif

/* Codes of the activations, as in table.py (a test compares them), and of the losses. */
enum { LINEAR, RELU, SIGMOID, TANH, LEAKY_RELU, ELU, SOFTPLUS };
enum { SQUARED_ERROR, ABSOLUTE_ERROR, HUBER, CROSS_ENTROPY, CROSS_ENTROPY_OF_LOGITS };

/* Vector width and tile sizes that keep every accumulator in a register:
 * 32 registers hold 5 x 5 and what feeds them, 16 hold 4 x 2 (SSE2, which has no FMA) or 6 x 2, a whole line wide. */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TILE_COLUMNS 5
#define DOT_ROWS 4
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define TILE_COLUMNS 2
#define DOT_ROWS 3
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define TILE_COLUMNS 5
#define DOT_ROWS 4
#else
#define VECTOR_BYTES 16
#define TILE_COLUMNS 2
#define DOT_ROWS 2
#endif
#define TILE_MOST_ROWS 8
#define NORM_COLUMNS 80 /* the widest tile, and at least 64 */

/* Have a line fetched that is updated soon. With vectors as wide as a line, a core asks for lines faster than its first
 * cache can wait for them: the second waits for more at once. */
#define ASK_TO_UPDATE(line) __builtin_prefetch(line, VECTOR_BYTES < 64, VECTOR_BYTES < 64 ? 3 : 2)

/* Have the first page of what is read soon fetched: a core finds out by itself what comes behind it. */
static inline void ask_for(const void *from, ptrdiff_t bytes)
{
    for (ptrdiff_t i = 0; i < bytes && i < 4096; i += 64) __builtin_prefetch((const char *)from + i);
}

/* Have rows of so many bytes fetched into the second cache. */
static inline void ask_for_rows(const char *from, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t bytes)
{
    for (; rows > 0; rows--, from += row)
        for (ptrdiff_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

/* The most rows of a tile that is `vectors` wide. */
static inline int tile_rows(int vectors)
{
#if TILE_COLUMNS > 3
    static const int most[] = {0, 8, 8, 8, 6, 5};
#elif defined(__AVX2__)
    static const int most[] = {0, 8, 6};
#else
    static const int most[] = {0, 8, 4};
#endif
    return most[vectors];
}

static const double INVERSE_FACTORIAL[] = {
    1, 1, 1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880,
    1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800., 1. / 87178291200., 1. / 1307674368000.,
    1. / 20922789888000., 1. / 355687428096000., 1. / 6402373705728000., 1. / 121645100408832000.,
    1. / 2432902008176640000., 1. / 51090942171709440000., 1. / 1124000727777607680000.,
    1. / 25852016738884976640000.,
};

#define REAL float
#define INTEGER int32_t
#define INTEGER_MAX INT32_MAX
#define REAL_BITS 32
#define F(name) name##_f32
#define EXPONENT_BIAS 127
#define MANTISSA_BITS 23
#define EXP_LOWEST (-104.0)
#define EXPM1_LOWEST (-30.0)
#define MAGIC 12582912.0 /* 1.5 2^23 */
#define LN2_HIGH 0.693145751953125 /* 15 bits, so that j LN2_HIGH is exact */
#define LN2_LOW 1.428606820309417e-6
#define SERIES_TERMS 7
#define ATANH_TERMS 8
#define SINE_TERMS 6
#define TINY 1.1754943508222875e-38 /* the smallest normal number */
#define TINY_EXPONENT 32
#define TINY_SCALE 4294967296.0
#define REAL_SQRT sqrtf
#include "simd.h"
#include "maths.h"
#include "losses.h"
#include "updates.h"
#include "tiles.h"
#include "zeros.h"
#include "norms.h"
#include "noise.h"
#include "lanes.h"
#include "pools.h"
#include "gather.h"
#include "cells.h"
#include "image_zeros.h"
#include "convolve.h"
#include "correlate.h"
#undef V
#undef VI
#undef LANES
#undef BLOCK
#undef REAL
#undef INTEGER
#undef INTEGER_MAX
#undef REAL_BITS
#undef F
#undef EXPONENT_BIAS
#undef MANTISSA_BITS
#undef EXP_LOWEST
#undef EXPM1_LOWEST
#undef LN2_HIGH
#undef LN2_LOW
#undef SERIES_TERMS
#undef MAGIC
#undef ATANH_TERMS
#undef SINE_TERMS
#undef TINY
#undef TINY_EXPONENT
#undef TINY_SCALE
#undef REAL_SQRT

#define REAL double
#define INTEGER int64_t
#define INTEGER_MAX INT64_MAX
#define REAL_BITS 64
#define F(name) name##_f64
#define EXPONENT_BIAS 1023
#define MANTISSA_BITS 52
#define EXP_LOWEST (-746.0)
#define EXPM1_LOWEST (-60.0)
#define MAGIC 6755399441055744.0 /* 1.5 2^52 */
#define LN2_HIGH 0.693147180369123816490 /* 32 bits */
#define LN2_LOW 1.90821492927058770002e-10
#define SERIES_TERMS 13
#define ATANH_TERMS 17
#define SINE_TERMS 11
#define TINY 2.2250738585072014e-308
#define TINY_EXPONENT 64
#define TINY_SCALE 18446744073709551616.0
#define REAL_SQRT sqrt
#include "simd.h"
#include "maths.h"
#include "losses.h"
#include "updates.h"
#include "tiles.h"
#include "zeros.h"
#include "norms.h"
#include "noise.h"
#include "lanes.h"
#include "pools.h"
#include "gather.h"
#include "cells.h"
#include "image_zeros.h"
#include "convolve.h"
#include "correlate.h"
#undef V
#undef VI
#undef LANES
#undef BLOCK
#undef REAL
#undef INTEGER
#undef INTEGER_MAX
#undef REAL_BITS
#undef F

/* The x86-64 level of this processor and its system (1, 3 or 4), elsewhere 1. Asked of the module that is built for
 * every processor, before another is loaded: its very initialisation may use what the processor lacks. The other
 * features of a level came to every processor no later than those asked for. */
static int cpu_level(void)
{
#if defined(__x86_64__)
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
          __builtin_cpu_supports("bmi2")))
        return 1;
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
          __builtin_cpu_supports("avx512vl")))
        return 3;
    return 4;
#else
    return 1;
#endif
}

#endif
