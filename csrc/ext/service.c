#include "ext/service.h"

#include <string.h>

#include "ext/values.h"

/* Turns the Exception that is set into the message; -1 if it is none. `field` is the one that was
 * read; errors of ours begin with it already. */
static int complain(const char *owner, PyObject *name, const char *field, PyObject **message)
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
        PyObject *prefix = PyUnicode_FromString(field);
        int ours = prefix ? PyUnicode_Tailmatch(text, prefix, 0, PY_SSIZE_T_MAX, -1) == 1 : 0;
        *message = ours ? PyUnicode_FromFormat("%U: %U", where, text)
                        : PyUnicode_FromFormat("%U: %s: %U", where, field, text);
        Py_XDECREF(prefix);
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
    bool pair = (PyTuple_Check(range) || PyList_Check(range)) && PySequence_Size(range) == 2;

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

static bool read_port_config(pm_state *state, PyObject *config, pm_service *service,
                             const char **field)
{
    PyObject *range = NULL;
    bool good = false;
    long port;

    *field = "default_port";
    service->default_port = PyObject_GetAttr(config, state->names.default_port);
    if (!service->default_port) {
        goto done;
    }
    if (!pm_port_from(service->default_port, "default_port", 0, &port)) {
        if (!PyLong_Check(service->default_port)) {
            Py_CLEAR(service->default_port); /* no port was requested at all */
        }
        goto done;
    }
    service->port = (uint16_t)port;
    *field = "range";
    range = PyObject_GetAttr(config, state->names.range);
    if (!range) {
        goto done;
    }
    good = range == Py_None || read_range(range, service);
done:
    Py_XDECREF(range);
    return good;
}

static bool read_manager_config(pm_state *state, PyObject *config, pm_service *service,
                                const char **field)
{
    PyObject *fall_back, *retries = NULL, *delay = NULL;
    bool good = false;
    int truth;

    *field = "enable_auto_allocation";
    fall_back = PyObject_GetAttr(config, state->names.enable_auto_allocation);
    truth = fall_back ? PyObject_IsTrue(fall_back) : -1;
    if (truth < 0) {
        goto done;
    }
    *field = "max_retries";
    retries = PyObject_GetAttr(config, state->names.max_retries);
    if (!retries ||
        !pm_count_from(retries, "max_retries", &service->max_retries)) {
        goto done;
    }
    *field = "retry_delay";
    delay = PyObject_GetAttr(config, state->names.retry_delay);
    if (!delay || !pm_seconds_from(delay, "retry_delay", &service->retry_delay)) {
        goto done;
    }
    service->may_fall_back = truth == 1;
    if (service->retry_delay < 0) {
        service->retry_delay = 0;
    }
    good = true;
done:
    Py_XDECREF(fall_back);
    Py_XDECREF(retries);
    Py_XDECREF(delay);
    return good;
}

int pm_service_read(pm_manager *self, PyObject *name, PyObject *config, pm_service *service,
                    PyObject **message)
{
    PyObject *manager_config;
    const char *field = "config";
    int result;

    *message = NULL;
    if (!PyUnicode_Check(name)) {
        *message = PyUnicode_FromFormat("Invalid service name %R: it must be a str", name);
        return *message ? 0 : -1;
    }
    if (!read_port_config(self->state, config, service, &field)) {
        return complain("configuration", name, field, message);
    }
    field = "config";
    manager_config = PyObject_GetAttr((PyObject *)self, self->state->names.config);
    result = manager_config && read_manager_config(self->state, manager_config, service, &field)
                 ? 1
                 : complain("PortManagerConfig", NULL, field, message);
    Py_XDECREF(manager_config);
    return result;
}
