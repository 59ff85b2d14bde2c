/* The methods that do not wait: what is allocated, and giving it back. */
#include <stdbool.h>

#include "ext/holds.h"
#include "ext/log.h"
#include "ext/manager.h"
#include "ext/values.h"

PyObject *pm_get_port(pm_state *state, const pm_function_spec *spec, PyObject *const *arguments)
{
    PyObject *entries = pm_manager_allocated_ports((pm_manager *)arguments[0]), *entry;
    PyObject *port = NULL;
    long number;
    int found = entries ? pm_mapping_get(entries, arguments[1], &entry) : -1;

    (void)spec;
    if (found == 1) {
        found = pm_allocated_port(state, entry, &number);
        port = found == 1 ? PyObject_GetAttr(entry, state->names.allocated_port) : NULL;
        Py_DECREF(entry);
    }
    Py_XDECREF(entries);
    return found == 0 ? Py_NewRef(Py_None) : port;
}

/* A dict with what `add` makes of each allocated entry. */
static PyObject *of_allocated(pm_manager *self,
                              int (*add)(PyObject *result, PyObject *service, PyObject *port))
{
    PyObject *items = pm_manager_allocated_items(self);
    PyObject *result = items ? PyDict_New() : NULL;

    for (Py_ssize_t i = 0; result && i < PyList_Size(items); i++) {
        PyObject *item = PyList_GetItem(items, i);
        PyObject *port =
            PyObject_GetAttr(PyTuple_GetItem(item, 1), self->state->names.allocated_port);
        if (!port || add(result, PyTuple_GetItem(item, 0), port) < 0) {
            Py_CLEAR(result);
        }
        Py_XDECREF(port);
    }
    Py_XDECREF(items);
    return result;
}

PyObject *pm_get_allocated_ports(pm_state *state, const pm_function_spec *spec,
                                 PyObject *const *arguments)
{
    (void)state, (void)spec;
    return of_allocated((pm_manager *)arguments[0], PyDict_SetItem);
}

/* `python-ai-service` to `PYTHON_AI_SERVICE_PORT`; a new reference. */
static PyObject *variable_name(PyObject *service)
{
    PyObject *text = PyObject_Str(service), *exact, *upper, *name = NULL;
    /* A subclass of str may have an upper() of its own. */
    exact = text ? PyUnicode_FromObject(text) : NULL;
    upper = exact ? PyObject_CallMethod(exact, "upper", NULL) : NULL;
    Py_ssize_t length = upper ? PyUnicode_GetLength(upper) : 0;
    char *plain = upper ? PyMem_Malloc((size_t)length + 1) : NULL;

    if (plain) {
        for (Py_ssize_t i = 0; i < length; i++) {
            Py_UCS4 c = PyUnicode_ReadChar(upper, i);
            bool fits = (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
            plain[i] = fits ? (char)c : '_';
        }
        plain[length] = '\0';
        name = PyUnicode_FromFormat("%s_PORT", plain);
        PyMem_Free(plain);
    } else if (upper) {
        PyErr_NoMemory();
    }
    Py_XDECREF(upper);
    Py_XDECREF(exact);
    Py_XDECREF(text);
    return name;
}

static int add_variable(PyObject *result, PyObject *service, PyObject *port)
{
    PyObject *name = variable_name(service), *value = name ? PyObject_Str(port) : NULL;
    int added = value ? PyDict_SetItem(result, name, value) : -1;
    Py_XDECREF(value);
    Py_XDECREF(name);
    return added;
}

PyObject *pm_get_environment_variables(pm_state *state, const pm_function_spec *spec,
                                       PyObject *const *arguments)
{
    (void)state, (void)spec;
    return of_allocated((pm_manager *)arguments[0], add_variable);
}

/* An exact str with the text of a str, NULL without an exception for other objects. */
static PyObject *exact_name(PyObject *service)
{
    return PyUnicode_Check(service) ? PyUnicode_FromObject(service) : NULL;
}

/* Gives one service's port back: its monitor first, then the entry, then the reservation. */
static int release_entry(pm_manager *self, PyObject *entries, PyObject *service, PyObject *entry)
{
    PyObject *exact, *port;
    long number;
    int is = pm_allocated_port(self->state, entry, &number), released = 0;

    if (is < 0) {
        return -1;
    }
    port = is ? PyObject_GetAttr(entry, self->state->names.allocated_port) : NULL;
    if (is && (!port || pm_manager_stop_monitor(self, port) < 0)) {
        Py_XDECREF(port);
        return -1;
    }
    if (pm_mapping_remove(entries, service) < 0) {
        Py_XDECREF(port);
        return -1;
    }
    exact = exact_name(service);
    if (exact) {
        released = pm_hold_release(self, exact);
        Py_DECREF(exact);
    }
    /* The same name may be written in another way, as a str with an equality of its own. */
    if (released == 0 && pm_holds_reconcile(self, entries) < 0) {
        released = -1;
    }
    if (is) {
        pm_log(self->state, PM_INFO, "Released port %S of service %S", port, service);
    }
    Py_XDECREF(port);
    return released < 0 || PyErr_Occurred() ? -1 : 0;
}

PyObject *pm_release_port(pm_state *state, const pm_function_spec *spec, PyObject *const *arguments)
{
    pm_manager *self = (pm_manager *)arguments[0];
    PyObject *entries = pm_manager_allocated_ports(self), *entry;
    int found = entries ? pm_mapping_get(entries, arguments[1], &entry) : -1;

    (void)state, (void)spec;
    if (found == 1) {
        found = release_entry(self, entries, arguments[1], entry);
        Py_DECREF(entry);
    }
    Py_XDECREF(entries);
    return found < 0 ? NULL : Py_NewRef(Py_None);
}

PyObject *pm_release_all_ports(pm_state *state, const pm_function_spec *spec,
                               PyObject *const *arguments)
{
    pm_manager *self = (pm_manager *)arguments[0];
    PyObject *entries = pm_manager_allocated_ports(self);
    PyObject *items = entries ? pm_mapping_items(entries) : NULL;
    int result = items ? 0 : -1;

    (void)state, (void)spec;
    for (Py_ssize_t i = 0; result == 0 && i < PyList_Size(items); i++) {
        PyObject *item = PyList_GetItem(items, i);
        result = release_entry(self, entries, PyTuple_GetItem(item, 0), PyTuple_GetItem(item, 1));
    }
    Py_XDECREF(items);
    Py_XDECREF(entries);
    return result < 0 ? NULL : Py_NewRef(Py_None);
}
