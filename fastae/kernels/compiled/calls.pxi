# What Python calls: a kernel as an object, which takes its arrays as they are.

from fastae.kernels.table import KERNELS, Array  # noqa: E402


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
        if self.count > 24 or self.count + self.n_dims > 40 or any(len(a.dims) > 4 for a in row.arrays):
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
        cdef int64_t operands[40]
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
