"""The C part of the module: fastae.h, and a loop that knows nothing of Python."""

from cffi import FFI

import fastae

ffi = FFI()
ffi.cdef(
    """
    int streaming_use(size_t api);
    const char *streaming_error(int code);
    void *streaming_new(const char *plan, int64_t size, int *code);
    int64_t streaming_columns(const void *scorer);
    int streaming_score(void *scorer, const float *rows, float *scores, int64_t count);
    void streaming_free(void *scorer);
    """
)
ffi.set_source(
    "_streaming_cffi",
    r"""
    #include <stdlib.h>
    #include "fastae.h"

    typedef struct {
        fastae_plan plan;
        char *memory;
        void *arena;
        float *reconstruction;
    } Scorer;

    static int streaming_use(size_t api) { return fastae_use((const void *)api); }
    static const char *streaming_error(int code) { return fastae_error(code); }
    static int64_t streaming_columns(const void *scorer)
    {
        return ((const Scorer *)scorer)->plan.input_columns;
    }

    static void streaming_free(void *scorer)
    {
        if (scorer) free(((Scorer *)scorer)->memory);
        free(scorer);
    }

    static void *streaming_new(const char *plan, int64_t size, int *code)
    {
        Scorer *s = (Scorer *)calloc(1, sizeof(Scorer));
        if (!s) return NULL;
        *code = fastae_plan_open(plan, size, &s->plan);
        if (*code == FASTAE_OK && (s->plan.itemsize != 4 || !(s->plan.routines >> FASTAE_RECONSTRUCT & 1)))
            *code = FASTAE_ERROR_ROUTINE;
        if (*code == FASTAE_OK && s->plan.output_columns != s->plan.input_columns)
            *code = FASTAE_ERROR_SIZE; /* a model with targets of its own */
        if (*code == FASTAE_OK) {
            /* the arena on a boundary of 64 bytes, and behind it one row */
            s->memory = (char *)malloc((size_t)(64 + s->plan.arena_size + 4 * s->plan.output_columns));
            if (s->memory) {
                s->arena = (void *)(((uintptr_t)s->memory + 63) & ~(uintptr_t)63);
                s->reconstruction = (float *)((char *)s->arena + s->plan.arena_size);
                *code = fastae_plan_load(&s->plan, s->arena);
            }
        }
        if (*code == FASTAE_OK && s->memory) return s;
        streaming_free(s);
        return NULL;
    }

    static int streaming_score(void *scorer, const float *rows, float *scores, int64_t count)
    {
        Scorer *s = (Scorer *)scorer;
        const int64_t columns = s->plan.input_columns;
        for (int64_t i = 0; i < count; i++, rows += columns) {
            const int code = fastae_run(&s->plan, s->arena, FASTAE_RECONSTRUCT, 1, rows, NULL,
                                        s->reconstruction, NULL);
            if (code != FASTAE_OK) return code;
            fastae_row_mse_f32(s->reconstruction, rows, &scores[i], 1, columns);
        }
        return FASTAE_OK;
    }
    """,
    include_dirs=[fastae.get_include()],
)
