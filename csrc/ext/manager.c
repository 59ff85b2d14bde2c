#include "ext/manager.h"

#include <stdbool.h>
#include <string.h>

#include "ext/holds.h"
#include "ext/hosts.h"
#include "ext/log.h"
#include "ext/record.h"
#include "ext/values.h"

/* ---- what the methods share ---------------------------------------------------------------- */

int pm_manager_override(pm_manager *self, PyObject *name, PyObject *builtin, PyObject **found)
{
    PyObject *method = PyObject_GetAttr((PyObject *)self, name), *function = NULL;

    *found = NULL;
    if (!method) {
        return -1;
    }
    if ((PyObject *)Py_TYPE(method) == self->state->types_method) {
        function = PyObject_GetAttr(method, self->state->dunders.func);
        Py_XDECREF(function); /* the method has it */
        if (function == builtin) {
            Py_DECREF(method);
            return 0;
        }
    }
    *found = method;
    return 1;
}

PyObject *pm_override(PyObject *module, PyObject *manager)
{
    pm_state *state = pm_state_of_module(module);
    PyObject *found;

    if (!PyObject_TypeCheck(manager, state->manager_type)) {
        return PyErr_Format(PyExc_TypeError, "expected a PortManager, not %R", manager);
    }
    int overridden = pm_manager_override((pm_manager *)manager, state->names.is_port_available,
                                         state->builtin_is_port_available, &found);
    return overridden < 0 ? NULL : overridden ? found : Py_NewRef(Py_None);
}

/* The same question, answered without making a bound method where attribute lookup is the
 * ordinary one. Only `true` is an answer. */
static bool is_builtin(pm_manager *self, PyObject *name, PyObject *builtin)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject *dict, *method = NULL;

    if (PyType_GetSlot(type, Py_tp_getattro) != (void *)PyObject_GenericGetAttr) {
        return false;
    }
    dict = PyObject_GenericGetDict((PyObject *)self, NULL);
    if (dict && PyDict_Contains(dict, name) == 0) {
        method = PyObject_GetAttr((PyObject *)type, name);
    }
    Py_XDECREF(dict);
    Py_XDECREF(method); /* the class has it */
    return method && method == builtin;
}

static int overrides(pm_manager *self, PyObject *name, PyObject *builtin)
{
    PyObject *found;

    if (is_builtin(self, name, builtin)) {
        return 0;
    }
    PyErr_Clear();
    int overridden = pm_manager_override(self, name, builtin, &found);
    Py_XDECREF(found);
    return overridden;
}

int pm_manager_overrides_probe(pm_manager *self)
{
    return overrides(self, self->state->names.is_port_available,
                     self->state->builtin_is_port_available);
}

int pm_manager_overrides_search(pm_manager *self)
{
    return overrides(self, self->state->names.find_available_port,
                     self->state->builtin_find_available_port);
}

PyObject *pm_manager_ask(pm_manager *self, long port, PyObject *host)
{
    PyObject *method = PyObject_GetAttr((PyObject *)self, self->state->names.is_port_available);
    PyObject *answer = NULL;

    if (method) {
        answer = pm_host_is_default(host) ? PyObject_CallFunction(method, "l", port)
                                          : PyObject_CallFunction(method, "lO", port, host);
        Py_DECREF(method);
    }
    return answer;
}

int pm_manager_reconcile(pm_manager *self)
{
    PyObject *entries = pm_holds_any(self) ? pm_manager_allocated_ports(self) : NULL;
    Py_XDECREF(entries);
    return PyErr_Occurred() ? -1 : 0;
}

PyObject *pm_manager_allocated_ports(pm_manager *self)
{
    PyObject *entries = PyObject_GetAttr((PyObject *)self, self->state->names.allocated_ports);
    if (entries && pm_holds_reconcile(self, entries) < 0) {
        Py_CLEAR(entries);
    }
    return entries;
}

PyObject *pm_manager_allocated_items(pm_manager *self)
{
    PyObject *entries = pm_manager_allocated_ports(self);
    PyObject *items = entries ? pm_mapping_items(entries) : NULL;
    PyObject *allocated = items ? PyList_New(0) : NULL;
    long port;

    for (Py_ssize_t i = 0; allocated && i < PyList_Size(items); i++) {
        PyObject *item = PyList_GetItem(items, i);
        int is = pm_allocated_port(self->state, PyTuple_GetItem(item, 1), &port);
        if (is < 0 || (is && PyList_Append(allocated, item) < 0)) {
            Py_CLEAR(allocated);
        }
    }
    Py_XDECREF(items);
    Py_XDECREF(entries);
    return allocated;
}

