/* Random bits from a counter, as table.py defines them: the same on every backend, in any order. */
#ifndef FASTAE_RANDOM_H
#define FASTAE_RANDOM_H

#include <stdint.h>

static inline uint64_t mix64(uint64_t z)
{
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline uint64_t random_key(const int64_t *counter, int64_t stream)
{
    return mix64(mix64(mix64((uint64_t)counter[1]) + (uint64_t)counter[0]) + (uint64_t)stream);
}

static inline uint32_t mix32(uint32_t h)
{
    h = (h ^ (h >> 16)) * 0x7FEB352Du;
    h = (h ^ (h >> 15)) * 0x846CA68Bu;
    return h ^ (h >> 16);
}

/* bits(first), bits(first + step), ... */
static inline void random_bits(uint64_t key, uint32_t first, uint32_t step, uint32_t *bits, Py_ssize_t count)
{
    const uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
    for (Py_ssize_t i = 0; i < count; i++)
        bits[i] = mix32(((first + step * (uint32_t)i) * 0x9E3779B9u + low) ^ high);
}

#endif
