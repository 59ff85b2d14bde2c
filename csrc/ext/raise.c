#include "ext/raise.h"

#include <errno.h>
#include <string.h>

/* The exception that is set, as one object with its traceback; a new reference. */
static PyObject *fetch_exception(void)
{
    PyObject *type, *value, *traceback;

    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback) {
        PyException_SetTraceback(value, traceback);
    }
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
}

static void restore_exception(PyObject *exception)
{
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(exception)), exception,
                  PyException_GetTraceback(exception));
}

bool pm_fetch_stop_iteration(PyObject **value)
{
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) {
        return false;
    }
    PyObject *exception = fetch_exception();
    *value = PyObject_GetAttrString(exception, "value");
    Py_DECREF(exception);
    return *value != NULL;
}

void pm_set_stop_iteration(PyObject *value)
{
    if (!PyTuple_Check(value) && !PyExceptionInstance_Check(value)) {
        PyErr_SetObject(PyExc_StopIteration, value);
        return;
    }
    /* Given to PyErr_SetObject as it is, a tuple would become arguments and an exception would
     * become the exception itself. */
    PyObject *exception = PyObject_CallFunctionObjArgs(PyExc_StopIteration, value, NULL);
    if (exception) {
        PyErr_SetObject(PyExc_StopIteration, exception);
        Py_DECREF(exception);
    }
}

void pm_raise_from_current(PyObject *type, const char *message)
{
    PyObject *cause = fetch_exception(), *exception;

    PyErr_SetString(type, message);
    exception = fetch_exception();
    PyException_SetCause(exception, Py_NewRef(cause));
    PyException_SetContext(exception, cause);
    restore_exception(exception);
}

bool pm_raise_thrown(PyObject *thrown)
{
    PyObject *type, *value = NULL, *traceback = NULL;

    if (!PyArg_UnpackTuple(thrown, "throw", 1, 3, &type, &value, &traceback)) {
        return false;
    }
    if (traceback == Py_None) {
        traceback = NULL;
    }
    if (traceback && !PyObject_HasAttrString(traceback, "tb_frame")) {
        PyErr_SetString(PyExc_TypeError, "throw() third argument must be a traceback object");
        return false;
    }
    if (PyExceptionClass_Check(type)) {
        PyErr_Restore(Py_NewRef(type), Py_XNewRef(value), Py_XNewRef(traceback));
        restore_exception(fetch_exception());
        return true;
    }
    if (PyExceptionInstance_Check(type)) {
        if (value && value != Py_None) {
            PyErr_SetString(PyExc_TypeError, "instance exception may not have a separate value");
            return false;
        }
        if (traceback) {
            PyException_SetTraceback(type, traceback);
        }
        restore_exception(Py_NewRef(type));
        return true;
    }
    PyObject *name = PyObject_GetAttrString((PyObject *)Py_TYPE(type), "__name__");
    if (name) {
        PyErr_Format(PyExc_TypeError,
                     "exceptions must be classes or instances deriving from BaseException, not %U",
                     name);
        Py_DECREF(name);
    }
    return false;
}

void pm_raise_os_error(int error, PyObject *message)
{
    PyObject *arguments = message ? Py_BuildValue("(iN)", error, message) : NULL;

    if (arguments) {
        PyErr_SetObject(PyExc_OSError, arguments);
        Py_DECREF(arguments);
    }
}

PyObject *pm_raise_unknown(const char *doing, long port)
{
    int error = errno;
    pm_raise_os_error(error,
                      PyUnicode_FromFormat("%s (%s port %ld)", strerror(error), doing, port));
    return NULL;
}
