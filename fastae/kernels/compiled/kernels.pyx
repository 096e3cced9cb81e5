# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Cython kernels: typed loops over raw pointers, without the GIL.

Built once for each instruction set from this one text. The order of things: products of matrices
(products.pxi); kernels, in the order of the table, each a loop over tiles or rows (those on images in
images.pxi); the executor that runs a Program (executor.pxi); what Python calls (calls.pxi).

Every matrix has the row stride ``ld(columns, pad)``: pad is 1 for the plain arrays of a call, and
64 bytes inside a Program (see fastae.program.row_stride), where a kernel may compute the padding too and
so never meets half a vector. `part` of `parts` is the share of the outputs this thread computes; a
negative number of parts is the second pass of what the table has `in_two_passes`.
"""

from libc.math cimport sqrt, sqrtf
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)

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
    void ask_for_rows(const char* start, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t size)
    int c_cpu_level "cpu_level" ()

    void outer_f32(const float* a, Py_ssize_t a_row, Py_ssize_t a_step, const float* b, Py_ssize_t b_step,
                   Py_ssize_t steps, const float* start, float* c, Py_ssize_t c_row,
                   Py_ssize_t rows, Py_ssize_t columns, const Update_f32* update)
    void outer_f64(const double* a, Py_ssize_t a_row, Py_ssize_t a_step, const double* b, Py_ssize_t b_step,
                   Py_ssize_t steps, const double* start, double* c, Py_ssize_t c_row,
                   Py_ssize_t rows, Py_ssize_t columns, const Update_f64* update)
    void dot_f32(const float* a, Py_ssize_t a_row, const float* b, Py_ssize_t b_row, Py_ssize_t m,
                 float* c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns)
    void dot_f64(const double* a, Py_ssize_t a_row, const double* b, Py_ssize_t b_row, Py_ssize_t m,
                 double* c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns)
    enum: ZERO_STEPS, ZERO_COLUMNS, ZERO_MOST, ZERO_WIDEST
    double share_of_others_f32(const float* a, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t size)
    double share_of_others_f64(const double* a, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t size)
    void zero_product_f32(const float* a, Py_ssize_t a_row, const float* b, Py_ssize_t b_step,
                          Py_ssize_t steps, const float* bias, float* c, Py_ssize_t c_row,
                          Py_ssize_t rows, Py_ssize_t columns, int activation)
    void zero_product_f64(const double* a, Py_ssize_t a_row, const double* b, Py_ssize_t b_step,
                          Py_ssize_t steps, const double* bias, double* c, Py_ssize_t c_row,
                          Py_ssize_t rows, Py_ssize_t columns, int activation)
    void zero_update_f32(const float* a, Py_ssize_t a_step, const float* b, Py_ssize_t b_step,
                         Py_ssize_t steps, float* c, Py_ssize_t c_row,
                         Py_ssize_t rows, Py_ssize_t columns, const Update_f32* update)
    void zero_update_f64(const double* a, Py_ssize_t a_step, const double* b, Py_ssize_t b_step,
                         Py_ssize_t steps, double* c, Py_ssize_t c_row,
                         Py_ssize_t rows, Py_ssize_t columns, const Update_f64* update)
    void map_activate_f32(const float* x, float* y, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t size,
                          int activation)
    void map_activate_f64(const double* x, double* y, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t size,
                          int activation)
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
    void column_sums_f32(const float* a, Py_ssize_t a_row, Py_ssize_t rows, float* sums, Py_ssize_t columns)
    void column_sums_f64(const double* a, Py_ssize_t a_row, Py_ssize_t rows, double* sums, Py_ssize_t columns)
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

ctypedef fused real:
    float
    double

cdef enum:  # bytes
    LINE = 64
    NEAR = 1 << 16  # what is in a near cache and need not be asked for
    BLOCK = 3 << 13  # what stays in the first cache, of 32 KiB or more, while a product passes over it
    GROUP = 1 << 19  # and in the second
    MADE = 1 << 14  # what an activation passes over at one time, in the first cache

cdef enum:
    FEW_BANDS = 3  # of rows, which do not pass over a block often enough
    FEW_ROWS = 8  # for which to look for zeros in a product takes too long

cdef enum:  # when products are shared out by rows
    SMALL_WEIGHT = 1 << 15  # see by_rows; as in the table
    ROWS_A_THREAD = 4
    ROWS_OF_WEIGHT_A_THREAD = 16  # of gradients and updates of weights


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


include "products.pxi"


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
                  y + first * ld(m, pad), ld(m, pad), rows, width(m, pad, y), activation,
                  <const real*>NULL, part, parts)


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
                  LINEAR, <const real*>NULL, part, parts)
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
    update_product(x, ld(k, pad), da, ld(m, pad), n, w, ld(m, pad), k, width(m, pad, w), update,
                   part, parts)
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
    update_product(x, ld(k, pad), da, ld(m, pad), n, w, ld(m, pad), k, width(m, pad, w), update,
                   part, parts)
    if b != NULL:
        if real is float:
            single.first, single.second = exp_avg_b - b, exp_avg_sq_b - b
        else:
            double_.first, double_.second = exp_avg_b - b, exp_avg_sq_b - b
        column_sums(da, ld(m, pad), n, m, b, update, part, parts)


cdef void activation_forward(const real* x, int activation, real* y, Py_ssize_t n, Py_ssize_t m,
                             Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t first = share(n, part, parts) * ld(m, pad), end = share(n, part + 1, parts) * ld(m, pad)
    activate(x + first, y + first, 0, 1, end - first, activation)


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


cdef void biased_sum(const real* x1, const real* x2, const real* b, int activation, real* y,
                     Py_ssize_t n, Py_ssize_t m,
                     Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t i, j, row = ld(m, pad), wide = width(m, pad, y), first = share(n, part, parts)
    cdef Py_ssize_t end = share(n, part + 1, parts)
    for i in range(first, end):
        if b != NULL:
            for j in range(wide):
                y[i * row + j] = (x1[i * row + j] + x2[i * row + j]) + b[j]
        else:
            for j in range(wide):
                y[i * row + j] = x1[i * row + j] + x2[i * row + j]
    if activation != LINEAR:
        activate(y + first * row, y + first * row, row, end - first, wide, activation)


cdef void bias_grad(const real* da, real* db, Py_ssize_t n, Py_ssize_t m,
                    Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    column_sums(da, ld(m, pad), n, m, db, NULL, part, parts)


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


cdef void mse_part(const real* y, const real* target, const real* sample_weight, int activation,
                   int64_t columns, real* row_loss, real* da, Py_ssize_t n, Py_ssize_t m,
                   Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    loss_rows(SQUARED_ERROR, y, target, sample_weight, activation, 0, 1 / (<double>n * <double>columns),
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
    # one panel of the columns after the other, normalised while it is near; of few, as many for each thread
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t vectors = (m + lanes - 1) // lanes, row = ld(m, pad), wide = width(m, pad, z)
    cdef Py_ssize_t panels = (vectors + TILE_COLUMNS - 1) // TILE_COLUMNS
    cdef Py_ssize_t panel, j, end
    if panels < 16 * parts:
        panels = min((panels + parts - 1) // parts * parts, vectors)
    cdef Py_ssize_t first = share(panels, part, parts), last = share(panels, part + 1, parts)
    cdef bint there = passes_over_zeros(x, ld(k, pad), n, k, k, wide)
    if there:  # of wider panels
        j = panel_begin(vectors, first, panels) * lanes
        end = min(panel_begin(vectors, last, panels) * lanes, wide)
        product_without_zeros(x, ld(k, pad), w + j, row, k, b + j if b != NULL else NULL, z + j, row, n,
                              end - j, LINEAR)
    for panel in range(first, last):
        j = panel_begin(vectors, panel, panels) * lanes
        end = panel_begin(vectors, panel + 1, panels) * lanes
        if not there:
            outer_product(x, ld(k, pad), 1, w + j, row, k, b + j if b != NULL else NULL, z + j, row, n,
                          min(end, wide) - j, LINEAR,
                          w + end if panel + 1 < last else <const real*>NULL, 0, 1)
        normalise(<const real*>z + j, row, n, min(end, m) - j, gamma + j, beta + j, activation, epsilon,
                  momentum, running_mean + j, running_var + j, y + j, mean + j, inv_std + j)


cdef void dense_batchnorm_inference(const real* x, const real* w, const real* b, const real* gamma,
                                    const real* beta, const real* running_mean, const real* running_var,
                                    int activation, double epsilon, real* y,
                                    Py_ssize_t n, Py_ssize_t k, Py_ssize_t m,
                                    Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    # panel by panel: each is scaled and shifted as soon as it is stored
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t vectors = (m + lanes - 1) // lanes, row = ld(m, pad), wide = width(m, pad, y)
    cdef Py_ssize_t panels = (vectors + TILE_COLUMNS - 1) // TILE_COLUMNS
    cdef Py_ssize_t high = tile_rows(<int>((vectors + panels - 1) // panels))
    cdef Py_ssize_t bands = (n + high - 1) // high
    cdef Py_ssize_t tile = share(panels * bands, part, parts), stop = share(panels * bands, part + 1, parts)
    cdef Py_ssize_t panel, first, last, i, j, end, rows
    cdef real scale[NORM_COLUMNS]
    if passes_over_zeros(x, ld(k, pad), n, k, k, wide):
        first, end = share(vectors, part, parts) * lanes, min(share(vectors, part + 1, parts) * lanes, wide)
        product_without_zeros(x, ld(k, pad), w + first, row, k, b + first if b != NULL else NULL, y + first,
                              row, n, end - first, LINEAR)
        end = min(end, m)
        while first < end:
            last = min(end - first, NORM_COLUMNS)
            running_scale(gamma + first, running_var + first, epsilon, scale, last)
            follow(y + first, y + first, row, n, last, running_mean + first, scale, beta + first, activation)
            first += last
        return
    while tile < stop:
        panel = tile // bands
        first = tile - panel * bands
        last = min(bands, first + stop - tile)
        tile += last - first
        j = panel_begin(vectors, panel, panels) * lanes
        end = panel_begin(vectors, panel + 1, panels) * lanes
        i = share(n, first, bands)
        rows = share(n, last, bands) - i
        running_scale(gamma + j, running_var + j, epsilon, scale, min(end, m) - j)
        outer_product(x + i * ld(k, pad), ld(k, pad), 1, w + j, row, k, b + j if b != NULL else NULL,
                      y + i * row + j, row, rows, min(end, wide) - j, LINEAR,
                      w + end if tile < stop else <const real*>NULL, 0, 1)
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
    return NULL if offset == -1 else <void*>(<uintptr_t>arena + <uintptr_t>(offset * itemsize))


include "instructions.pxi"


include "executor.pxi"


include "calls.pxi"
