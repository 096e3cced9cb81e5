# cython: language_level=3, boundscheck=False, wraparound=False
"""A streaming anomaly scorer: a trained model and a kernel of fastae in a loop without the GIL."""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uintptr_t

from fastae.cython_kernels cimport (
    OK, RECONSTRUCT, Plan, checked_row_mse_f32, error, plan_load, plan_open, row_mse_f32, run,
)


cdef class Scorer:
    """Scores rows one after the other; one Scorer for each thread.

    Parameters
    ----------
    plan : bytes
        Of a float32 model with the routine "reconstruct", from fastae.plan.
    """

    cdef bytes block  # the plan must stay where it is
    cdef Plan plan
    cdef void* memory
    cdef void* arena
    cdef float* reconstruction

    def __cinit__(self, bytes plan):
        self.block = plan
        check(plan_open(<const char*>plan, len(plan), &self.plan))
        if self.plan.itemsize != sizeof(float) or not self.plan.routines >> RECONSTRUCT & 1:
            raise ValueError("plan: expected one of a float32 model that reconstructs")
        if self.plan.output_columns != self.plan.input_columns:  # a model with targets of its own
            raise ValueError("plan: expected a model whose output has the columns of its input")
        # the arena on a boundary of 64 bytes, and behind it one row
        self.memory = PyMem_Malloc(64 + self.plan.arena_size + self.plan.output_columns * sizeof(float))
        if self.memory == NULL:
            raise MemoryError
        self.arena = <void*>((<uintptr_t>self.memory + 63) & ~<uintptr_t>63)
        self.reconstruction = <float*>(<char*>self.arena + self.plan.arena_size)
        check(plan_load(&self.plan, self.arena))

    def __dealloc__(self):
        PyMem_Free(self.memory)

    def score(self, const float[:, ::1] rows, float[::1] scores):
        """Write the mean squared error of the reconstruction of each row to `scores`."""
        cdef Py_ssize_t i
        cdef int code = OK
        if rows.shape[1] != self.plan.input_columns or scores.shape[0] != rows.shape[0]:
            raise ValueError(f"expected (n, {self.plan.input_columns}) and (n,)")
        with nogil:
            for i in range(rows.shape[0]):
                code = run(&self.plan, self.arena, RECONSTRUCT, 1, &rows[i, 0], NULL, self.reconstruction, NULL)
                if code != OK:
                    break
                row_mse_f32(self.reconstruction, &rows[i, 0], &scores[i], 1, rows.shape[1])
        check(code)


cdef int check(int code) except -1:
    if code != OK:
        raise ValueError((<bytes>error(code)).decode())
    return 0


def code_of_a_null_pointer():
    """What a checked kernel says of a NULL."""
    cdef float target = 0, found = 0
    return checked_row_mse_f32(NULL, &target, &found, 1, 1)
