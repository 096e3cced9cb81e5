# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Cython kernels: typed loops over raw pointers, without the GIL.

Built once for each instruction set from this one text. The order of things: kernels, in the order
of the table, each a loop over tiles or rows; the executor that runs a Program; what Python sees.

Every matrix has the row stride ``ld(columns, pad)``: pad is 1 for the plain arrays of a call, and
64 bytes inside a Program, where a kernel may compute the padding too and so never meets half a
vector. `part` of `parts` is the share of the outputs this thread computes.
"""

from libc.math cimport isfinite
from libc.stdint cimport int64_t, uintptr_t
from libc.string cimport memcpy, memset
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)

import threading

cdef extern from "kernels.h" nogil:
    const int VECTOR_BYTES, TILE_COLUMNS, DOT_ROWS
    const int TILE_STORE, TILE_SGD
    int LINEAR, RELU, SIGMOID, TANH
    int tile_rows(int vectors)
    int cpu_supported()

    void outer_f32(const float* a, Py_ssize_t a_row, Py_ssize_t a_step, const float* b, Py_ssize_t b_step,
                   Py_ssize_t steps, const float* bias, float* c, Py_ssize_t c_row,
                   Py_ssize_t rows, Py_ssize_t columns, int mode, float rate)
    void outer_f64(const double* a, Py_ssize_t a_row, Py_ssize_t a_step, const double* b, Py_ssize_t b_step,
                   Py_ssize_t steps, const double* bias, double* c, Py_ssize_t c_row,
                   Py_ssize_t rows, Py_ssize_t columns, int mode, double rate)
    void dot_f32(const float* a, Py_ssize_t a_row, const float* b, Py_ssize_t b_row, Py_ssize_t m,
                 float* c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns)
    void dot_f64(const double* a, Py_ssize_t a_row, const double* b, Py_ssize_t b_row, Py_ssize_t m,
                 double* c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns)
    void map_activate_f32(const float* x, float* y, Py_ssize_t size, int activation)
    void map_activate_f64(const double* x, double* y, Py_ssize_t size, int activation)
    void map_slope_f32(const float* dy, const float* y, float* dx, Py_ssize_t size, int activation)
    void map_slope_f64(const double* dy, const double* y, double* dx, Py_ssize_t size, int activation)
    float squared_error_f32(const float* y, const float* target, float* da, Py_ssize_t size,
                            float scale, int activation)
    double squared_error_f64(const double* y, const double* target, double* da, Py_ssize_t size,
                             double scale, int activation)

cdef extern from "team.h" nogil:
    ctypedef struct Barrier:
        pass
    void barrier_wait(Barrier* barrier, Py_ssize_t parts)

ctypedef fused real:
    float
    double


# -- sizes and shares ----------------------------------------------------------------------------

cdef inline Py_ssize_t ld(Py_ssize_t columns, Py_ssize_t pad) noexcept nogil:
    """Row stride of a matrix with so many columns."""
    return (columns + pad - 1) // pad * pad


cdef inline Py_ssize_t share(Py_ssize_t count, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """Where this part's share of `count` things begins (and part - 1's ends)."""
    return count * part // parts


cdef inline Py_ssize_t width(Py_ssize_t columns, Py_ssize_t pad, real* like) noexcept nogil:
    """Columns to compute: the padding up to the last whole vector too, where there is padding."""
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real)
    return ld(columns, lanes) if pad > 1 else columns


# -- products ------------------------------------------------------------------------------------

cdef void outer_product(const real* a, Py_ssize_t a_row, Py_ssize_t a_step,
                        const real* b, Py_ssize_t b_step, Py_ssize_t steps, const real* bias,
                        real* c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns,
                        int mode, real rate, int activation,
                        Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """c = f(a b + bias), or c -= rate (a b): even tiles, panel by panel, so that b stays near."""
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t vectors = (columns + lanes - 1) // lanes
    cdef Py_ssize_t panels = (vectors + TILE_COLUMNS - 1) // TILE_COLUMNS
    cdef Py_ssize_t high = tile_rows(<int>((vectors + panels - 1) // panels))
    cdef Py_ssize_t bands = (rows + high - 1) // high
    cdef Py_ssize_t tile, i, j, i_end, j_end, row
    for tile in range(share(panels * bands, part, parts), share(panels * bands, part + 1, parts)):
        j = share(vectors, tile // bands, panels) * lanes
        j_end = min(share(vectors, tile // bands + 1, panels) * lanes, columns)
        i = share(rows, tile % bands, bands)
        i_end = share(rows, tile % bands + 1, bands)
        if real is float:
            outer_f32(a + i * a_row, a_row, a_step, b + j, b_step, steps,
                      bias + j if bias != NULL else NULL,
                      c + i * c_row + j, c_row, i_end - i, j_end - j, mode, rate)
        else:
            outer_f64(a + i * a_row, a_row, a_step, b + j, b_step, steps,
                      bias + j if bias != NULL else NULL,
                      c + i * c_row + j, c_row, i_end - i, j_end - j, mode, rate)
        if activation != LINEAR:
            for row in range(i, i_end):
                activate(c + row * c_row + j, c + row * c_row + j, j_end - j, activation)


cdef void dot_product(const real* a, Py_ssize_t a_row, const real* b, Py_ssize_t b_row, Py_ssize_t m,
                      const real* saved, real* c, Py_ssize_t c_row, Py_ssize_t rows, Py_ssize_t columns,
                      int activation, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """c = (a b^T) f'(saved), the sums along the rows of both."""
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


