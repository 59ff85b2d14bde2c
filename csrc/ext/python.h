/* Python.h as every file of the binding includes it, and the few names that the limited API of
 * the oldest supported CPython lacks. */
#ifndef PM_PYTHON_H
#define PM_PYTHON_H

#define PY_SSIZE_T_CLEAN
/* CPython's inline functions are not written for our warnings. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wstrict-prototypes"
#include <Python.h>
#include <structmember.h>
#pragma GCC diagnostic pop

/* With the limited API, references are counted by the interpreter that runs. The macros of the
 * headers that compiled this would count those of immortal objects too, which interpreters with
 * GILs of their own share: a race could free one. */
#ifdef Py_LIMITED_API
#undef Py_INCREF
#undef Py_DECREF
#undef Py_XINCREF
#undef Py_XDECREF
#undef Py_NewRef
#undef Py_XNewRef
#define Py_INCREF(object) Py_IncRef((PyObject *)(object))
#define Py_DECREF(object) Py_DecRef((PyObject *)(object))
#define Py_XINCREF(object) Py_IncRef((PyObject *)(object))
#define Py_XDECREF(object) Py_DecRef((PyObject *)(object))
#endif

/* Known to CPython 3.12 and 3.13; module.c picks the slots by the version that runs. */
#define PM_MOD_MULTIPLE_INTERPRETERS 3
#define PM_MOD_PER_INTERPRETER_GIL_SUPPORTED ((void *)2)
#define PM_MOD_GIL 4
#define PM_MOD_GIL_NOT_USED ((void *)1)

/* *slot = value, both references ours; the old one is dropped last. */
static inline void pm_set(PyObject **slot, PyObject *value)
{
    PyObject *old = *slot;
    *slot = value;
    Py_XDECREF(old);
}

#endif
