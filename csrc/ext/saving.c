/* save_configuration and cleanup: the file itself is portmanager/_config_file.py's. */
#include <stdbool.h>

#include "ext/log.h"
#include "ext/loop.h"
#include "ext/manager.h"
#include "ext/values.h"

enum { SELF, FILE_PATH };
enum { BEGIN, SAVED };

static pm_manager *manager_of(pm_coroutine *co)
{
    return (pm_manager *)co->vars[SELF];
}

/* config.port_config_path; a new reference. */
static PyObject *configured_path(pm_manager *manager)
{
    PyObject *config = PyObject_GetAttr((PyObject *)manager, manager->state->names.config);
    PyObject *path =
        config ? PyObject_GetAttr(config, manager->state->names.port_config_path) : NULL;
    Py_XDECREF(config);
    return path;
}

/* The allocations with status 'allocated', as a list. */
static PyObject *allocated(pm_manager *manager)
{
    PyObject *items = pm_manager_allocated_items(manager), *list = items ? PyList_New(0) : NULL;

    for (Py_ssize_t i = 0; list && i < PyList_Size(items); i++) {
        if (PyList_Append(list, PyTuple_GetItem(PyList_GetItem(items, i), 1)) < 0) {
            Py_CLEAR(list);
        }
    }
    Py_XDECREF(items);
    return list;
}

/* Calls a function of _config_file with (path, configs, allocations, loaded), off the loop:
 * PM_AWAIT, or PM_DONE where no loop runs. The lists are copies, so that the thread sees one
 * moment. */
static pm_outcome save(pm_coroutine *co, const char *function, PyObject *path, PyObject **out)
{
    pm_manager *manager = manager_of(co);
    PyObject *module = PyImport_ImportModule("portmanager._config_file");
    PyObject *call = module ? PyObject_GetAttrString(module, function) : NULL;
    PyObject *configs = PyObject_GetAttr((PyObject *)manager, manager->state->names.port_configs);
    PyObject *values = configs ? PyMapping_Values(configs) : NULL;
    PyObject *allocations = values ? allocated(manager) : NULL;
    PyObject *arguments = NULL;
    pm_outcome outcome = PM_ERROR;

    if (call && allocations) {
        arguments = PyTuple_Pack(4, path, values, allocations,
                                 manager->config_file ? manager->config_file : Py_None);
    }
    if (arguments) {
        int waits = pm_loop_run_in_thread(manager->state, call, arguments, out);
        outcome = waits < 0 ? PM_ERROR : waits ? PM_AWAIT : PM_DONE;
    }
    co->state = SAVED;
    Py_XDECREF(arguments);
    Py_XDECREF(allocations);
    Py_XDECREF(values);
    Py_XDECREF(configs);
    Py_XDECREF(call);
    Py_XDECREF(module);
    return outcome;
}

/* ---- save_configuration -------------------------------------------------------------------- */

static pm_outcome save_configuration_step(pm_coroutine *co, PyObject *received, PyObject **out)
{
    PyObject *path = co->vars[FILE_PATH];
    pm_outcome outcome;

    if (co->state == SAVED) {
        *out = Py_XNewRef(received);
        return received ? PM_DONE : PM_ERROR;
    }
    path = path && path != Py_None ? Py_NewRef(path) : configured_path(manager_of(co));
    if (!path) {
        return PM_ERROR;
    }
    int given = PyObject_IsTrue(path);
    if (given == 0) {
        PyErr_SetString(PyExc_ValueError,
                        "No configuration file path: give file_path to save_configuration(), or "
                        "port_config_path to PortManagerConfig");
    }
    outcome = given == 1 ? save(co, "save", path, out) : PM_ERROR;
    Py_DECREF(path);
    return outcome;
}

const pm_coroutine_kind pm_save_configuration = {.step = save_configuration_step};

/* ---- cleanup ------------------------------------------------------------------------------- */

/* Clears, whatever became of the saving. An error of that is logged; cancellation goes on. */
static pm_outcome clear(pm_coroutine *co, PyObject **out)
{
    PyObject *type, *value, *traceback;
    int result;

    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Fetch(&type, &value, &traceback);
        PyErr_NormalizeException(&type, &value, &traceback);
        pm_log(co->module_state, PM_LOG_ERROR, "cleanup() could not save the configuration: %S",
               value);
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
    }
    PyErr_Fetch(&type, &value, &traceback);
    result = pm_manager_clear(manager_of(co));
    if (result == 0) {
        pm_log(co->module_state, PM_INFO, "Cleaned up: every port is given back");
    }
    if (type) {
        PyErr_Restore(type, value, traceback);
    }
    if (type || result < 0) {
        return PM_ERROR;
    }
    *out = Py_NewRef(Py_None);
    return PM_DONE;
}

static pm_outcome cleanup_step(pm_coroutine *co, PyObject *received, PyObject **out)
{
    PyObject *path, *saved = NULL;
    int wanted;

    (void)received; /* or the exception that clear() finds set */
    if (co->state == SAVED) {
        return clear(co, out);
    }
    if (pm_manager_stop_monitors(manager_of(co)) < 0) {
        return PM_ERROR;
    }
    path = configured_path(manager_of(co));
    wanted = path ? PyObject_IsTrue(path) : -1;
    if (wanted == 1 && save(co, "save_at_cleanup", path, &saved) == PM_AWAIT) {
        Py_DECREF(path);
        *out = saved;
        return PM_AWAIT;
    }
    Py_XDECREF(path);
    Py_XDECREF(saved);
    return clear(co, out);
}

const pm_coroutine_kind pm_cleanup = {.step = cleanup_step};