cdef void column_sums(const real* a, Py_ssize_t a_row, Py_ssize_t rows, Py_ssize_t columns,
                      real* sums, bint descend, real rate, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """sums = sum of the rows of a, or sums -= rate times it; 64 columns at a time stay in registers."""
    cdef real block[64]
    cdef Py_ssize_t j, i, q, size
    for j in range(share((columns + 63) // 64, part, parts) * 64,
                   min(share((columns + 63) // 64, part + 1, parts) * 64, columns), 64):
        size = min(64, columns - j)
        memset(block, 0, sizeof(block))
        if size == 64:
            for i in range(rows):
                for q in range(64):
                    block[q] += a[i * a_row + j + q]
        else:
            for i in range(rows):
                for q in range(size):
                    block[q] += a[i * a_row + j + q]
        for q in range(size):
            if descend:
                sums[j + q] -= rate * block[q]
            else:
                sums[j + q] = block[q]


# -- kernels, as the table lists them: arrays and constants, then the dims, pad, part, parts ------

cdef void dense_forward(const real* x, const real* w, const real* b, int activation, real* y,
                        Py_ssize_t n, Py_ssize_t k, Py_ssize_t m,
                        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    outer_product(x, ld(k, pad), 1, w, ld(m, pad), k, b, y, ld(m, pad), n, width(m, pad, y),
                  TILE_STORE, <real>0, activation, part, parts)


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
    outer_product(x, 1, ld(k, pad), da, ld(m, pad), n, <const real*>NULL, dw, ld(m, pad),
                  k, width(m, pad, dw), TILE_STORE, <real>0, LINEAR, part, parts)
    if db != NULL:
        column_sums(da, ld(m, pad), n, m, db, False, <real>0, part, parts)


cdef void dense_sgd(const real* x, const real* da, double learning_rate, real* dw, real* w, real* b,
                    Py_ssize_t n, Py_ssize_t k, Py_ssize_t m,
                    Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    # the update is applied to the tile while it is in registers: dw is not needed
    outer_product(x, 1, ld(k, pad), da, ld(m, pad), n, <const real*>NULL, w, ld(m, pad),
                  k, width(m, pad, w), TILE_SGD, <real>learning_rate, LINEAR, part, parts)
    if b != NULL:
        column_sums(da, ld(m, pad), n, m, b, True, <real>learning_rate, part, parts)


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


cdef inline void squared_error(const real* y, const real* target, int activation, real* row_loss, real* da,
                               Py_ssize_t n, Py_ssize_t m, Py_ssize_t pad, real scale,
                               Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t i, row = ld(m, pad)
    for i in range(share(n, part, parts), share(n, part + 1, parts)):
        if real is float:
            row_loss[i] = squared_error_f32(y + i * row, target + i * row, da + i * row, m, scale, activation)
        else:
            row_loss[i] = squared_error_f64(y + i * row, target + i * row, da + i * row, m, scale, activation)


cdef void sse(const real* y, const real* target, int activation, real* row_loss, real* da,
              Py_ssize_t n, Py_ssize_t m,
              Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    squared_error(y, target, activation, row_loss, da, n, m, pad, <real>1, part, parts)


cdef void mse(const real* y, const real* target, int activation, real* row_loss, real* da,
              Py_ssize_t n, Py_ssize_t m,
              Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    squared_error(y, target, activation, row_loss, da, n, m, pad, <real>(1.0 / (<double>n * <double>m)),
                  part, parts)


cdef void total(const real* row_loss, real* loss, Py_ssize_t n,
                Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t i
    cdef double s = 0
    if part == 0:
        for i in range(n):
            s += row_loss[i]
        loss[0] = <real>s


cdef void sgd(const real* g, double learning_rate, real* w, Py_ssize_t p,
              Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t i
    cdef real rate = <real>learning_rate
    for i in range(share(p, part, parts), share(p, part + 1, parts)):
        w[i] -= rate * g[i]


cdef void gather_rows(const real* data, const int64_t* order, real* x,
                      Py_ssize_t r, Py_ssize_t k, Py_ssize_t n,
                      Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    # data is the caller's: its rows are not padded
    cdef Py_ssize_t i
    for i in range(share(n, part, parts), share(n, part + 1, parts)):
        memcpy(x + i * ld(k, pad), data + order[i] * k, k * sizeof(real))


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
    Py_ssize_t instructions, width, check, batch, rows
    const char* data
    const char* target
    const int64_t* order
    Py_ssize_t input_offset, input_columns, target_offset, target_columns
    Py_ssize_t output_offset, output_columns, loss_offset, pad
    double* losses
    char* out
    int64_t* control
    bint trains
    Barrier* barrier


cdef void fetch(Job* job, const char* source, Py_ssize_t columns, Py_ssize_t offset, Py_ssize_t start,
                Py_ssize_t count, real* arena, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """Rows `start` to `start + count` of the order, into the arena."""
    cdef Py_ssize_t i, row, step = ld(columns, job.pad)
    for i in range(share(count, part, parts), share(count, part + 1, parts)):
        row = start + i if job.order == NULL else job.order[start + i]
        memcpy(arena + offset + i * step, <const real*>source + row * columns, columns * sizeof(real))


cdef void run_batches(Job* job, real* arena, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """One thread's part of a run: every batch, every instruction, no Python and no allocation."""
    cdef Py_ssize_t batch = 0, start = 0, count, i, step
    cdef const int64_t* code
    cdef const int64_t* row
    cdef int64_t* header = <int64_t*>arena
    while start < job.rows:
        count = min(job.batch, job.rows - start)
        code = job.code if count == job.batch else job.tail_code
        fetch(job, job.data, job.input_columns, job.input_offset, start, count, arena, part, parts)
        if job.target != NULL:
            fetch(job, job.target, job.target_columns, job.target_offset, start, count, arena, part, parts)
        barrier_wait(job.barrier, parts)
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
                instructions_of(arena)[row[0]](arena, row + 2, job.pad, part, parts)
                if row[1]:
                    barrier_wait(job.barrier, parts)
        if job.out != NULL:
            step = ld(job.output_columns, job.pad)
            for i in range(share(count, part, parts), share(count, part + 1, parts)):
                memcpy(<real*>job.out + (start + i) * job.output_columns,
                       arena + job.output_offset + i * step, job.output_columns * sizeof(real))
        if part == 0:
            if job.trains:
                header[0] += 1
            job.control[1] = batch + 1
            job.control[3] = job.control[0]  # seen by all threads at the same batch
        barrier_wait(job.barrier, parts)
        if job.control[3]:
            return
        batch += 1
        start += count


cdef int READABLE = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT


cdef class Buffers:
    """Buffers held while compiled code uses them."""

    cdef Py_buffer views[12]  # more than a run has arrays
    cdef int count

    cdef void* hold(self, object array, str name, str formats, Py_ssize_t size, bint writable) except? NULL:
        """Address of a C-contiguous array with one of the format letters and at least `size` elements."""
        cdef Py_buffer* view = &self.views[self.count]
        if array is None:
            return NULL
        PyObject_GetBuffer(array, view,
                           READABLE | (PyBUF_WRITABLE if writable else 0))
        self.count += 1
        if view.format == NULL or view.format.decode() not in formats:
            raise TypeError(f"{name}: expected a buffer of format {formats!r}, got {view.format!r}")
        if view.len < size * view.itemsize:
            raise ValueError(f"{name}: expected at least {size} elements, got {view.len // view.itemsize}")
        return view.buf

    cdef void release(self):
        while self.count > 0:
            self.count -= 1
            PyBuffer_Release(&self.views[self.count])

    def __dealloc__(self):
        self.release()


cdef class Executor:
    """Runs the routines of a Program, a whole epoch in one call, without the GIL.

    Parameters
    ----------
    program : fastae.program.Program
        Lowered with padded rows.
    arena : ndarray of shape (program.arena_size,)
        The memory it runs in; kept alive by the executor.
    n_threads : int
        Threads that share each instruction. The result has the same bits for any number.
    """

    cdef readonly object program, arena
    cdef readonly Py_ssize_t n_threads
    cdef bint single
    cdef dict codes
    cdef Py_ssize_t pad

    def __init__(self, program, arena, n_threads=1):
        self.program = program
        self.arena = arena
        self.n_threads = n_threads
        self.single = arena.dtype == "float32"
        self.pad = 64 // arena.itemsize
        self.codes = {}

    def run(self, routine, data, target, order, *, losses=None, out=None, control=None):
        """Run `routine` over the rows of `data` (see the executor protocol in fastae.executor)."""
        cdef Job job
        cdef Barrier barrier
        cdef int64_t own_control[8]
        cdef Buffers held = Buffers()
        cdef Py_ssize_t size = self.program.arena_size, part
        cdef str kind = "f" if self.single else "d"
        cdef void* base
        memset(&job, 0, sizeof(job))
        memset(&barrier, 0, sizeof(barrier))
        memset(own_control, 0, sizeof(own_control))
        job.batch = self.program.batch_size
        job.rows = len(data) if order is None else len(order)
        code = self._code(routine, job.batch)
        tail = self._code(routine, job.rows % job.batch) if job.rows % job.batch else None
        try:
            job.arena = base = held.hold(self.arena, "arena", kind, size, True)
            job.code = <const int64_t*>held.hold(code, "code", "lq", 0, False)
            job.tail_code = <const int64_t*>held.hold(tail, "code", "lq", 0, False)
            job.instructions, job.width = code.shape
            job.check = routine.check
            job.input_offset, job.input_columns = routine.input.offset, data.shape[1]
            job.data = <const char*>held.hold(data, "data", kind, len(data) * job.input_columns, False)
            job.order = <const int64_t*>held.hold(order, "order", "lq", job.rows, False)
            if target is not None:
                job.target_offset, job.target_columns = routine.target.offset, target.shape[1]
                job.target = <const char*>held.hold(target, "target", kind,
                                                    len(target) * job.target_columns, False)
            if out is not None:
                job.output_offset, job.output_columns = routine.output.offset, out.shape[1]
                job.out = <char*>held.hold(out, "out", kind, job.rows * job.output_columns, True)
            if routine.loss is not None:
                job.loss_offset = routine.loss.offset
            job.losses = <double*>held.hold(losses, "losses", "d", -(-job.rows // job.batch), True)
            job.control = <int64_t*>held.hold(control, "control", "lq", 8, True)
            if job.control == NULL:
                job.control = own_control
            job.control[1], job.control[2] = 0, -1
            job.trains = routine.trains
            job.pad = self.pad
            job.barrier = &barrier
            team = [threading.Thread(target=self._enter, args=(<uintptr_t>&job, part))
                    for part in range(1, self.n_threads)]
            for thread in team:
                thread.start()
            self._enter(<uintptr_t>&job, 0)
            for thread in team:
                thread.join()
        finally:
            held.release()

    def _enter(self, uintptr_t job, Py_ssize_t part):
        """Take part in a run (a thread of the team)."""
        cdef Job* shared = <Job*>job
        cdef Py_ssize_t parts = self.n_threads
        with nogil:
            if self.single:
                run_batches(shared, <float*>shared.arena, part, parts)
            else:
                run_batches(shared, <double*>shared.arena, part, parts)

    cdef object _code(self, routine, Py_ssize_t rows):
        key = (id(routine), rows)
        found = self.codes.get(key)
        if found is None:
            found = self.codes[key] = (routine.encode(rows),
                                       routine)  # the routine too: its id must stay its own
        return found[0]


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
    cdef int kinds[16]        # 0 real array, 1 index array, 2 int, 3 real constant
    cdef int written[16]
    cdef int optional[16]
    cdef int ranks[16]
    cdef int dims[16][4]      # position among the dims, or -1 - size for a fixed one

    def __init__(self, row, Py_ssize_t index):
        self.row = row
        self.index = index
        self.__name__ = row.name
        self.__doc__ = f"{row.summary}\n\n{row.formula}"
        self.backend = "cython"
        self.count = len(row.arguments)
        names = row.dims
        self.n_dims = len(names)
        for i, a in enumerate(row.arguments):
            if isinstance(a, Array):
                self.kinds[i] = 1 if a.kind == "index" else 0
                self.written[i] = a.written
                self.optional[i] = a.optional
                self.ranks[i] = len(a.dims)
                for j, d in enumerate(a.dims):
                    self.dims[i][j] = -1 - int(d) if d.isdigit() else names.index(d)
            else:
                self.kinds[i] = 3 if a.kind == "real" else 2

    def __repr__(self):
        return f"<cython kernel {self.__name__}>"

    def __call__(self, *args):
        cdef Py_buffer views[16]
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

    cdef object _refuse(self, Py_ssize_t i, str expected, given):
        given = given.decode() if isinstance(given, bytes) else given
        raise ValueError(f"{self.__name__}: {self.row.arguments[i].name}: expected {expected}, got {given}")


if TABLE_HASH != table_hash():
    raise ImportError(
        "fastae's compiled kernels were built from another kernel table; build and install fastae again")

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


def supported():
    """Whether this processor has the instruction set of this module."""
    return bool(cpu_supported())
