#include "ext/service.h"

#include <string.h>

#include "ext/values.h"

/* What was being read when an exception came. */
typedef struct {
    const char *field;
    PyObject *value; /* owned; NULL: it could not be had */
} reading;

/* Reads a field, which is what any exception from here on is about. False with one set. */
static bool take(PyObject *owner, const char *field, reading *at)
{
    at->field = field;
    pm_set(&at->value, PyObject_GetAttrString(owner, field));
    return at->value != NULL;
}

/* `field: what went wrong`, with the value where that does not say it: as errors of ours do. */
static PyObject *describe(const reading *at, PyObject *text)
{
    PyObject *field = PyUnicode_FromString(at->field), *value, *described;
    bool ours = field && PyUnicode_Tailmatch(text, field, 0, PY_SSIZE_T_MAX, -1) == 1;

    Py_XDECREF(field);
    if (ours) {
        return Py_NewRef(text);
    }
    if (!at->value) {
        return PyUnicode_FromFormat("%s: %U", at->field, text);
    }
    value = pm_safe_repr(at->value);
    described = value ? PyUnicode_FromFormat("%s is %U: %U", at->field, value, text) : NULL;
    Py_XDECREF(value);
    return described;
}

/* Turns the Exception that is set into the message; -1 if it is none. */
static int complain(const char *owner, PyObject *name, const reading *at, PyObject **message)
{
    PyObject *type, *value, *traceback, *text, *where;

    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    text = PyObject_Str(value);
    if (!text && pm_clear_exception()) {
        text = PyObject_Repr(type);
    }
    where = name ? PyUnicode_FromFormat("Invalid %s for service %R", owner, name)
                 : PyUnicode_FromFormat("Invalid %s", owner);
    if (text && where) {
        pm_set(&text, describe(at, text));
        *message = text ? PyUnicode_FromFormat("%U: %U", where, text) : NULL;
    }
    Py_XDECREF(where);
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return *message ? 0 : -1;
}

static bool read_range(PyObject *range, pm_service *service)
{
    static const char expected[] = "a pair (first, last) of ports with first <= last, or None";
    long ends[2];
    bool is_text = PyUnicode_Check(range) || PyBytes_Check(range) || PyByteArray_Check(range);
    bool pair = !is_text && PySequence_Check(range) && PySequence_Size(range) == 2;

    for (Py_ssize_t i = 0; pair && i < 2; i++) {
        PyObject *item = PySequence_GetItem(range, i);
        pair = item && pm_port_from(item, "range", 1, &ends[i]);
        Py_XDECREF(item);
    }
    if (pair && ends[0] <= ends[1]) {
        service->has_range = true;
        service->first = (uint16_t)ends[0];
        service->last = (uint16_t)ends[1];
        return true;
    }
    if (PyErr_Occurred() && !pm_clear_exception()) {
        return false;
    }
    PyObject *text = pm_safe_repr(range);
    if (text) {
        PyErr_Format(PyExc_ValueError, "range must be %s in 1..65535, not %U", expected, text);
        Py_DECREF(text);
    }
    return false;
}

static bool read_port_config(PyObject *config, pm_service *service, reading *at)
{
    long port;

    if (!take(config, "default_port", at)) {
        return false;
    }
    bool good = pm_port_from(at->value, at->field, 0, &port);
    if (good || PyLong_Check(at->value)) {
        service->default_port = Py_NewRef(at->value);
    }
    if (!good) {
        return false;
    }
    service->port = (uint16_t)port;
    return take(config, "range", at) && (at->value == Py_None || read_range(at->value, service));
}

static bool read_manager_config(PyObject *config, pm_service *service, reading *at)
{
    int fall_back;

    if (!take(config, "enable_auto_allocation", at) ||
        (fall_back = PyObject_IsTrue(at->value)) < 0) {
        return false;
    }
    service->may_fall_back = fall_back;
    if (!take(config, "max_retries", at) ||
        !pm_count_from(at->value, at->field, &service->max_retries) ||
        !take(config, "retry_delay", at) ||
        !pm_seconds_from(at->value, at->field, &service->retry_delay)) {
        return false;
    }
    if (service->retry_delay < 0) {
        service->retry_delay = 0;
    }
    return true;
}

int pm_service_read(pm_manager *self, PyObject *name, PyObject *config, pm_service *service,
                    PyObject **message)
{
    reading at = {0};
    PyObject *manager_config = NULL;
    int result = 1;

    *message = NULL;
    if (!PyUnicode_Check(name)) {
        *message = PyUnicode_FromFormat("Invalid service name %R: it must be a str", name);
        return *message ? 0 : -1;
    }
    if (!read_port_config(config, service, &at)) {
        result = complain("configuration", name, &at, message);
    } else if (!take((PyObject *)self, "config", &at)) {
        result = complain("PortManager", NULL, &at, message);
    } else {
        manager_config = Py_NewRef(at.value);
        if (!read_manager_config(manager_config, service, &at)) {
            result = complain("PortManagerConfig", NULL, &at, message);
        }
    }
    Py_XDECREF(manager_config);
    Py_XDECREF(at.value);
    return result;
}

PyObject *pm_service_label(PyObject *exact_name)
{
    return PyUnicode_AsEncodedString(exact_name, "utf-8", "surrogatepass");
}

pm_name pm_service_name(PyObject *label)
{
    static const char kind[] = "service";
    const char *text = PyBytes_AsString(label);
    uint64_t key = pm_name_key(0, kind, sizeof kind);

    return (pm_name){pm_name_key(key, text, (size_t)PyBytes_Size(label)), text};
}
