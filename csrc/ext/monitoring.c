/* start_port_monitoring and its like; the watching itself is portmanager/_monitor.py's. */
#include "ext/manager.h"
#include "ext/values.h"

static int cancel(pm_manager *self, PyObject *monitor)
{
    PyObject *result = PyObject_CallMethodObjArgs(monitor, self->state->names.cancel, NULL);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

int pm_manager_stop_monitor(pm_manager *self, PyObject *port)
{
    PyObject *monitors = PyObject_GetAttr((PyObject *)self, self->state->names.port_monitors);
    PyObject *monitor;
    int found = monitors ? pm_mapping_get(monitors, port, &monitor) : -1;

    if (found == 1) {
        found = pm_mapping_remove(monitors, port) < 0 || cancel(self, monitor) < 0 ? -1 : 1;
        Py_DECREF(monitor);
    }
    Py_XDECREF(monitors);
    return found < 0 ? -1 : 0;
}

int pm_manager_stop_monitors(pm_manager *self)
{
    PyObject *monitors = PyObject_GetAttr((PyObject *)self, self->state->names.port_monitors);
    PyObject *values = monitors ? PyMapping_Values(monitors) : NULL;
    int result = values ? 0 : -1;

    for (Py_ssize_t i = 0; result == 0 && i < PyList_Size(values); i++) {
        result = cancel(self, PyList_GetItem(values, i));
    }
    if (result == 0) {
        result = pm_mapping_clear(monitors);
    }
    Py_XDECREF(values);
    Py_XDECREF(monitors);
    return result;
}

/* Nobody would have the monitor to cancel it; the exception that is set stays. */
static void cancel_unseen(PyObject *monitor)
{
    PyObject *type, *value, *traceback, *cancelled;

    PyErr_Fetch(&type, &value, &traceback);
    cancelled = PyObject_CallMethod(monitor, "cancel", NULL);
    Py_XDECREF(cancelled);
    PyErr_Restore(type, value, traceback);
}

PyObject *pm_start_port_monitoring(pm_state *state, const pm_function_spec *spec,
                                   PyObject *const *arguments)
{
    PyObject *self = arguments[0], *service = arguments[1], *monitors = NULL;
    PyObject *port = pm_get_port(state, spec, arguments), *module = NULL, *monitor = NULL;
    PyObject *interval = arguments[2] ? Py_NewRef(arguments[2]) : PyFloat_FromDouble(5.0);
    PyObject *loop = arguments[3] ? arguments[3] : Py_None;
    int result = -1;

    if (!port || !interval) {
        goto done;
    }
    if (port == Py_None) {
        result = 0;
        goto done;
    }
    module = PyImport_ImportModule("portmanager._monitor");
    monitor =
        module ? PyObject_CallMethod(module, "start", "OOOOO", self, service, port, interval, loop)
               : NULL;
    /* Only now that the new one runs. */
    if (!monitor || pm_manager_stop_monitor((pm_manager *)self, port) < 0) {
        goto done;
    }
    monitors = PyObject_GetAttr(self, state->names.port_monitors);
    result = monitors ? PyObject_SetItem(monitors, port, monitor) : -1;
done:
    if (monitor && result < 0) {
        cancel_unseen(monitor);
    }
    Py_XDECREF(monitors);
    Py_XDECREF(monitor);
    Py_XDECREF(module);
    Py_XDECREF(interval);
    Py_XDECREF(port);
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

PyObject *pm_stop_port_monitoring(pm_state *state, const pm_function_spec *spec,
                                  PyObject *const *arguments)
{
    PyObject *port = pm_get_port(state, spec, arguments);
    int result = port ? 0 : -1;

    if (port && port != Py_None) {
        result = pm_manager_stop_monitor((pm_manager *)arguments[0], port);
    }
    Py_XDECREF(port);
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

PyObject *pm_on_port_became_available(pm_state *state, const pm_function_spec *spec,
                                      PyObject *const *arguments)
{
    (void)state, (void)spec, (void)arguments;
    Py_RETURN_NONE;
}
