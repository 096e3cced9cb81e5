# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Cython kernels: typed loops over raw pointers, without the GIL.

Built once for each instruction set from this one text. The order of things: kernels, in the order
of the table, each a loop over tiles or rows; the executor that runs a Program; what Python sees.

Every matrix has the row stride ``ld(columns, pad)``: pad is 1 for the plain arrays of a call, and
64 bytes inside a Program (see fastae.program.row_stride), where a kernel may compute the padding too and
so never meets half a vector. `part` of `parts` is the share of the outputs this thread computes.
"""

from libc.math cimport isfinite, sqrt, sqrtf
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)

import threading
from contextlib import suppress

from fastae.executor import check_run, team_of_rows, team_size

cdef extern from "kernels.h" nogil:
    const int VECTOR_BYTES, TILE_COLUMNS, DOT_ROWS
    enum: NORM_COLUMNS
    int LINEAR
    int SQUARED_ERROR, ABSOLUTE_ERROR, HUBER, CROSS_ENTROPY, CROSS_ENTROPY_OF_LOGITS
    ctypedef struct Update_f32:
        Py_ssize_t first, second, ahead
    ctypedef struct Update_f64:
        Py_ssize_t first, second, ahead
    int tile_rows(int vectors)
    int c_cpu_level "cpu_level" ()

    void outer_f32(const float* a, Py_ssize_t a_row, Py_ssize_t a_step, const float* b, Py_ssize_t b_step,
                   Py_ssize_t steps, const float* bias, float* c, Py_ssize_t c_row,
                   Py_ssize_t rows, Py_ssize_t columns, const Update_f32* update)
    void outer_f64(const double* a, Py_ssize_t a_row, Py_ssize_t a_step, const double* b, Py_ssize_t b_step,
                   Py_ssize_t steps, const double* bias, double* c, Py_ssize_t c_row,
                   Py_ssize_t rows, Py_ssize_t columns, const Update_f64* update)
    void dot_f32(const float* a, Py_ssize_t a_row, const float* b, Py_ssize_t b_row, Py_ssize_t m,
                 float* c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns)
    void dot_f64(const double* a, Py_ssize_t a_row, const double* b, Py_ssize_t b_row, Py_ssize_t m,
                 double* c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns)
    void map_activate_f32(const float* x, float* y, Py_ssize_t size, int activation)
    void map_activate_f64(const double* x, double* y, Py_ssize_t size, int activation)
    void map_slope_f32(const float* dy, const float* y, float* dx, Py_ssize_t size, int activation)
    void map_slope_f64(const double* dy, const double* y, double* dx, Py_ssize_t size, int activation)
    float loss_row_f32(int loss, const float* y, const float* target, float* da, Py_ssize_t size,
                       float scale, float delta, int activation)
    double loss_row_f64(int loss, const double* y, const double* target, double* da, Py_ssize_t size,
                        double scale, double delta, int activation)
    void softmax_row_f32(const float* x, float* y, Py_ssize_t size)
    void softmax_row_f64(const double* x, double* y, Py_ssize_t size)
    void softmax_slope_row_f32(const float* dy, const float* y, float* dx, Py_ssize_t size)
    void softmax_slope_row_f64(const double* dy, const double* y, double* dx, Py_ssize_t size)
    Update_f32 descend_f32(double learning_rate, double weight_decay)
    Update_f64 descend_f64(double learning_rate, double weight_decay)
    Update_f32 adam_of_f32(int64_t step, double learning_rate, double beta1, double beta2,
                           double epsilon, double weight_decay, int decoupled)
    Update_f64 adam_of_f64(int64_t step, double learning_rate, double beta1, double beta2,
                           double epsilon, double weight_decay, int decoupled)
    void update_map_f32(const Update_f32* update, const float* g, float* w, Py_ssize_t size)
    void update_map_f64(const Update_f64* update, const double* g, double* w, Py_ssize_t size)
    void norm_forward_f32(const float* x, Py_ssize_t row, Py_ssize_t n, Py_ssize_t size, const float* gamma,
                          const float* beta, int activation, double epsilon, double momentum,
                          float* running_mean, float* running_var, float* y, float* mean, float* inv_std)
    void norm_forward_f64(const double* x, Py_ssize_t row, Py_ssize_t n, Py_ssize_t size,
                          const double* gamma, const double* beta, int activation, double epsilon,
                          double momentum, double* running_mean, double* running_var, double* y,
                          double* mean, double* inv_std)
    void norm_scale_f32(const float* gamma, const float* var, double epsilon, float* scale, Py_ssize_t size)
    void norm_scale_f64(const double* gamma, const double* var, double epsilon, double* scale,
                        Py_ssize_t size)
    void norm_rows_f32(const float* x, float* y, Py_ssize_t row, Py_ssize_t n, Py_ssize_t size,
                       const float* mean, const float* scale, const float* beta, int activation)
    void norm_rows_f64(const double* x, double* y, Py_ssize_t row, Py_ssize_t n, Py_ssize_t size,
                       const double* mean, const double* scale, const double* beta, int activation)
    void norm_backward_f32(const float* dy, const float* x, const float* y, Py_ssize_t row, Py_ssize_t n,
                           Py_ssize_t size, const float* gamma, const float* mean, const float* inv_std,
                           int activation, float* dx, float* dgamma, float* dbeta)
    void norm_backward_f64(const double* dy, const double* x, const double* y, Py_ssize_t row, Py_ssize_t n,
                           Py_ssize_t size, const double* gamma, const double* mean, const double* inv_std,
                           int activation, double* dx, double* dgamma, double* dbeta)
    void add_normal_f32(const float* x, float* y, const uint32_t* first, const uint32_t* second,
                        Py_ssize_t count, float stddev)
    void add_normal_f64(const double* x, double* y, const uint32_t* first, const uint32_t* second,
                        Py_ssize_t count, double stddev)

cdef extern from "random.h" nogil:
    uint64_t random_key(const int64_t* counter, int64_t stream)
    void random_bits(uint64_t key, uint32_t first, uint32_t step, uint32_t* bits, Py_ssize_t count)

cdef extern from "team.h" nogil:
    ctypedef struct Seat:
        pass
    void tell(Seat* seat, uint32_t round)
    void wait_for(Seat* seat, uint32_t round)
    int move_apart(Seat* seats, Py_ssize_t part, Py_ssize_t parts)
    void meet(Seat* seats, uint32_t* round, Py_ssize_t part, Py_ssize_t parts)
    ctypedef struct Tuner:
        int team
    Tuner new_tuner()
    void time_from_now(Tuner* tuner)
    int tune(Tuner* tuner, Py_ssize_t parts)
    bint alone(const Tuner* tuner, Py_ssize_t batches)
    uint64_t flush_denormals()
    void restore_denormals(uint64_t before)

ctypedef fused real:
    float
    double

cdef enum:
    ROWS_A_THREAD = 4  # with fewer for each, products are not shared out by rows


# -- sizes and shares ----------------------------------------------------------------------------

cdef inline Py_ssize_t ld(Py_ssize_t columns, Py_ssize_t pad) noexcept nogil:
    """Row stride of a matrix with so many columns: as fastae.program.row_stride."""
    cdef Py_ssize_t lines
    if pad == 1:
        return columns
    lines = (columns + pad - 1) // pad
    return (lines + 1 if lines >= 8 and lines % 4 == 0 else lines) * pad


cdef inline Py_ssize_t share(Py_ssize_t count, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """Where this part's share of `count` things begins (and part - 1's ends)."""
    return count * part // parts


cdef inline Py_ssize_t width(Py_ssize_t columns, Py_ssize_t pad, real* like) noexcept nogil:
    """Columns to compute: the padding up to the last whole vector too, where there is padding."""
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real)
    return (columns + lanes - 1) // lanes * lanes if pad > 1 else columns


# -- products ------------------------------------------------------------------------------------

cdef enum:
    SMALL_WEIGHT = 1 << 15  # as in the table


cdef inline bint by_rows(Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t steps,
                         Py_ssize_t parts) noexcept nogil:
    """Whether a product is shared out by rows: as `by_rows` of its row in the table says (tests compare)."""
    return rows >= ROWS_A_THREAD * parts and (
        columns * steps <= SMALL_WEIGHT or rows * (columns + steps) > columns * steps)


cdef void outer_product(const real* a, Py_ssize_t a_row, Py_ssize_t a_step,
                        const real* b, Py_ssize_t b_step, Py_ssize_t steps, const real* bias,
                        real* c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns,
                        void* update, int activation,
                        Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """c = f(a b + bias), or c updated by the gradient a b: even tiles, panel by panel,
        so that b stays near."""
    if parts > 1 and update == NULL and by_rows(rows, columns, steps, parts):
        outer_product(a + share(rows, part, parts) * a_row, a_row, a_step, b, b_step, steps, bias,
                      c + share(rows, part, parts) * c_row, c_row,
                      share(rows, part + 1, parts) - share(rows, part, parts), columns,
                      NULL, activation, 0, 1)
        return
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t vectors = (columns + lanes - 1) // lanes
    cdef Py_ssize_t panels = (vectors + TILE_COLUMNS - 1) // TILE_COLUMNS
    cdef Py_ssize_t high = tile_rows(<int>((vectors + panels - 1) // panels))
    cdef Py_ssize_t bands = (rows + high - 1) // high
    cdef Py_ssize_t tile, i, j, i_end, j_end, row, ahead
    cdef Py_ssize_t end = share(panels * bands, part + 1, parts)
    for tile in range(share(panels * bands, part, parts), end):
        j = share(vectors, tile // bands, panels) * lanes
        j_end = min(share(vectors, tile // bands + 1, panels) * lanes, columns)
        i = share(rows, tile % bands, bands)
        i_end = share(rows, tile % bands + 1, bands)
        if update != NULL:
            ahead = 0
            if tile + 1 < end:
                ahead = ((share(rows, (tile + 1) % bands, bands) - i) * c_row
                         + share(vectors, (tile + 1) // bands, panels) * lanes - j)
            if real is float:
                (<Update_f32*>update).ahead = ahead
            else:
                (<Update_f64*>update).ahead = ahead
        if real is float:
            outer_f32(a + i * a_row, a_row, a_step, b + j, b_step, steps,
                      bias + j if bias != NULL else NULL,
                      c + i * c_row + j, c_row, i_end - i, j_end - j, <const Update_f32*>update)
        else:
            outer_f64(a + i * a_row, a_row, a_step, b + j, b_step, steps,
                      bias + j if bias != NULL else NULL,
                      c + i * c_row + j, c_row, i_end - i, j_end - j, <const Update_f64*>update)
        if activation != LINEAR:
            for row in range(i, i_end):
                activate(c + row * c_row + j, c + row * c_row + j, j_end - j, activation)


cdef void dot_product(const real* a, Py_ssize_t a_row, const real* b, Py_ssize_t b_row, Py_ssize_t m,
                      const real* saved, real* c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns,
                      int activation, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """c = (a b^T) f'(saved), the sums along the rows of both."""
    if parts > 1 and by_rows(rows, columns, m, parts):
        dot_product(a + share(rows, part, parts) * a_row, a_row, b, b_row, m,
                    saved + share(rows, part, parts) * c_row if saved != NULL else NULL,
                    c + share(rows, part, parts) * c_row, c_row,
                    share(rows, part + 1, parts) - share(rows, part, parts), columns, activation, 0, 1)
        return
    cdef Py_ssize_t first = share((columns + 3) // 4, part, parts) * 4
    cdef Py_ssize_t end = min(share((columns + 3) // 4, part + 1, parts) * 4, columns)
    cdef Py_ssize_t i, j, band
    for j in range(first, end, 4):
        for band in range((rows + DOT_ROWS - 1) // DOT_ROWS):
            i = band * DOT_ROWS
            if real is float:
                dot_f32(a + i * a_row, a_row, b + j * b_row, b_row, m, c + i * c_row + j, c_row,
                        min(DOT_ROWS, rows - i), min(4, end - j))
            else:
                dot_f64(a + i * a_row, a_row, b + j * b_row, b_row, m, c + i * c_row + j, c_row,
                        min(DOT_ROWS, rows - i), min(4, end - j))
    if activation != LINEAR and end > first:
        for i in range(rows):
            slope(c + i * c_row + first, saved + i * c_row + first, c + i * c_row + first,
                  end - first, activation)


cdef inline void activate(const real* x, real* y, Py_ssize_t size, int activation) noexcept nogil:
    if real is float:
        map_activate_f32(x, y, size, activation)
    else:
        map_activate_f64(x, y, size, activation)


cdef inline void slope(const real* dy, const real* y, real* dx, Py_ssize_t size,
                       int activation) noexcept nogil:
    if real is float:
        map_slope_f32(dy, y, dx, size, activation)
    else:
        map_slope_f64(dy, y, dx, size, activation)


cdef void column_sums(const real* a, Py_ssize_t a_row, Py_ssize_t rows, Py_ssize_t columns, real* sums,
                      const void* update, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """Sum of the rows of a, stored in sums or, with `update`, the gradient by which sums is updated.

    64 columns at a time stay in registers.
    """
    cdef real block[64]
    cdef Py_ssize_t panel, j, i, size
    for panel in range(share((columns + 63) // 64, part, parts), share((columns + 63) // 64, part + 1,
                                                                       parts)):
        j = panel * 64
        size = min(64, columns - j)
        memset(block, 0, sizeof(block))
        for i in range(rows):
            add_to(block, a + i * a_row + j, size)
        if update != NULL:
            apply_update(update, block, sums + j, size)
        else:
            memcpy(sums + j, block, size * sizeof(real))


cdef inline void add_to(real* sums, const real* a, Py_ssize_t size) noexcept nogil:
    """Add up to 64 numbers; the usual 64 without a loop's end to look for."""
    cdef Py_ssize_t q
    if size == 64:
        for q in range(64):
            sums[q] += a[q]
    else:
        for q in range(size):
            sums[q] += a[q]


cdef inline void apply_update(const void* update, const real* g, real* w, Py_ssize_t size) noexcept nogil:
    if real is float:
        update_map_f32(<const Update_f32*>update, g, w, size)
    else:
        update_map_f64(<const Update_f64*>update, g, w, size)


# -- kernels, as the table lists them: arrays and constants, then the dims, pad, part, parts ------

cdef void dense_forward(const real* x, const real* w, const real* b, int activation, real* y,
                        Py_ssize_t n, Py_ssize_t k, Py_ssize_t m,
                        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t first = 0, rows = n
    if parts > 1 and by_rows(n, m, k, parts):  # as the table says: of m, not of the columns with padding
        first = share(n, part, parts)
        rows = share(n, part + 1, parts) - first
        part, parts = 0, 1
    outer_product(x + first * ld(k, pad), ld(k, pad), 1, w, ld(m, pad), k, b,
                  y + first * ld(m, pad), ld(m, pad), rows, width(m, pad, y), NULL, activation, part, parts)


cdef void dense_backward(const real* dy, const real* x, const real* w, const real* y, int activation,
                         real* da, real* dx, real* dw, real* db,
                         Py_ssize_t n, Py_ssize_t m, Py_ssize_t k,
                         Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    # every thread needs all of da: only one may work on this kernel
    if part > 0:
        return
    activation_backward(dy, y, activation, da, n, m, pad, 0, 1)
    dense_input_grad(da, w, <const real*>NULL, LINEAR, dx, n, m, k, pad, 0, 1)
    dense_weight_grad(x, <const real*>da, dw, db, n, k, m, pad, 0, 1)


cdef void dense_input_grad(const real* da, const real* w, const real* x, int activation, real* dx,
                           Py_ssize_t n, Py_ssize_t m, Py_ssize_t k,
                           Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    dot_product(da, ld(m, pad), w, ld(m, pad), m, x, dx, ld(k, pad), n, k, activation, part, parts)


cdef void dense_weight_grad(const real* x, const real* da, real* dw, real* db,
                            Py_ssize_t n, Py_ssize_t k, Py_ssize_t m,
                            Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    # not the padding, which stays zero: a norm is taken over the whole stretch of the gradients
    outer_product(x, 1, ld(k, pad), da, ld(m, pad), n, <const real*>NULL, dw, ld(m, pad), k, m,
                  NULL, LINEAR, part, parts)
    if db != NULL:
        column_sums(da, ld(m, pad), n, m, db, NULL, part, parts)


cdef void dense_sgd(const real* x, const real* da, double learning_rate, double weight_decay,
                    real* dw, real* w, real* b,
                    Py_ssize_t n, Py_ssize_t k, Py_ssize_t m,
                    Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    # the update is applied to the tile while it is in registers: dw is not needed
    cdef Update_f32 single
    cdef Update_f64 double_
    cdef void* update
    if real is float:
        single = descend_f32(learning_rate, weight_decay)
        update = &single
    else:
        double_ = descend_f64(learning_rate, weight_decay)
        update = &double_
    outer_product(x, 1, ld(k, pad), da, ld(m, pad), n, <const real*>NULL, w, ld(m, pad),
                  k, width(m, pad, w), update, LINEAR, part, parts)
    if b != NULL:
        column_sums(da, ld(m, pad), n, m, b, update, part, parts)


cdef void dense_adam(const real* x, const real* da, const int64_t* step, double learning_rate,
                     double beta1, double beta2, double epsilon, double weight_decay, int decoupled,
                     real* dw, real* db, real* w, real* b,
                     real* exp_avg_w, real* exp_avg_b, real* exp_avg_sq_w, real* exp_avg_sq_b,
                     Py_ssize_t n, Py_ssize_t k, Py_ssize_t m,
                     Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Update_f32 single
    cdef Update_f64 double_
    cdef void* update
    if real is float:
        single = adam_of_f32(step[0], learning_rate, beta1, beta2, epsilon, weight_decay, decoupled)
        single.first, single.second = exp_avg_w - w, exp_avg_sq_w - w
        update = &single
    else:
        double_ = adam_of_f64(step[0], learning_rate, beta1, beta2, epsilon, weight_decay, decoupled)
        double_.first, double_.second = exp_avg_w - w, exp_avg_sq_w - w
        update = &double_
    outer_product(x, 1, ld(k, pad), da, ld(m, pad), n, <const real*>NULL, w, ld(m, pad),
                  k, width(m, pad, w), update, LINEAR, part, parts)
    if b != NULL:
        if real is float:
            single.first, single.second = exp_avg_b - b, exp_avg_sq_b - b
        else:
            double_.first, double_.second = exp_avg_b - b, exp_avg_sq_b - b
        column_sums(da, ld(m, pad), n, m, b, update, part, parts)


cdef void activation_forward(const real* x, int activation, real* y, Py_ssize_t n, Py_ssize_t m,
                             Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t first = share(n, part, parts) * ld(m, pad), end = share(n, part + 1, parts) * ld(m, pad)
    activate(x + first, y + first, end - first, activation)


cdef void activation_backward(const real* dy, const real* y, int activation, real* dx,
                              Py_ssize_t n, Py_ssize_t m,
                              Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t first = share(n, part, parts) * ld(m, pad), end = share(n, part + 1, parts) * ld(m, pad)
    slope(dy + first, y + first, dx + first, end - first, activation)


cdef void subsample_forward(const real* x, Py_ssize_t stride, real* y,
                            Py_ssize_t n, Py_ssize_t k, Py_ssize_t m,
                            Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t i, j, x_row = ld(k, pad), y_row = ld(m, pad)
    for i in range(share(n, part, parts), share(n, part + 1, parts)):
        for j in range(m):
            y[i * y_row + j] = x[i * x_row + j * stride]


cdef void subsample_backward(const real* dy, Py_ssize_t stride, real* dx,
                             Py_ssize_t n, Py_ssize_t m, Py_ssize_t k,
                             Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t i, j, dx_row = ld(k, pad), dy_row = ld(m, pad)
    for i in range(share(n, part, parts), share(n, part + 1, parts)):
        memset(dx + i * dx_row, 0, k * sizeof(real))
        for j in range(m):
            dx[i * dx_row + j * stride] = dy[i * dy_row + j]


cdef void branch_sum(const real* x1, const real* x2, real* y, Py_ssize_t n, Py_ssize_t m,
                     Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(share(n, part, parts) * ld(m, pad), share(n, part + 1, parts) * ld(m, pad)):
        y[i] = x1[i] + x2[i]


cdef inline void loss_rows(int loss, const real* y, const real* target, const real* sample_weight,
                           int activation,
                           double delta, double scale, real* row_loss, real* da, Py_ssize_t n, Py_ssize_t m,
                           Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """A loss, row by row, times `scale` and the row's weight."""
    cdef Py_ssize_t i, row = ld(m, pad)
    cdef real by
    for i in range(share(n, part, parts), share(n, part + 1, parts)):
        by = <real>scale if sample_weight == NULL else <real>scale * sample_weight[i]
        if real is float:
            row_loss[i] = loss_row_f32(loss, y + i * row, target + i * row, da + i * row, m, by,
                                       <float>delta, activation)
        else:
            row_loss[i] = loss_row_f64(loss, y + i * row, target + i * row, da + i * row, m, by, delta,
                                       activation)


cdef void sse(const real* y, const real* target, const real* sample_weight, int activation,
              real* row_loss, real* da, Py_ssize_t n, Py_ssize_t m,
              Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    loss_rows(SQUARED_ERROR, y, target, sample_weight, activation, 0, 1, row_loss, da, n, m, pad, part, parts)


cdef void mse(const real* y, const real* target, const real* sample_weight, int activation,
              real* row_loss, real* da, Py_ssize_t n, Py_ssize_t m,
              Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    loss_rows(SQUARED_ERROR, y, target, sample_weight, activation, 0, 1 / (<double>n * <double>m),
              row_loss, da, n, m, pad, part, parts)


cdef void mae(const real* y, const real* target, const real* sample_weight, int activation,
              real* row_loss, real* da, Py_ssize_t n, Py_ssize_t m,
              Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    loss_rows(ABSOLUTE_ERROR, y, target, sample_weight, activation, 0, 1 / (<double>n * <double>m),
              row_loss, da, n, m, pad, part, parts)


cdef void huber(const real* y, const real* target, const real* sample_weight, int activation, double delta,
                real* row_loss, real* da, Py_ssize_t n, Py_ssize_t m,
                Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    loss_rows(HUBER, y, target, sample_weight, activation, delta, 1 / (<double>n * <double>m),
              row_loss, da, n, m, pad, part, parts)


cdef void bce(const real* y, const real* target, const real* sample_weight, int activation,
              real* row_loss, real* da, Py_ssize_t n, Py_ssize_t m,
              Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    loss_rows(CROSS_ENTROPY, y, target, sample_weight, activation, 0, 1 / (<double>n * <double>m),
              row_loss, da, n, m, pad, part, parts)


cdef void bce_with_logits(const real* logits, const real* target, const real* sample_weight,
                          real* row_loss, real* da, Py_ssize_t n, Py_ssize_t m,
                          Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    loss_rows(CROSS_ENTROPY_OF_LOGITS, logits, target, sample_weight, LINEAR, 0, 1 / (<double>n * <double>m),
              row_loss, da, n, m, pad, part, parts)


cdef void total(const real* row_loss, real* loss, Py_ssize_t n,
                Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t i
    cdef double s = 0
    if part == 0:
        for i in range(n):
            s += row_loss[i]
        loss[0] = <real>s


cdef void row_mse(const real* y, const real* target, real* error, Py_ssize_t n, Py_ssize_t m,
                  Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    # 16 sums side by side, which the compiler keeps in vectors; always the same ones, whatever the batch
    cdef real sums[16]
    cdef real d, s
    cdef Py_ssize_t i, j, q, row = ld(m, pad)
    for i in range(share(n, part, parts), share(n, part + 1, parts)):
        memset(sums, 0, sizeof(sums))
        for j in range(m // 16):
            for q in range(16):
                d = y[i * row + 16 * j + q] - target[i * row + 16 * j + q]
                sums[q] += d * d
        for j in range(m // 16 * 16, m):
            d = y[i * row + j] - target[i * row + j]
            sums[j % 16] += d * d
        s = 0
        for q in range(16):
            s += sums[q]
        error[i] = s / m


cdef void sgd(const real* g, double learning_rate, double weight_decay, real* w, Py_ssize_t p,
              Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t i
    cdef real rate = <real>learning_rate, decay = <real>weight_decay
    for i in range(share(p, part, parts), share(p, part + 1, parts)):
        w[i] -= rate * (g[i] + decay * w[i])


cdef void momentum(const real* g, double learning_rate, double momentum, int nesterov, double weight_decay,
                   real* w, real* velocity, Py_ssize_t p,
                   Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t i
    cdef real rate = <real>learning_rate, decay = <real>weight_decay, keep = <real>momentum
    # g + keep velocity, or velocity alone
    cdef real now = <real>(1 if nesterov else 0), later = <real>(momentum if nesterov else 1), d
    for i in range(share(p, part, parts), share(p, part + 1, parts)):
        d = g[i] + decay * w[i]
        velocity[i] = keep * velocity[i] + d
        w[i] -= rate * (now * d + later * velocity[i])


cdef void adam(const real* g, const int64_t* step, double learning_rate, double beta1, double beta2,
               double epsilon, double weight_decay, int decoupled,
               real* w, real* exp_avg, real* exp_avg_sq, Py_ssize_t p,
               Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t first = share(p, part, parts)
    cdef Update_f32 single
    cdef Update_f64 double_
    if real is float:
        single = adam_of_f32(step[0], learning_rate, beta1, beta2, epsilon, weight_decay, decoupled)
        single.first, single.second = exp_avg - w, exp_avg_sq - w
        update_map_f32(&single, g + first, w + first, share(p, part + 1, parts) - first)
    else:
        double_ = adam_of_f64(step[0], learning_rate, beta1, beta2, epsilon, weight_decay, decoupled)
        double_.first, double_.second = exp_avg - w, exp_avg_sq - w
        update_map_f64(&double_, g + first, w + first, share(p, part + 1, parts) - first)


cdef void rmsprop(const real* g, double learning_rate, double alpha, double epsilon, double weight_decay,
                  real* w, real* square_avg, Py_ssize_t p,
                  Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t i
    cdef real rate = <real>learning_rate, decay = <real>weight_decay, eps = <real>epsilon, d
    cdef real keep = <real>alpha, rest = <real>(1 - alpha)
    for i in range(share(p, part, parts), share(p, part + 1, parts)):
        d = g[i] + decay * w[i]
        square_avg[i] = keep * square_avg[i] + rest * (d * d)
        w[i] -= rate * d / (root(square_avg[i]) + eps)


cdef void adagrad(const real* g, double learning_rate, double epsilon, double weight_decay,
                  real* w, real* square_sum, Py_ssize_t p,
                  Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t i
    cdef real rate = <real>learning_rate, decay = <real>weight_decay, eps = <real>epsilon, d
    for i in range(share(p, part, parts), share(p, part + 1, parts)):
        d = g[i] + decay * w[i]
        square_sum[i] += d * d
        w[i] -= rate * d / (root(square_sum[i]) + eps)


cdef inline real root(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef void clip_by_norm(double max_norm, real* g, real* norm, Py_ssize_t p,
                       Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    # one thread: a sum is never split
    cdef double lanes[16]
    cdef double s = 0
    cdef Py_ssize_t i, q
    cdef real by
    if part > 0:
        return
    memset(lanes, 0, sizeof(lanes))
    for i in range(p // 16):
        for q in range(16):
            lanes[q] += <double>g[16 * i + q] * <double>g[16 * i + q]
    for i in range(p // 16 * 16, p):
        lanes[i % 16] += <double>g[i] * <double>g[i]
    for q in range(16):
        s += lanes[q]
    s = sqrt(s)
    norm[0] = <real>s
    if s > max_norm:
        by = <real>(max_norm / s)
        for i in range(p):
            g[i] *= by


cdef inline void normalise(const real* x, Py_ssize_t row, Py_ssize_t n, Py_ssize_t size, const real* gamma,
                           const real* beta, int activation, double epsilon, double momentum,
                           real* running_mean, real* running_var, real* y, real* mean,
                           real* inv_std) noexcept nogil:
    """Batch normalisation of at most NORM_COLUMNS columns: three passes over what lies in a near cache."""
    if real is float:
        norm_forward_f32(x, row, n, size, gamma, beta, activation, epsilon, momentum, running_mean,
                         running_var, y, mean, inv_std)
    else:
        norm_forward_f64(x, row, n, size, gamma, beta, activation, epsilon, momentum, running_mean,
                         running_var, y, mean, inv_std)


cdef void batchnorm_forward(const real* x, const real* gamma, const real* beta, int activation,
                            double epsilon,
                            double momentum, real* running_mean, real* running_var,
                            real* y, real* mean, real* inv_std, Py_ssize_t n, Py_ssize_t m,
                            Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t panel, j
    for panel in range(share((m + 63) // 64, part, parts), share((m + 63) // 64, part + 1, parts)):
        j = panel * 64
        normalise(x + j, ld(m, pad), n, min(64, m - j), gamma + j, beta + j, activation, epsilon, momentum,
                  running_mean + j, running_var + j, y + j, mean + j, inv_std + j)


cdef inline void follow(const real* x, real* y, Py_ssize_t row, Py_ssize_t n, Py_ssize_t size,
                        const real* mean, const real* scale, const real* beta,
                        int activation) noexcept nogil:
    """y = f((x - mean) scale + beta)."""
    if real is float:
        norm_rows_f32(x, y, row, n, size, mean, scale, beta, activation)
    else:
        norm_rows_f64(x, y, row, n, size, mean, scale, beta, activation)


cdef inline void running_scale(const real* gamma, const real* running_var, double epsilon, real* scale,
                               Py_ssize_t size) noexcept nogil:
    """scale = gamma / sqrt(running_var + epsilon)"""
    if real is float:
        norm_scale_f32(gamma, running_var, epsilon, scale, size)
    else:
        norm_scale_f64(gamma, running_var, epsilon, scale, size)


cdef void batchnorm_inference(const real* x, const real* gamma, const real* beta, const real* running_mean,
                              const real* running_var, int activation, double epsilon, real* y,
                              Py_ssize_t n, Py_ssize_t m,
                              Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t panel, j, size
    cdef real scale[64]
    for panel in range(share((m + 63) // 64, part, parts), share((m + 63) // 64, part + 1, parts)):
        j = panel * 64
        size = min(64, m - j)
        running_scale(gamma + j, running_var + j, epsilon, scale, size)
        follow(x + j, y + j, ld(m, pad), n, size, running_mean + j, scale, beta + j, activation)


cdef void batchnorm_backward(const real* dy, const real* x, const real* gamma, const real* y,
                             const real* mean,
                             const real* inv_std, int activation, real* dx, real* dgamma, real* dbeta,
                             Py_ssize_t n, Py_ssize_t m,
                             Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t panel, j, size, row = ld(m, pad)
    for panel in range(share((m + 63) // 64, part, parts), share((m + 63) // 64, part + 1, parts)):
        j = panel * 64
        size = min(64, m - j)
        if real is float:
            norm_backward_f32(dy + j, x + j, y + j, row, n, size, gamma + j, mean + j, inv_std + j,
                              activation, dx + j, dgamma + j, dbeta + j)
        else:
            norm_backward_f64(dy + j, x + j, y + j, row, n, size, gamma + j, mean + j, inv_std + j,
                              activation, dx + j, dgamma + j, dbeta + j)


cdef void dense_batchnorm_forward(const real* x, const real* w, const real* b, const real* gamma,
                                  const real* beta, int activation, double epsilon, double momentum,
                                  real* running_mean, real* running_var, real* z, real* y, real* mean,
                                  real* inv_std, Py_ssize_t n, Py_ssize_t k, Py_ssize_t m,
                                  Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    # one panel of the product's columns after the other, normalised while it is near; as many for each thread
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t vectors = (m + lanes - 1) // lanes, row = ld(m, pad), wide = width(m, pad, z)
    cdef Py_ssize_t panels = (vectors + TILE_COLUMNS - 1) // TILE_COLUMNS
    cdef Py_ssize_t panel, j, end
    panels = min((panels + parts - 1) // parts * parts, vectors)
    for panel in range(share(panels, part, parts), share(panels, part + 1, parts)):
        j = share(vectors, panel, panels) * lanes
        end = share(vectors, panel + 1, panels) * lanes
        outer_product(x, ld(k, pad), 1, w + j, row, k, b + j if b != NULL else NULL, z + j, row, n,
                      min(end, wide) - j, NULL, LINEAR, 0, 1)
        normalise(<const real*>z + j, row, n, min(end, m) - j, gamma + j, beta + j, activation, epsilon,
                  momentum, running_mean + j, running_var + j, y + j, mean + j, inv_std + j)


cdef void dense_batchnorm_inference(const real* x, const real* w, const real* b, const real* gamma,
                                    const real* beta, const real* running_mean, const real* running_var,
                                    int activation, double epsilon, real* y,
                                    Py_ssize_t n, Py_ssize_t k, Py_ssize_t m,
                                    Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    # tile by tile: each is scaled and shifted as soon as it is stored
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t vectors = (m + lanes - 1) // lanes, row = ld(m, pad), wide = width(m, pad, y)
    cdef Py_ssize_t panels = (vectors + TILE_COLUMNS - 1) // TILE_COLUMNS
    cdef Py_ssize_t high = tile_rows(<int>((vectors + panels - 1) // panels))
    cdef Py_ssize_t bands = (n + high - 1) // high
    cdef Py_ssize_t tile, scaled = -1, i, j = 0, end = 0, rows
    cdef real scale[NORM_COLUMNS]
    for tile in range(share(panels * bands, part, parts), share(panels * bands, part + 1, parts)):
        if tile // bands != scaled:
            scaled = tile // bands
            j = share(vectors, scaled, panels) * lanes
            end = share(vectors, scaled + 1, panels) * lanes
            running_scale(gamma + j, running_var + j, epsilon, scale, min(end, m) - j)
        i = share(n, tile % bands, bands)
        rows = share(n, tile % bands + 1, bands) - i
        outer_product(x + i * ld(k, pad), ld(k, pad), 1, w + j, row, k, b + j if b != NULL else NULL,
                      y + i * row + j, row, rows, min(end, wide) - j, NULL, LINEAR, 0, 1)
        follow(y + i * row + j, y + i * row + j, row, rows, min(end, m) - j, running_mean + j, scale,
               beta + j, activation)


cdef void softmax_forward(const real* x, real* y, Py_ssize_t n, Py_ssize_t m,
                          Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t i, row = ld(m, pad)
    for i in range(share(n, part, parts), share(n, part + 1, parts)):
        if real is float:
            softmax_row_f32(x + i * row, y + i * row, m)
        else:
            softmax_row_f64(x + i * row, y + i * row, m)


cdef void softmax_backward(const real* dy, const real* y, real* dx, Py_ssize_t n, Py_ssize_t m,
                           Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t i, row = ld(m, pad)
    for i in range(share(n, part, parts), share(n, part + 1, parts)):
        if real is float:
            softmax_slope_row_f32(dy + i * row, y + i * row, dx + i * row, m)
        else:
            softmax_slope_row_f64(dy + i * row, y + i * row, dx + i * row, m)


cdef void drop(const real* x, const int64_t* counter, double rate, int64_t stream, real* y, real scale,
               Py_ssize_t n, Py_ssize_t m, Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """y = 0 where the element's bits are below rate, else scale x."""
    cdef uint32_t bits[64]
    cdef uint32_t below = <uint32_t>(rate * 4294967296.0)
    cdef uint64_t key = random_key(counter, stream)
    cdef Py_ssize_t i, j, q, panel, size, row = ld(m, pad)
    for i in range(share(n, part, parts), share(n, part + 1, parts)):
        for panel in range((m + 63) // 64):
            j = panel * 64
            size = min(64, m - j)
            random_bits(key, <uint32_t>(i * m + j), 1, bits, 64)
            for q in range(size):
                y[i * row + j + q] = <real>0 if bits[q] < below else scale * x[i * row + j + q]


cdef void dropout_forward(const real* x, const int64_t* counter, double rate, int64_t stream, real* y,
                          Py_ssize_t n, Py_ssize_t m,
                          Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    drop(x, counter, rate, stream, y, <real>(1 / (1 - rate)), n, m, pad, part, parts)


cdef void dropout_backward(const real* dy, const int64_t* counter, double rate, int64_t stream, real* dx,
                           Py_ssize_t n, Py_ssize_t m,
                           Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    drop(dy, counter, rate, stream, dx, <real>(1 / (1 - rate)), n, m, pad, part, parts)


cdef void masking_noise(const real* x, const int64_t* counter, double rate, int64_t stream, real* y,
                        Py_ssize_t n, Py_ssize_t m,
                        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    drop(x, counter, rate, stream, y, <real>1, n, m, pad, part, parts)


cdef void gaussian_noise(const real* x, const int64_t* counter, double stddev, int64_t stream, real* y,
                         Py_ssize_t n, Py_ssize_t m,
                         Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef uint32_t first[64]
    cdef uint32_t second[64]
    cdef uint64_t key = random_key(counter, stream)
    cdef Py_ssize_t i, j, panel, at, row = ld(m, pad)
    for i in range(share(n, part, parts), share(n, part + 1, parts)):
        for panel in range((m + 63) // 64):
            j = panel * 64
            at = i * row + j
            random_bits(key, <uint32_t>(2 * (i * m + j)), 2, first, 64)
            random_bits(key, <uint32_t>(2 * (i * m + j) + 1), 2, second, 64)
            if real is float:
                add_normal_f32(x + at, y + at, first, second, min(64, m - j), <float>stddev)
            else:
                add_normal_f64(x + at, y + at, first, second, min(64, m - j), stddev)


cdef void gather_rows(const real* data, const int64_t* order, real* x,
                      Py_ssize_t r, Py_ssize_t k, Py_ssize_t n,
                      Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    # data is the caller's: its rows are not padded
    cdef Py_ssize_t i
    for i in range(share(n, part, parts), share(n, part + 1, parts)):
        memcpy(x + i * ld(k, pad), data + order[i] * k, k * sizeof(real))


include "images.pxi"


# -- instructions: the same, called with offsets; generated from the table at build time ---------

ctypedef void (*instruction)(void* arena, const int64_t* operands, Py_ssize_t pad,
                             Py_ssize_t part, Py_ssize_t parts) noexcept nogil


cdef inline double as_double(int64_t bits) noexcept nogil:
    cdef double value
    memcpy(&value, &bits, sizeof(double))
    return value


cdef inline void* at(void* arena, int64_t offset, Py_ssize_t itemsize) noexcept nogil:
    """Address of an operand; by integers, for the arena of a direct call is address 0."""
    return NULL if offset < 0 else <void*>(<uintptr_t>arena + <uintptr_t>(offset * itemsize))


include "instructions.pxi"


# -- executor ------------------------------------------------------------------------------------

cdef struct Job:
    # all that the threads of a run share
    void* arena
    const int64_t* code        # instructions for a whole batch
    const int64_t* tail_code   # and for the last, smaller one
    int64_t opens, tail_opens  # whether to meet before the first instruction, as column 1 says after others
    Py_ssize_t instructions, width, check, batch, rows
    const char* data
    const char* target
    const char* weights
    const int64_t* order
    Py_ssize_t input_offset, input_columns, target_offset, target_columns, weight_offset
    Py_ssize_t output_offset, output_columns, loss_offset, pad
    double* losses
    char* out
    int64_t* control
    bint trains
    Seat* seats
    # With a tuner the first thread may go on alone, from batch `alone_from`; the others wait until they are
    # recalled, for the next batch or because all is over.
    Tuner* tuner
    Seat recall
    uint32_t recalls
    Py_ssize_t alone_from, next_batch
    bint over


cdef void fetch(Job* job, const char* source, Py_ssize_t columns, Py_ssize_t offset, Py_ssize_t start,
                Py_ssize_t count, real* arena, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """Rows `start` to `start + count` of the order, into the arena."""
    cdef Py_ssize_t i, row, step = ld(columns, job.pad)
    for i in range(share(count, part, parts), share(count, part + 1, parts)):
        row = start + i if job.order == NULL else job.order[start + i]
        memcpy(arena + offset + i * step, <const real*>source + row * columns, columns * sizeof(real))


cdef inline bint must_meet(int64_t barrier, Py_ssize_t rows, Py_ssize_t parts) noexcept nogil:
    """Whether a team must meet, as Routine.barriers says: 2, where its work is not shared out by rows."""
    return parts > 1 and (barrier == 1 or (barrier == 2 and rows < ROWS_A_THREAD * parts))


cdef void run_batches(Job* job, real* arena, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """One thread's part of a run: every batch, every instruction, no Python and no allocation."""
    cdef Py_ssize_t batch = 0, start, count, i, step, team = parts
    cdef const int64_t* code
    cdef const int64_t* row
    cdef int64_t opens
    cdef int64_t* header = <int64_t*>arena
    cdef uint32_t round = 0, recalls = 0
    if parts > 1:
        move_apart(job.seats, part, parts)
    while batch * job.batch < job.rows:
        if job.tuner != NULL and part > 0:
            if job.alone_from == batch:
                recalls += 1
                wait_for(&job.recall, recalls)
                if job.over:
                    return
                move_apart(job.seats, part, parts)
                batch = job.next_batch
        elif job.tuner != NULL:
            if job.alone_from == batch:
                team = 1
            elif team < parts and job.tuner.team:
                team = parts
                job.next_batch = batch
                job.recalls += 1
                tell(&job.recall, job.recalls)
        start = batch * job.batch
        count = min(job.batch, job.rows - start)
        code, opens = job.code, job.opens
        if count < job.batch:
            code, opens = job.tail_code, job.tail_opens
        fetch(job, job.data, job.input_columns, job.input_offset, start, count, arena, part, team)
        if job.target != NULL:
            fetch(job, job.target, job.target_columns, job.target_offset, start, count, arena, part, team)
        if job.weights != NULL:
            for i in range(share(count, part, team), share(count, part + 1, team)):
                arena[job.weight_offset + i] = (<const real*>job.weights)[
                    start + i if job.order == NULL else job.order[start + i]]
        if must_meet(opens, count, team):
            meet(job.seats, &round, part, team)
        for i in range(job.instructions + 1):
            if i == job.check and i > 0:
                # every thread sees the same loss and takes the same way
                if job.losses != NULL and part == 0:
                    job.losses[batch] = arena[job.loss_offset]
                if not isfinite(arena[job.loss_offset]):
                    if part == 0:
                        job.control[2] = batch
                    return
            if i < job.instructions:
                row = code + i * job.width
                instructions_of(arena)[row[0]](arena, row + 2, job.pad, part, team)
                if must_meet(row[1], count, team):
                    meet(job.seats, &round, part, team)
        if job.out != NULL:
            step = ld(job.output_columns, job.pad)
            for i in range(share(count, part, team), share(count, part + 1, team)):
                memcpy(<real*>job.out + (start + i) * job.output_columns,
                       arena + job.output_offset + i * step, job.output_columns * sizeof(real))
        if part == 0:  # what all have to know of the next batch
            # in one of two places: who is late reads the other one's while this thread is a batch ahead
            job.control[3 + batch % 2] = job.control[0]
            if job.tuner != NULL and not tune(job.tuner, parts) and team > 1:
                job.alone_from = batch + 1
        meet(job.seats, &round, part, team)
        if part == 0:  # nobody reads the number of updates any more, or again before they meet
            if job.trains:
                header[0] += 1
            job.control[1] = batch + 1
        if job.control[3 + batch % 2]:
            return
        batch += 1


cdef void run_part(Job* job, bint single, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    if single:
        run_batches(job, <float*>job.arena, part, parts)
    else:
        run_batches(job, <double*>job.arena, part, parts)


cdef int READABLE = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT


cdef class Holder:
    """Buffers, held as long as it lives."""

    cdef Py_buffer views[8]  # more than any has
    cdef int count

    cdef void* hold(self, object array, str name, char letter, Py_ssize_t size, bint writable) except? NULL:
        """Address of a C-contiguous array of 'f', 'd' or, as 'q', int64, of at least `size` elements."""
        cdef Py_buffer* view = &self.views[self.count]
        cdef Py_ssize_t itemsize = 4 if letter == c"f" else 8
        if array is None:
            return NULL
        PyObject_GetBuffer(array, view, READABLE | (PyBUF_WRITABLE if writable else 0))
        self.count += 1
        if (view.format == NULL or view.format[0] == 0 or view.format[1] != 0
                or (view.format[0] != letter and (view.format[0] != c"l" or letter != c"q"))):
            raise TypeError(f"{name}: expected a buffer of format {chr(letter)!r}, got {view.format!r}")
        if view.itemsize != itemsize:
            raise TypeError(f"{name}: expected elements of {itemsize} bytes, got {view.itemsize}")
        if view.len < size * view.itemsize:
            raise ValueError(f"{name}: expected at least {size} elements, got {view.len // view.itemsize}")
        return view.buf

    def __dealloc__(self):
        while self.count > 0:
            self.count -= 1
            PyBuffer_Release(&self.views[self.count])


cdef class Prepared(Holder):
    """What the runs of a routine have in common: a job without data."""

    cdef Job job
    cdef object routine  # that it was asked for: kept, for it is known by its id

    def __cinit__(self, routine, Py_ssize_t batch, Py_ssize_t tail):
        cdef Job* job = &self.job
        code = routine.encode(batch)
        job.code = <const int64_t*>self.hold(code, "code", c"q", 0, False)
        job.tail_code = <const int64_t*>self.hold(
            routine.encode(tail) if tail else None, "code", c"q", 0, False)
        job.opens = routine.opens(batch)
        if tail:
            job.tail_opens = routine.opens(tail)
        job.instructions, job.width = code.shape
        job.batch, job.check, job.trains = batch, routine.check, routine.trains
        job.input_offset, job.input_columns = routine.input.offset, routine.input.columns
        if routine.target is not None:
            job.target_offset, job.target_columns = routine.target.offset, routine.target.columns
        if routine.weight is not None:
            job.weight_offset = routine.weight.offset
        if routine.output is not None:
            job.output_offset, job.output_columns = routine.output.offset, routine.output.columns
        if routine.loss is not None:
            job.loss_offset = routine.loss.offset


cdef class Run(Holder):
    """One run: its job, and the buffers held as long as any thread may use them."""

    cdef Job job
    cdef Job* shares  # NULL where all share each instruction, else one for each thread, with rows of its own
    cdef tuple prepared
    cdef Seat start  # 0 until it is decided whether all threads are there
    cdef bint complete
    cdef void* room
    cdef int64_t own_control[8]
    cdef bint single
    cdef Py_ssize_t parts

    def __cinit__(self, Prepared prepared, Py_ssize_t parts, bint single):
        self.job = prepared.job
        self.prepared = (prepared,)
        self.parts, self.single = parts, single
        self.room = PyMem_Calloc(parts + 1, sizeof(Seat))
        if self.room == NULL:
            raise MemoryError
        self.job.seats = <Seat*>((<uintptr_t>self.room + sizeof(Seat) - 1) // sizeof(Seat) * sizeof(Seat))

    def __dealloc__(self):
        PyMem_Free(self.room)
        PyMem_Free(self.shares)

    cdef int divide(self, tuple prepared) except -1:
        """Give each thread whole batches of its own, which it computes where its job says."""
        cdef Py_ssize_t itemsize = 4 if self.single else 8, batch = self.job.batch, part, first
        cdef Py_ssize_t batches = (self.job.rows + batch - 1) // batch
        cdef Job* job
        cdef Job* own
        self.prepared = prepared
        self.shares = <Job*>PyMem_Calloc(self.parts, sizeof(Job) + sizeof(self.own_control))
        if self.shares == NULL:
            raise MemoryError
        for part in range(self.parts):
            job, own = &self.shares[part], &(<Prepared>prepared[part]).job
            first = share(batches, part, self.parts) * batch
            job[0] = self.job
            job.rows = min(share(batches, part + 1, self.parts) * batch, self.job.rows) - first
            job.data += first * job.input_columns * itemsize
            job.out += first * job.output_columns * itemsize
            job.arena, job.code, job.tail_code = own.arena, own.code, own.tail_code
            job.input_offset, job.output_offset = own.input_offset, own.output_offset
            job.control = <int64_t*>(self.shares + self.parts) + 8 * part
        return 0

    def enter(self, Py_ssize_t part):
        """Take part, as one thread of the team; part 0 lets the others begin."""
        cdef uint64_t before
        with nogil:
            if part == 0:
                self.complete = True
                tell(&self.start, 1)
            else:
                wait_for(&self.start, 1)
            if self.complete:
                before = flush_denormals()
                if self.shares != NULL:
                    move_apart(self.job.seats, part, self.parts)
                    run_part(&self.shares[part], self.single, 0, 1)
                else:
                    run_part(&self.job, self.single, part, self.parts)
                restore_denormals(before)
                if part == 0:
                    self.job.over = True
                    tell(&self.job.recall, self.job.recalls + 1)

    def send_home(self):
        """Let the threads that have been started end: the run does not take place."""
        tell(&self.start, 1)

    def stop(self):
        """Let threads that have rows of their own end after the batch at hand."""
        cdef Py_ssize_t part
        for part in range(self.parts if self.shares != NULL else 0):
            self.shares[part].control[0] = 1


#: FLOPs of a batch that are worth a thread.
cdef double WORTH_A_THREAD = 1e6


cdef class Executor:
    """Runs the routines of a Program, a whole epoch in one call, without the GIL.

    Parameters
    ----------
    program : fastae.program.Program
        Lowered with padded rows.
    arena : ndarray of shape (program.arena_size,)
        The memory it runs in; kept alive by the executor.
    n_threads : int or None
        Threads that share each instruction or, in inference of several batches, the batches; at least 1.
        None: chosen for each run by its work and, where they share instructions, while it runs by what is
        measured to be faster, the team or one thread. The bits are the same for any number.

    Raises
    ------
    ValueError
        If `n_threads` is less than 1.
    """

    cdef readonly object program, arena, n_threads
    cdef bint single
    cdef Holder holder
    cdef void* base  # of the arena
    cdef dict routines, rooms
    cdef Py_ssize_t pad, batch
    cdef Tuner[2] tuners  # of routines that train, and of others

    def __init__(self, program, arena, n_threads=1):
        if n_threads is not None and n_threads < 1:
            raise ValueError(f"n_threads: expected at least 1, got {n_threads}")
        self.program = program
        self.arena = arena
        self.n_threads = n_threads
        self.single = arena.dtype == "float32"
        self.pad = 64 // arena.itemsize
        self.batch = program.batch_size
        self.holder = Holder()
        self.base = self.holder.hold(
            arena, "arena", c"f" if self.single else c"d", program.arena_size, True)
        self.routines = {}
        self.rooms = {}  # where a thread other than the first computes batches of its own
        for i in range(2):
            self.tuners[i] = new_tuner()

    def run(self, routine, data, target, order, *, weights=None, losses=None, out=None, control=None):
        """Run `routine` over the rows of `data` (see the executor protocol in fastae.executor)."""
        check_run(routine, data, target, order, weights, out)
        cdef Py_ssize_t given = len(data), rows = given if order is None else len(order)
        cdef Py_ssize_t batches = (rows + self.batch - 1) // self.batch
        cdef Py_ssize_t tail = rows % self.batch
        cdef Py_ssize_t parts
        # Batches that nothing passes on between are not worth a barrier.
        cdef bint apart = (batches > 1 and out is not None and not routine.trains and target is None
                           and order is None and losses is None and control is None)
        if self.n_threads is None:
            parts = (team_of_rows(routine, rows) if apart
                     else team_size(routine, rows, self.batch, WORTH_A_THREAD))
        else:
            parts = self.n_threads
        if apart:
            parts = min(parts, batches)
        cdef Tuner* tuner = NULL
        if parts > 1 and self.n_threads is None and not apart:
            tuner = &self.tuners[routine.trains]
            if alone(tuner, batches):
                parts = 1
        cdef Run run = Run(self._prepared(routine, tail, 0), parts, self.single)
        cdef Job* job = &run.job
        cdef char kind = c"f" if self.single else c"d"
        job.rows = rows
        job.data = <const char*>run.hold(data, "data", kind, given * job.input_columns, False)
        job.order = <const int64_t*>run.hold(order, "order", c"q", rows, False)
        job.target = <const char*>run.hold(target, "target", kind, given * job.target_columns, False)
        job.weights = <const char*>run.hold(weights, "weights", kind, given, False)
        job.out = <char*>run.hold(out, "out", kind, rows * job.output_columns, True)
        job.losses = <double*>run.hold(losses, "losses", c"d", batches, True)
        job.control = <int64_t*>run.hold(control, "control", c"q", 8, True)
        if job.control == NULL:
            job.control = run.own_control
        job.control[1], job.control[2] = 0, -1
        job.tuner = tuner
        if tuner != NULL:
            job.alone_from = -1 if tuner.team else 0
            time_from_now(tuner)
        job.pad = self.pad
        if apart and parts > 1:
            run.divide(tuple([self._prepared(routine, tail, part) for part in range(parts)]))
        team = [threading.Thread(target=run.enter, args=(part,)) for part in range(1, parts)]
        try:
            for thread in team:
                thread.start()
        except BaseException:
            run.send_home()
            raise
        try:
            run.enter(0)
            for thread in team:
                thread.join()
        except BaseException:  # an interrupt, passed on when nobody writes any more
            run.stop()
            while any([thread.is_alive() for thread in team]):
                with suppress(KeyboardInterrupt):
                    for thread in team:
                        thread.join()
            raise

    cdef Prepared _prepared(self, routine, Py_ssize_t tail, Py_ssize_t part):
        """What runs of a routine have in common whose last batch has `tail` rows, 0 for a whole one.

        Part 0 computes in the arena. Another one reads there what lasts and has a room for all else.
        """
        cdef Prepared found
        cdef uintptr_t arena = <uintptr_t>self.base, room = arena, base
        key = (id(routine), tail, part)
        found = self.routines.get(key)
        if found is None:
            if len(self.routines) >= 64:  # schedules bring a new routine for each rate
                self.routines.clear()
            if part > 0:
                if part not in self.rooms:
                    self.rooms[part] = self.program.new_arena()
                room = self.rooms[part].ctypes.data
            base = min(arena, room)  # offsets are not negative
            itemsize = 64 // self.pad
            moved = routine if part == 0 else self.program.moved(
                routine, (arena - base) // itemsize, (room - base) // itemsize)
            found = Prepared(moved, self.batch, tail)
            found.routine = routine
            found.job.arena = <void*>base
            self.routines[key] = found
        return found


# -- what Python calls ---------------------------------------------------------------------------

from fastae.kernels.table import KERNELS, Array  # noqa: E402

cdef dict FORMATS = {"real": "fd", "index": "lq"}


cdef class Kernel:
    """A kernel on arrays: takes the arguments of its row in the table, by position.

    Any C-contiguous buffers of float32 or of float64 will do. Shapes are compared with each other; a wrong
    dtype or shape or a read-only output is an error before anything is written. fastae.ops checks more.
    """

    cdef readonly str __name__
    cdef readonly str backend
    cdef readonly str __doc__
    cdef object row
    cdef Py_ssize_t count, n_dims, index
    cdef int kinds[24]        # 0 real array, 1 index array, 2 int, 3 real constant
    cdef int written[24]
    cdef int optional[24]
    cdef int work[24]
    cdef int ranks[24]
    cdef int dims[24][4]      # position among the dims, or -1 - size for a fixed one
    cdef Py_ssize_t activation, saved  # places of the activation and of an optional saved array, or -1

    def __init__(self, row, Py_ssize_t index):
        self.row = row
        self.index = index
        self.__name__ = row.name
        self.__doc__ = f"{row.summary}\n\n{row.formula}"
        self.backend = "cython"
        self.count = len(row.arguments)
        names = row.dims
        self.n_dims = len(names)
        if self.count > 24 or self.count + self.n_dims > 32 or any(len(a.dims) > 4 for a in row.arrays):
            raise ValueError(f"{row.name}: more arguments or dims than a call has room for")
        self.activation = self.saved = -1
        for i, a in enumerate(row.arguments):
            if isinstance(a, Array):
                self.kinds[i] = 1 if a.kind == "index" else 0
                self.written[i] = a.written
                self.optional[i] = a.optional
                self.work[i] = a.role == "work"
                self.ranks[i] = len(a.dims)
                if a.optional and a.role == "saved":
                    self.saved = i
                for j, d in enumerate(a.dims):
                    self.dims[i][j] = -1 - int(d) if d.isdigit() else names.index(d)
            else:
                self.kinds[i] = 3 if a.kind == "real" else 2
                if a.kind == "activation":
                    self.activation = i

    def __repr__(self):
        return f"<cython kernel {self.__name__}>"

    def __call__(self, *args):
        cdef Py_buffer views[24]
        cdef int64_t operands[32]
        cdef Py_ssize_t i, j, held = 0, itemsize = 0, value
        cdef int64_t* dim = operands + self.count
        cdef double number
        cdef char letter
        if len(args) != self.count:
            raise TypeError(f"{self.__name__}: expected {self.count} arguments, got {len(args)}")
        for i in range(self.n_dims):
            dim[i] = -1
        try:
            for i in range(self.count):
                if self.kinds[i] == 2:
                    operands[i] = args[i]
                elif self.kinds[i] == 3:
                    number = args[i]
                    memcpy(&operands[i], &number, sizeof(double))
                else:
                    PyObject_GetBuffer(args[i], &views[held],
                                       READABLE | (PyBUF_WRITABLE if self.written[i] else 0))
                    held += 1
                    letter = views[held - 1].format[0]
                    if self.kinds[i] == 1:
                        if (letter != c"l" and letter != c"q") or views[held - 1].itemsize != 8:
                            self._refuse(i, "int64", views[held - 1].format)
                    elif letter != c"f" and letter != c"d":
                        self._refuse(i, "float32 or float64", views[held - 1].format)
                    elif itemsize == 0:
                        itemsize = views[held - 1].itemsize
                    elif views[held - 1].itemsize != itemsize:
                        self._refuse(i, f"the dtype of the other arrays ({8 * itemsize} bits)",
                                     views[held - 1].format)
                    if self.optional[i] and views[held - 1].len == 0:
                        if self.work[i]:
                            self._refuse(i, "an array", "none")
                        operands[i] = -1
                        continue
                    if views[held - 1].ndim != self.ranks[i]:
                        self._refuse(i, f"{self.ranks[i]} dims", views[held - 1].ndim)
                    for j in range(self.ranks[i]):
                        value = views[held - 1].shape[j]
                        if self.dims[i][j] < 0:
                            if value != -1 - self.dims[i][j]:
                                self._refuse(i, f"size {-1 - self.dims[i][j]} of dim {j}", value)
                        elif dim[self.dims[i][j]] < 0:
                            dim[self.dims[i][j]] = value
                        elif dim[self.dims[i][j]] != value:
                            self._refuse(i, f"{self.row.dims[self.dims[i][j]]} = {dim[self.dims[i][j]]}",
                                         value)
                    operands[i] = <int64_t><uintptr_t>views[held - 1].buf
            for i in range(self.n_dims):
                if dim[i] < 1:
                    raise ValueError(
                        f"{self.__name__}: {self.row.dims[i]}: expected at least 1, got {max(dim[i], 0)}")
            if self.row.derived or self.row.demands:
                self._check_derived(args, [dim[i] for i in range(self.n_dims)])
            if self.saved >= 0 and operands[self.saved] == -1 and operands[self.activation] != LINEAR:
                self._refuse(self.saved, "an array, which the derivative of the activation needs", "none")
            for i in range(self.count):
                if self.kinds[i] < 2 and operands[i] != -1:
                    if operands[i] % itemsize:
                        self._refuse(i, "an aligned array", "a misaligned one")
                    operands[i] //= itemsize
            with nogil:
                if itemsize == 4:
                    F32[self.index](NULL, operands, 1, 0, 1)
                else:
                    F64[self.index](NULL, operands, 1, 0, 1)
        finally:
            for i in range(held):
                PyBuffer_Release(&views[i])

    cdef object _check_derived(self, tuple args, list sizes):
        known = dict(zip(self.row.dims, sizes))
        constants = {a.name: v for a, v in zip(self.row.arguments, args) if not isinstance(a, Array)}
        free = {name: size for name, size in known.items() if name not in self.row.derived}
        for name, expected in self.row.derive(free | constants).items():
            if known[name] < expected or (known[name] > expected and name not in self.row.workspace_dims):
                raise ValueError(f"{self.__name__}: {name}: expected {expected}, got {known[name]}")

    cdef object _refuse(self, Py_ssize_t i, str expected, given):
        given = given.decode() if isinstance(given, bytes) else given
        raise ValueError(f"{self.__name__}: {self.row.arguments[i].name}: expected {expected}, got {given}")


if TABLE_HASH != table_hash():
    raise RuntimeError(
        "fastae's compiled kernels were built from another kernel table; build and install fastae again")

#: Where the instruction forms of all kernels begin, for float32 and float64: what C calls of fastae end in.
INSTRUCTIONS = (<uintptr_t>&F32[0], <uintptr_t>&F64[0])

KERNEL_OBJECTS = {row.name: Kernel(row, index) for index, row in enumerate(KERNELS.values())}


cdef extern from *:
    """
    #if defined(__clang__)
    #define FASTAE_COMPILER "clang " __clang_version__
    #else
    #define FASTAE_COMPILER "gcc " __VERSION__
    #endif
    """
    const char* FASTAE_COMPILER

COMPILER = FASTAE_COMPILER.decode()


def shared_by_rows(Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t steps, Py_ssize_t parts):
    """Whether so many threads share a product out by rows; only for a comparison with the table."""
    return bool(by_rows(rows, columns, steps, parts))


def cpu_level():
    """The x86-64 level of this processor: 1, 3 or 4 (1 on other machines)."""
    return c_cpu_level()
