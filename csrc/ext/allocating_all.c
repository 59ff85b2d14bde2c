/* allocate_all_ports: allocate_port, one required service after the other. */
#include "ext/manager.h"
#include "ext/values.h"

/* vars */
enum { SELF, NAMES, RESULTS };

typedef struct {
    Py_ssize_t next;
} all_frame;

/* The names of the services whose configuration says required, in order: a new list. */
static PyObject *required_services(pm_coroutine *co)
{
    pm_state *state = co->module_state;
    PyObject *configs = PyObject_GetAttr(co->vars[SELF], state->names.port_configs);
    PyObject *items = configs ? pm_mapping_items(configs) : NULL;
    PyObject *names = items ? PyList_New(0) : NULL;

    for (Py_ssize_t i = 0; names && i < PyList_Size(items); i++) {
        PyObject *item = PyList_GetItem(items, i);
        PyObject *required = PyObject_GetAttr(PyTuple_GetItem(item, 1), state->names.required);
        int wanted = required ? PyObject_IsTrue(required) : -1;
        if (!required && PyErr_ExceptionMatches(PyExc_AttributeError)) {
            PyErr_Clear();
            wanted = 1; /* no configuration at all: allocate_port says so */
        }
        Py_XDECREF(required);
        if (wanted < 0 || (wanted && PyList_Append(names, PyTuple_GetItem(item, 0)) < 0)) {
            Py_CLEAR(names);
        }
    }
    Py_XDECREF(items);
    Py_XDECREF(configs);
    return names;
}

static pm_outcome allocate_all_ports_step(pm_coroutine *co, PyObject *received, PyObject **out)
{
    all_frame *frame = co->frame;
    PyObject *method;

    if (!co->vars[NAMES]) {
        if (pm_manager_reconcile((pm_manager *)co->vars[SELF]) < 0) {
            return PM_ERROR;
        }
        co->vars[NAMES] = required_services(co);
        co->vars[RESULTS] = co->vars[NAMES] ? PyDict_New() : NULL;
        if (!co->vars[RESULTS]) {
            return PM_ERROR;
        }
    } else if (!received ||
               PyDict_SetItem(co->vars[RESULTS], PyList_GetItem(co->vars[NAMES], frame->next++),
                              received) < 0) {
        return PM_ERROR;
    }
    if (frame->next == PyList_Size(co->vars[NAMES])) {
        *out = Py_NewRef(co->vars[RESULTS]);
        return PM_DONE;
    }
    method = PyObject_GetAttr(co->vars[SELF], co->module_state->names.allocate_port);
    if (!method) {
        return PM_ERROR;
    }
    *out = PyObject_CallFunctionObjArgs(method, PyList_GetItem(co->vars[NAMES], frame->next), NULL);
    Py_DECREF(method);
    return *out ? PM_AWAIT : PM_ERROR;
}

const pm_coroutine_kind pm_allocate_all_ports = {.step = allocate_all_ports_step,
                                                 .frame_size = sizeof(all_frame)};
