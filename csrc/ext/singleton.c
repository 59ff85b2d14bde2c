/* get_port_manager: one manager for each interpreter. */
#include "ext/log.h"
#include "ext/manager.h"

/* The singleton, or NULL; `offered` becomes it, if there is none yet. A new reference. */
static PyObject *agree_on_singleton(pm_state *state, PyObject *offered)
{
    PyObject *agreed;

    PyThread_acquire_lock(state->singleton_lock, WAIT_LOCK);
    if (!state->singleton) {
        state->singleton = Py_XNewRef(offered);
    }
    agreed = Py_XNewRef(state->singleton);
    PyThread_release_lock(state->singleton_lock);
    return agreed;
}

static PyObject *get_port_manager(pm_state *state, const pm_function_spec *spec,
                                  PyObject *const *arguments)
{
    PyObject *config = arguments[0] ? arguments[0] : Py_None, *current;
    PyObject *manager = agree_on_singleton(state, NULL), *fresh;

    (void)spec;
    if (!manager) {
        /* Two threads may both come here; the first to agree has made the singleton. */
        fresh = PyObject_CallFunctionObjArgs((PyObject *)state->manager_type, config, NULL);
        manager = fresh ? agree_on_singleton(state, fresh) : NULL;
        Py_XDECREF(fresh);
    }
    if (!manager || config == Py_None) {
        return manager;
    }
    current = PyObject_GetAttr(manager, state->names.config);
    int same = current ? PyObject_RichCompareBool(current, config, Py_EQ) : -1;
    Py_XDECREF(current);
    if (same < 0) {
        Py_CLEAR(manager);
    } else if (!same) {
        pm_log(state, PM_WARNING,
               "get_port_manager() has been called before: this other configuration is ignored: "
               "%R",
               config);
    }
    return manager;
}

const pm_function_spec pm_get_port_manager_spec = {
    NULL, "get_port_manager", {"config"}, 0, get_port_manager, NULL, NULL};
