/* A streaming anomaly scorer: a trained model and a kernel of fastae in a loop without the GIL. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include "fastae.h"

typedef struct {
    PyObject_HEAD
    PyObject *block; /* the plan must stay where it is */
    fastae_plan plan;
    char *memory;
    void *arena;
    float *reconstruction;
} Scorer;

static int check(int code)
{
    if (code != FASTAE_OK) PyErr_SetString(PyExc_ValueError, fastae_error(code));
    return code;
}

static int Scorer_init(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"plan", NULL};
    Scorer *self = (Scorer *)object;
    PyObject *block;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "S:Scorer", names, &block)) return -1;
    if (self->block) {
        PyErr_SetString(PyExc_TypeError, "a Scorer is made once");
        return -1;
    }
    if (check(fastae_plan_open(PyBytes_AS_STRING(block), PyBytes_GET_SIZE(block), &self->plan))) return -1;
    if (self->plan.itemsize != sizeof(float) || !(self->plan.routines >> FASTAE_RECONSTRUCT & 1)) {
        PyErr_SetString(PyExc_ValueError, "plan: expected one of a float32 model that reconstructs");
        return -1;
    }
    if (self->plan.output_columns != self->plan.input_columns) { /* a model with targets of its own */
        PyErr_SetString(PyExc_ValueError, "plan: expected a model whose output has the columns of its input");
        return -1;
    }
    /* the arena on a boundary of 64 bytes, and behind it one row */
    self->memory = PyMem_Malloc((size_t)(64 + self->plan.arena_size) + (size_t)self->plan.output_columns * sizeof(float));
    if (!self->memory) {
        PyErr_NoMemory();
        return -1;
    }
    self->arena = (void *)(((uintptr_t)self->memory + 63) & ~(uintptr_t)63);
    self->reconstruction = (float *)((char *)self->arena + self->plan.arena_size);
    Py_INCREF(block);
    self->block = block;
    return check(fastae_plan_load(&self->plan, self->arena)) ? -1 : 0;
}

static void Scorer_dealloc(PyObject *object)
{
    Scorer *self = (Scorer *)object;
    PyMem_Free(self->memory);
    Py_XDECREF(self->block);
    Py_TYPE(object)->tp_free(object);
}

/* The loop: nothing of Python in it. */
static int score_rows(Scorer *self, const float *rows, float *scores, Py_ssize_t count)
{
    const int64_t columns = self->plan.input_columns;
    for (Py_ssize_t i = 0; i < count; i++, rows += columns) {
        const int code = fastae_run(&self->plan, self->arena, FASTAE_RECONSTRUCT, 1, rows, NULL,
                                    self->reconstruction, NULL);
        if (code != FASTAE_OK) return code;
        fastae_row_mse_f32(self->reconstruction, rows, &scores[i], 1, columns);
    }
    return FASTAE_OK;
}

static PyObject *Scorer_score(PyObject *object, PyObject *args)
{
    Scorer *self = (Scorer *)object;
    PyObject *rows_object, *scores_object;
    Py_buffer rows, scores;
    int code;
    if (!PyArg_ParseTuple(args, "OO:score", &rows_object, &scores_object)) return NULL;
    if (PyObject_GetBuffer(rows_object, &rows, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) return NULL;
    if (PyObject_GetBuffer(scores_object, &scores, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&rows);
        return NULL;
    }
    if (!self->block || strcmp(rows.format, "f") || strcmp(scores.format, "f") || rows.ndim != 2 ||
        rows.shape[1] != self->plan.input_columns || scores.ndim != 1 || scores.shape[0] != rows.shape[0]) {
        PyErr_Format(PyExc_ValueError, "expected float32 arrays (n, %lld) and (n,)",
                     (long long)self->plan.input_columns);
        code = FASTAE_ERROR_SIZE;
    } else {
        Py_BEGIN_ALLOW_THREADS
        code = score_rows(self, (const float *)rows.buf, (float *)scores.buf, rows.shape[0]);
        Py_END_ALLOW_THREADS
        check(code);
    }
    PyBuffer_Release(&rows);
    PyBuffer_Release(&scores);
    if (code != FASTAE_OK) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"score", Scorer_score, METH_VARARGS, "Write the mean squared error of each row's reconstruction to scores."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject ScorerType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "streaming_c.Scorer",
    .tp_doc = "Scores rows one after the other; one Scorer for each thread.",
    .tp_basicsize = sizeof(Scorer),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = Scorer_init,
    .tp_dealloc = Scorer_dealloc,
    .tp_methods = methods,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "streaming_c", .m_size = -1};

PyMODINIT_FUNC PyInit_streaming_c(void)
{
    PyObject *made;
    if (fastae_import() < 0 || PyType_Ready(&ScorerType) < 0) return NULL;
    made = PyModule_Create(&module);
    if (made && PyModule_AddObjectRef(made, "Scorer", (PyObject *)&ScorerType) < 0) Py_CLEAR(made);
    return made;
}