int pm_manager_clear(pm_manager *self)
{
    PyObject *entries = PyObject_GetAttr((PyObject *)self, self->state->names.allocated_ports);
    int result = entries ? pm_mapping_clear(entries) : -1;
    pm_holds_release_all(self);
    Py_XDECREF(entries);
    return result;
}

/* ---- construction -------------------------------------------------------------------------- */

/* Copies of the default configurations, by name. */
static int add_defaults(pm_state *state, PyObject *configs)
{
    /* A list of our own: copying may run code that changes the other one. */
    PyObject *defaults = PySequence_List(state->default_configs);
    int result = defaults ? 0 : -1;

    for (Py_ssize_t i = 0; result == 0 && i < PyList_Size(defaults); i++) {
        PyObject *copy = pm_record_copy(state, PM_RECORD_PORT_CONFIG, PyList_GetItem(defaults, i));
        PyObject *name = copy ? PyObject_GetAttr(copy, state->names.service) : NULL;
        result = name ? PyDict_SetItem(configs, name, copy) : -1;
        Py_XDECREF(name);
        Py_XDECREF(copy);
    }
    Py_XDECREF(defaults);
    return result;
}

/* Reads the file; `configs` stays empty where there is nothing usable. */
static int load_file(pm_manager *self, PyObject *path, PyObject *configs)
{
    PyObject *module = PyImport_ImportModule("portmanager._config_file");
    PyObject *file = module ? PyObject_CallMethod(module, "load", "O", path) : NULL;
    PyObject *list = file ? PyObject_GetAttr(file, self->state->names.configs) : NULL;
    int result = list ? 0 : -1;

    pm_set(&self->config_file, file);
    if (list && list != Py_None) {
        result = 1;
        for (Py_ssize_t i = 0; result == 1 && i < PyList_Size(list); i++) {
            PyObject *config = PyList_GetItem(list, i);
            PyObject *name = PyObject_GetAttr(config, self->state->names.service);
            result = name && PyDict_SetItem(configs, name, config) == 0 ? 1 : -1;
            Py_XDECREF(name);
        }
    }
    Py_XDECREF(list);
    Py_XDECREF(module);
    return result;
}

static PyObject *make_configs(pm_manager *self, PyObject *config)
{
    PyObject *path = PyObject_GetAttr(config, self->state->names.port_config_path);
    PyObject *configs = path ? PyDict_New() : NULL;
    int given = configs ? PyObject_IsTrue(path) : -1;
    int loaded = given == 1 ? load_file(self, path, configs) : given;

    if (loaded < 0 || (loaded == 0 && add_defaults(self->state, configs) < 0)) {
        Py_CLEAR(configs);
    }
    Py_XDECREF(path);
    return configs;
}

