/* What the machine can do: multiplications and additions a second, bytes a second from memory, and how often
 * a cache line goes from one processor to another and back.
 * Compiled when benchmarks.probe is asked, for the processor at hand. */
#include <stdatomic.h>
#include <stddef.h>

/* As wide as one register: GCC takes wider ones through memory. */
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float vector __attribute__((vector_size(BYTES)));
#define LANES (BYTES / sizeof(float))
/* More than latency times units asks for, and with a and b no more than there are registers. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define CHAINS 20
#else
#define CHAINS 12
#endif

/* Floating-point operations done; the sums go to `out` so that they have to be made. */
double fma_float(long rounds, float *out)
{
    vector sums[CHAINS], a, b;
    for (size_t i = 0; i < LANES; i++) a[i] = 0.999f, b[i] = 1e-3f * (float)i;
#pragma GCC unroll 32
    for (int c = 0; c < CHAINS; c++) sums[c] = b * (float)c;
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 32
        for (int c = 0; c < CHAINS; c++) sums[c] = sums[c] * a + b;
    }
#pragma GCC unroll 32
    for (int c = 1; c < CHAINS; c++) sums[0] += sums[c];
    for (size_t i = 0; i < LANES; i++) out[i] = sums[0][i];
    return 2.0 * LANES * CHAINS * (double)rounds;
}

/* z = x + s y; bytes read and written (what is read before it is overwritten not counted, as STREAM does). */
double triad(size_t size, float s, const float *restrict x, const float *restrict y, float *restrict z)
{
    for (size_t i = 0; i < size; i++) z[i] = x[i] + s * y[i];
    return 3.0 * sizeof(float) * (double)size;
}

/* One of two threads that pass a count to and fro: the other begins at `first` + 1. They spin, as those of a
 * team do who wait for each other. */
void pass_on(atomic_long *count, long first, long trips)
{
    for (long mine = first; trips-- > 0; mine += 2) {
        while (atomic_load_explicit(count, memory_order_acquire) != mine) {}
        atomic_store_explicit(count, mine + 1, memory_order_release);
    }
}
