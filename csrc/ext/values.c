#include "ext/values.h"

#include <limits.h>
#include <math.h>
#include <string.h>

bool pm_clear_exception(void)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return false;
    }
    PyErr_Clear();
    return true;
}

PyObject *pm_safe_repr(PyObject *value)
{
    PyObject *text = PyObject_Repr(value);

    /* Also where str() refuses an integer of more than 4,300 digits. */
    if (!text && pm_clear_exception()) {
        PyObject *name = PyObject_GetAttrString((PyObject *)Py_TYPE(value), "__name__");
        text = name ? PyUnicode_FromFormat("<%S object>", name) : NULL;
        Py_XDECREF(name);
    }
    return text;
}

static void refuse(PyObject *exception, const char *what, const char *expected, PyObject *value)
{
    PyObject *text = pm_safe_repr(value);
    if (text) {
        PyErr_Format(exception, "%s must be %s, not %U", what, expected, text);
        Py_DECREF(text);
    }
}

/* As a C long, cut to its ends; *cut says whether it was. */
static bool read_integer(PyObject *value, const char *what, const char *expected, long *number,
                         bool *cut)
{
    PyObject *integer = PyNumber_Index(value);
    int overflow;

    if (!integer) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear();
            refuse(PyExc_TypeError, what, expected, value);
        }
        return false;
    }
    *number = PyLong_AsLongAndOverflow(integer, &overflow);
    *cut = overflow != 0;
    if (overflow) {
        *number = overflow > 0 ? LONG_MAX : LONG_MIN;
    }
    Py_DECREF(integer);
    return true;
}

bool pm_count_from(PyObject *value, const char *what, long *number)
{
    bool cut;
    return read_integer(value, what, "an integer", number, &cut);
}

bool pm_port_from(PyObject *value, const char *what, long lowest, long *port)
{
    static const char *const expected[] = {"an integer in 0..65535", "an integer in 1..65535"};
    bool cut;

    if (!read_integer(value, what, expected[lowest != 0], port, &cut)) {
        return false;
    }
    if (cut || *port < lowest || *port > UINT16_MAX) {
        refuse(PyExc_ValueError, what, expected[lowest != 0], value);
        return false;
    }
    return true;
}

bool pm_seconds_from(PyObject *value, const char *what, double *seconds)
{
    static const char expected[] = "a number of seconds";

    *seconds = PyFloat_AsDouble(value);
    if (*seconds == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError) && PyLong_Check(value)) {
            PyErr_Clear(); /* an integer beyond all floats */
            PyObject *zero = PyLong_FromLong(0);
            int negative = zero ? PyObject_RichCompareBool(value, zero, Py_LT) : -1;
            Py_XDECREF(zero);
            *seconds = negative == 1 ? -INFINITY : INFINITY;
            return negative >= 0;
        }
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear();
            refuse(PyExc_TypeError, what, expected, value);
        }
        return false;
    }
    if (isnan(*seconds)) {
        refuse(PyExc_ValueError, what, expected, value);
        return false;
    }
    return true;
}

const char *pm_host_text(PyObject *host)
{
    Py_ssize_t length;
    const char *text;

    if (!PyUnicode_Check(host)) {
        refuse(PyExc_TypeError, "host", "a str", host);
        return NULL;
    }
    text = PyUnicode_AsUTF8AndSize(host, &length);
    if (text && strlen(text) != (size_t)length) {
        refuse(PyExc_ValueError, "host", "text without null characters", host);
        return NULL;
    }
    return text;
}

int pm_mapping_get(PyObject *mapping, PyObject *key, PyObject **value)
{
    if (PyDict_CheckExact(mapping)) {
#ifdef Py_GIL_DISABLED
        return PyDict_GetItemRef(mapping, key, value);
#else
        *value = Py_XNewRef(PyDict_GetItemWithError(mapping, key));
        return *value ? 1 : PyErr_Occurred() ? -1 : 0;
#endif
    }
    *value = PyObject_GetItem(mapping, key);
    if (*value) {
        return 1;
    }
    if (PyErr_ExceptionMatches(PyExc_KeyError)) {
        PyErr_Clear();
        return 0;
    }
    return -1;
}

int pm_mapping_remove(PyObject *mapping, PyObject *key)
{
    if (PyObject_DelItem(mapping, key) < 0) {
        if (!PyErr_ExceptionMatches(PyExc_KeyError)) {
            return -1;
        }
        PyErr_Clear();
    }
    return 0;
}

PyObject *pm_mapping_items(PyObject *mapping)
{
    PyObject *items = PyMapping_Items(mapping);

    for (Py_ssize_t i = 0; items && i < PyList_Size(items); i++) {
        PyObject *item = PyList_GetItem(items, i);
        if (!PyTuple_Check(item) || PyTuple_Size(item) != 2) {
            refuse(PyExc_TypeError, "an item of the mapping", "a pair (key, value)", item);
            Py_CLEAR(items);
        }
    }
    return items;
}

int pm_mapping_clear(PyObject *mapping)
{
    PyObject *result = PyObject_CallMethod(mapping, "clear", NULL);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

int pm_allocated_port(pm_state *state, PyObject *allocation, long *port)
{
    PyObject *status = PyObject_GetAttr(allocation, state->names.status), *number = NULL;
    int result = -1;

    if (!status) {
        goto done;
    }
    if (status != state->statuses.allocated) {
        int equal = PyObject_RichCompareBool(status, state->statuses.allocated, Py_EQ);
        if (equal <= 0) {
            result = equal;
            goto done;
        }
    }
    number = PyObject_GetAttr(allocation, state->names.allocated_port);
    if (!number) {
        goto done;
    }
    *port = PyLong_Check(number) ? PyLong_AsLong(number) : -1;
    if (*port == -1 && PyErr_Occurred()) {
        PyErr_Clear(); /* too large for any port: as the caller wrote it, not one of ours */
    }
    result = 1;
done:
    Py_XDECREF(status);
    Py_XDECREF(number);
    return result < 0 && pm_clear_exception() ? 0 : result;
}