static PyObject *manager_init(pm_state *state, const pm_function_spec *spec,
                              PyObject *const *arguments)
{
    pm_manager *self = (pm_manager *)arguments[0];
    PyObject *config = arguments[1] && arguments[1] != Py_None
                           ? Py_NewRef(arguments[1])
                           : pm_record_new_default(state, PM_RECORD_PORT_MANAGER_CONFIG);
    PyObject *configs = config ? make_configs(self, config) : NULL;
    PyObject *allocated = configs ? PyDict_New() : NULL;
    PyObject *monitors = allocated ? PyDict_New() : NULL;
    const struct {
        PyObject *name, *value;
    } attributes[] = {
        {state->names.config,          config   },
        {state->names.port_configs,    configs  },
        {state->names.allocated_ports, allocated},
        {state->names.port_monitors,   monitors }
    };
    int result = monitors ? 0 : -1;

    (void)spec;
    for (size_t i = 0; result == 0 && i < sizeof attributes / sizeof *attributes; i++) {
        result = PyObject_SetAttr((PyObject *)self, attributes[i].name, attributes[i].value);
    }
    Py_XDECREF(monitors);
    Py_XDECREF(allocated);
    Py_XDECREF(configs);
    Py_XDECREF(config);
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

/* ---- the table ----------------------------------------------------------------------------- */

#define PLAIN(name, required, function, ...)                                                       \
    {                                                                                              \
        "PortManager", name, {"self", __VA_ARGS__}, \
          required, function, NULL, NULL \
    }
#define ASYNC(name, required, coroutine, ...)                                                      \
    {                                                                                              \
        "PortManager", name, {"self", __VA_ARGS__}, \
          required, NULL, &coroutine, NULL \
    }

const pm_function_spec pm_manager_methods[] = {
    PLAIN("__init__", 1, manager_init, "config"),
    ASYNC("is_port_available", 2, pm_is_port_available, "port", "host"),
    ASYNC("find_available_port", 2, pm_find_available_port, "start_port", "end_port", "host"),
    ASYNC("allocate_port", 2, pm_allocate_port, "service_name"),
    ASYNC("allocate_all_ports", 1, pm_allocate_all_ports, NULL),
    ASYNC("bind_port", 2, pm_bind_port, "service_name", "host", "backlog"),
    PLAIN("get_port", 2, pm_get_port, "service_name"),
    PLAIN("get_allocated_ports", 1, pm_get_allocated_ports, NULL),
    PLAIN("release_port", 2, pm_release_port, "service_name"),
    PLAIN("release_all_ports", 1, pm_release_all_ports, NULL),
    ASYNC("get_port_status", 1, pm_get_port_status, NULL),
    PLAIN("get_environment_variables", 1, pm_get_environment_variables, NULL),
    ASYNC("wait_for_port", 2, pm_wait_for_port, "port", "timeout", "check_interval", "host"),
    ASYNC("save_configuration", 1, pm_save_configuration, "file_path"),
    ASYNC("cleanup", 1, pm_cleanup, NULL),
    PLAIN("start_port_monitoring", 2, pm_start_port_monitoring, "service_name", "interval", "loop"),
    PLAIN("stop_port_monitoring", 2, pm_stop_port_monitoring, "service_name"),
    PLAIN("_on_port_became_available", 3, pm_on_port_became_available, "service_name", "port"),
    {0},
};

/* ---- life ---------------------------------------------------------------------------------- */

static PyObject *manager_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    pm_state *state = pm_state_of_type(type);
    pm_manager *self;

    (void)args, (void)kwargs;
    if (!state) {
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    self = (pm_manager *)allocate(type, 0);
    if (!self) {
        return NULL;
    }
    self->state = state;
    self->holder = pm_ledger_enroll();
    self->lock = PyThread_allocate_lock();
    self->holds = PyDict_New();
    self->attempts = PyDict_New();
    if (!self->lock || !self->holds || !self->attempts) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static int manager_traverse(pm_manager *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->dict);
    Py_VISIT(self->holds);
    Py_VISIT(self->attempts);
    Py_VISIT(self->config_file);
    return 0;
}

static int manager_clear(pm_manager *self)
{
    if (self->lock && self->holds) {
        pm_holds_release_all(self);
    }
    if (self->attempts) {
        PyDict_Clear(self->attempts);
    }
    Py_CLEAR(self->config_file);
    Py_CLEAR(self->dict);
    return 0;
}

static void manager_dealloc(pm_manager *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->weakrefs) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    manager_clear(self);
    Py_CLEAR(self->holds);
    Py_CLEAR(self->attempts);
    if (self->lock) {
        PyThread_free_lock(self->lock);
    }
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyGetSetDef manager_getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {0},
};

static PyMemberDef manager_members[] = {
    {"__dictoffset__", T_PYSSIZET, offsetof(pm_manager, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(pm_manager, weakrefs), READONLY, NULL},
    {0},
};

static PyType_Slot manager_slots[] = {
    {Py_tp_doc,      /* CPython 3.10 finds no signature of a class with a __new__ of its own */
     "PortManager(config=None)\n--\n\n"
     "Hands out TCP ports to services, and keeps them while they are handed out.\n\n"
     "config: a PortManagerConfig; None stands for its defaults."},
    {Py_tp_new,      manager_new                                                },
    {Py_tp_getset,   manager_getset                                             },
    {Py_tp_members,  manager_members                                            },
    {Py_tp_traverse, manager_traverse                                           },
    {Py_tp_clear,    manager_clear                                              },
    {Py_tp_dealloc,  manager_dealloc                                            },
    {0,              NULL                                                       },
};

PyType_Spec pm_manager_type_spec = {
    .name = "portmanager.PortManager",
    .basicsize = sizeof(pm_manager),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = manager_slots,
};
