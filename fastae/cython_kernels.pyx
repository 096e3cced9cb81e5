# cython: language_level=3
"""The kernels and trained models for other people's compiled code: what it cimports, and the capsule for C.

Built once, for any processor. Every function ends in the instruction form of its kernel, in the variant that
fastae.kernels.compiled has chosen. The functions themselves are written from the table, see
fastae.kernels.c_interface.
"""

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t, uintptr_t
from libc.stddef cimport size_t

include "cython_kernels.pxi"

cdef extern from "fastae.h" nogil:
    ctypedef struct fastae_kernels:
        pass
    ctypedef struct fastae_plan:
        int64_t arena_size
    ctypedef struct fastae_api:
        int64_t abi_version, size
        const char* version
        const char* instruction_set
        const fastae_kernels* kernels
        const fastae_kernels* checked
        const char* (*error)(int) noexcept
        int (*plan_open)(const void*, int64_t, fastae_plan*) noexcept
        int (*plan_load)(const fastae_plan*, void*) noexcept
        int (*plan_store)(const fastae_plan*, const void*, void*) noexcept
        int (*run)(const fastae_plan*, void*, int, int64_t, const void*, const void*, void*, double*) noexcept
    const char* FASTAE_CAPSULE
    int FASTAE_ABI_VERSION

cdef extern from "c_interface.h" nogil:
    ctypedef struct Entry:
        const char* name
        size_t offset
    const Entry* ENTRIES
    int ENTRY_COUNT
    const fastae_kernels RELEASE, CHECKED
    const char* FASTAE_VERSION
    const void* INSTRUCTIONS_f32
    const void* INSTRUCTIONS_f64
    int64_t sum_of(const int64_t* words, int64_t count)
    const char* error_text(int code) noexcept
    int c_plan_open "plan_open" (const void* bytes, int64_t size, fastae_plan* plan) noexcept
    int c_plan_load "plan_load" (const fastae_plan* plan, void* arena) noexcept
    int c_plan_store "plan_store" (const fastae_plan* plan, const void* arena, void* bytes) noexcept
    int c_run "run_plan" (const fastae_plan* plan, void* arena, int routine, int64_t rows, const void* input,
                          const void* target, void* output, double* losses) noexcept


cdef const char* error(int code) noexcept nogil:
    return error_text(code)


cdef int plan_open(const void* bytes, int64_t size, Plan* plan) noexcept nogil:
    return c_plan_open(bytes, size, <fastae_plan*>plan)


cdef int plan_load(const Plan* plan, void* arena) noexcept nogil:
    return c_plan_load(<const fastae_plan*>plan, arena)


cdef int plan_store(const Plan* plan, const void* arena, void* bytes) noexcept nogil:
    return c_plan_store(<const fastae_plan*>plan, arena, bytes)


cdef int run(const Plan* plan, void* arena, int routine, int64_t rows, const void* input, const void* target,
             void* output, double* losses) noexcept nogil:
    return c_run(<const fastae_plan*>plan, arena, routine, rows, input, target, output, losses)


from fastae.kernels import compiled  # noqa: E402

cdef fastae_api API
cdef bytes instruction_set = compiled.instruction_set.encode()


def _begin():
    if sizeof(Plan) != sizeof(fastae_plan):
        raise RuntimeError(
            "fastae's C header and its Cython declarations disagree; build and install fastae again")
    global INSTRUCTIONS_f32, INSTRUCTIONS_f64
    single, double = compiled.INSTRUCTIONS
    INSTRUCTIONS_f32 = <const void*><uintptr_t>single
    INSTRUCTIONS_f64 = <const void*><uintptr_t>double
    API.abi_version = FASTAE_ABI_VERSION
    API.size = sizeof(fastae_api)
    API.version = FASTAE_VERSION
    API.instruction_set = instruction_set
    API.kernels = &RELEASE
    API.checked = &CHECKED
    API.error = error_text
    API.plan_open = c_plan_open
    API.plan_load = c_plan_load
    API.plan_store = c_plan_store
    API.run = c_run
    return PyCapsule_New(&API, FASTAE_CAPSULE, NULL)


_c_api = _begin()


def _addresses():
    cdef int i
    cdef const char* release = <const char*>&RELEASE
    cdef const char* checked = <const char*>&CHECKED
    found = {
        "error": (<uintptr_t>API.error,) * 2,
        "plan_open": (<uintptr_t>API.plan_open,) * 2,
        "plan_load": (<uintptr_t>API.plan_load,) * 2,
        "plan_store": (<uintptr_t>API.plan_store,) * 2,
        "run": (<uintptr_t>API.run,) * 2,
    }
    for i in range(ENTRY_COUNT):
        found[ENTRIES[i].name.decode()] = (
            (<const uintptr_t*>(release + ENTRIES[i].offset))[0],
            (<const uintptr_t*>(checked + ENTRIES[i].offset))[0],
        )
    return found


#: Address of every function by its name: the released one and the checked one.
ADDRESSES = _addresses()

#: Address of the struct that the capsule holds.
API_ADDRESS = <uintptr_t>&API


def plan_sum(bytes plan):
    """The checksum of a plan, whatever stands in its place."""
    if len(plan) % 8:
        raise ValueError(f"plan: expected whole words of 8 bytes, given {len(plan)} bytes")
    return sum_of(<const int64_t*><const char*>plan, len(plan) // 8)
