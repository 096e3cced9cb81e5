/* What the C interface knows of a row of the table, and the arithmetic of its rules, which says when it overflows. */
#ifndef FASTAE_C_ROWS_H
#define FASTAE_C_ROWS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "fastae.h"

enum { REAL_ARRAY, INDEX, INTEGER_CONSTANT, REAL_CONSTANT };
enum { MOST_ARGUMENTS = 24, MOST_OPERANDS = 37, MOST_DIMS = 16 };

typedef struct {
    signed char kind, rank, dims[4]; /* place among the dims, or -1 - size */
    char optional, written, work, state, saved;
    char images; /* [n,c,h,w]: rows of a batch, side by side in a Program */
    char activation;
    char above, below; /* whether low and high themselves are out of range */
    double low, high;
} Argument;

typedef struct {
    const char *name;
    int arguments, dims;
    unsigned derived, workspace; /* bits of dims */
    const Argument *argument;
    int (*rules)(const int64_t *operands, int64_t *derived);
    int64_t least[MOST_DIMS]; /* of each dim; 0 where nothing is said */
} Row;

/* A name and its place in fastae_kernels. */
typedef struct {
    const char *name;
    size_t offset;
} Entry;

typedef void (*Instruction)(void *arena, const int64_t *operands, ptrdiff_t pad, ptrdiff_t part, ptrdiff_t parts);

/* Of the variant that was chosen, set when the module is imported. */
static const Instruction *INSTRUCTIONS_f32, *INSTRUCTIONS_f64;

static inline int64_t add(int64_t a, int64_t b, int *overflow)
{
    *overflow |= __builtin_add_overflow(a, b, &a);
    return a;
}

static inline int64_t subtract(int64_t a, int64_t b, int *overflow)
{
    *overflow |= __builtin_sub_overflow(a, b, &a);
    return a;
}

static inline int64_t multiply(int64_t a, int64_t b, int *overflow)
{
    *overflow |= __builtin_mul_overflow(a, b, &a);
    return a;
}

/* As Python divides; what is divided by is a stride or the like, and at least 1. */
static inline int64_t floor_divide(int64_t a, int64_t b, int *overflow)
{
    if (b < 1) {
        *overflow = 1;
        return 0;
    }
    return a / b - (a % b < 0);
}

static inline int64_t modulo(int64_t a, int64_t b, int *overflow)
{
    if (b < 1) {
        *overflow = 1;
        return 1;
    }
    return a % b + (a % b < 0 ? b : 0);
}

static inline int64_t bits(double value)
{
    int64_t found;
    memcpy(&found, &value, sizeof found);
    return found;
}

static inline double as_real(int64_t bits_of_it)
{
    double value;
    memcpy(&value, &bits_of_it, sizeof value);
    return value;
}

static inline int64_t address(const void *p) { return (int64_t)(intptr_t)p; }

/* An address as the offset, in elements, from address 0 of an arena; NULL as that of what is absent. */
static inline int64_t place(const void *p, size_t itemsize) { return p ? address(p) / (int64_t)itemsize : -1; }

#endif
