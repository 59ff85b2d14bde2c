/* portmanager._native: multi-phase initialisation, one state for each interpreter. */
#include "ext/module.h"

#include "ext/coroutine.h"
#include "ext/function.h"
#include "ext/holds.h"
#include "ext/hosts.h"
#include "ext/log.h"
#include "ext/looking.h"
#include "ext/manager.h"
#include "ext/record.h"
#include "ext/reserving.h"

static struct PyModuleDef module_def;

pm_state *pm_state_of_module(PyObject *module)
{
    return PyModule_GetState(module);
}

pm_state *pm_state_of_type(PyTypeObject *type)
{
    for (; type; type = PyType_GetSlot(type, Py_tp_base)) {
        /* Borrowed; a TypeError for types that no module made. */
        PyObject *module = PyType_GetModule(type);
        if (!module) {
            PyErr_Clear();
        } else if (PyModule_GetDef(module) == &module_def) {
            return pm_state_of_module(module);
        }
    }
    PyErr_SetString(PyExc_TypeError, "not a class of portmanager");
    return NULL;
}

PyObject *pm_declarations(pm_state *state)
{
    if (!state->declarations) {
        PyObject *module = PyImport_ImportModule("portmanager._declarations");
        if (state->declarations) {
            Py_XDECREF(module); /* another thread was first, with the same module */
        } else {
            state->declarations = module;
        }
    }
    return state->declarations;
}

/* ---- initialisation ------------------------------------------------------------------------ */

static int init_names(pm_state *state)
{
#define X(name)                                                                                    \
    if (!(state->names.name = PyUnicode_InternFromString(#name))) {                                \
        return -1;                                                                                 \
    }
    PM_NAMES(X)
#undef X
#define X(name)                                                                                    \
    if (!(state->dunders.name = PyUnicode_InternFromString("__" #name "__"))) {                    \
        return -1;                                                                                 \
    }
    PM_DUNDER_NAMES(X)
#undef X
#define X(name)                                                                                    \
    if (!(state->statuses.name = PyUnicode_InternFromString(#name))) {                             \
        return -1;                                                                                 \
    }
    PM_STATUSES(X)
#undef X
    return 0;
}

static int init_version(pm_state *state)
{
    PyObject *info = PySys_GetObject("version_info"); /* borrowed */
    PyObject *minor = info ? PySequence_GetItem(info, 1) : NULL;
    state->get_origin_depth = Py_XNewRef(PySys_GetObject("get_coroutine_origin_tracking_depth"));
    state->minor = minor ? (int)PyLong_AsLong(minor) : -1;
    Py_XDECREF(minor);
    return PyErr_Occurred() ? -1 : 0;
}

static int init_python_types(pm_state *state)
{
    const struct {
        const char *name;
        PyObject **slot;
    } wanted[] = {
        {"FunctionType",    &state->types_function },
        {"CoroutineType",   &state->types_coroutine},
        {"MethodType",      &state->types_method   },
        {"SimpleNamespace", &state->types_namespace}
    };
    PyObject *types = PyImport_ImportModule("types");
    int result = types ? 0 : -1;

    for (size_t i = 0; result == 0 && i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].slot = PyObject_GetAttrString(types, wanted[i].name);
        result = *wanted[i].slot ? 0 : -1;
    }
    Py_XDECREF(types);
    return result;
}

/* Error messages name a type by what its spec calls it, `portmanager.PortManager`; setting the
 * name leaves `PortManager`, as for a class made in Python. */
static int drop_module_name(PyObject *type)
{
    PyObject *name = PyObject_GetAttrString(type, "__name__");
    int result = name ? PyObject_SetAttrString(type, "__name__", name) : -1;
    Py_XDECREF(name);
    return result;
}

static int init_types(PyObject *module, pm_state *state)
{
    const struct {
        PyType_Spec *spec;
        PyTypeObject **slot;
    } ours[] = {
        {&pm_function_type_spec,  &state->function_type },
        {&pm_declared_type_spec,  &state->declared_type },
        {&pm_coroutine_type_spec, &state->coroutine_type},
        {&pm_awaiter_type_spec,   &state->awaiter_type  },
        {&pm_hold_type_spec,      &state->hold_type     },
        {&pm_held_type_spec,      &state->held_type     },
        {&pm_manager_type_spec,   &state->manager_type  }
    };

    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) {
        *ours[i].slot = (PyTypeObject *)PyType_FromModuleAndSpec(module, ours[i].spec, NULL);
        if (!*ours[i].slot || drop_module_name((PyObject *)*ours[i].slot) < 0) {
            return -1;
        }
    }
    return 0;
}

/* The built-in methods that may be overridden, to be recognised later. */
static int init_builtins(pm_state *state)
{
    PyObject *class = (PyObject *)state->manager_type;

    state->builtin_is_port_available = PyObject_GetAttr(class, state->names.is_port_available);
    state->builtin_find_available_port = PyObject_GetAttr(class, state->names.find_available_port);
    return state->builtin_is_port_available && state->builtin_find_available_port ? 0 : -1;
}

static int init_default_configs(PyObject *module, pm_state *state)
{
    static const struct {
        const char *service;
        int port, first, last;
        const char *description;
        int required;
    } defaults[] = {
        {"vite-dev-server",   5176, 5173, 5180, "Vite development server",             1},
        {"python-ai-service", 5050, 5050, 5060, "Python AI document analysis service", 0},
        {"electron-dev-api",  8080, 8080, 8090, "Electron development API server",     0},
        {"playwright-debug",  9323, 9320, 9330, "Playwright debugger",                 0},
    };
    PyObject *class = (PyObject *)state->record_types[PM_RECORD_PORT_CONFIG];

    state->default_configs = PyList_New(0);
    for (size_t i = 0; state->default_configs && i < sizeof defaults / sizeof *defaults; i++) {
        PyObject *config = PyObject_CallFunction(
            class, "si(ii)sO", defaults[i].service, defaults[i].port, defaults[i].first,
            defaults[i].last, defaults[i].description, defaults[i].required ? Py_True : Py_False);
        int result = config ? PyList_Append(state->default_configs, config) : -1;
        Py_XDECREF(config);
        if (result < 0) {
            return -1;
        }
    }
    return PyModule_AddObjectRef(module, "DEFAULT_PORT_CONFIGS", state->default_configs);
}

static int init_functions(PyObject *module, pm_state *state)
{
    PyObject *function = pm_function_new(module, &pm_get_port_manager_spec);
    int result = function ? PyModule_AddObjectRef(module, "get_port_manager", function) : -1;

    Py_XDECREF(function);
    state->resolve = PyObject_GetAttrString(module, "_resolve");
    return state->resolve ? result : -1;
}

static int module_exec(PyObject *module)
{
    pm_state *state = pm_state_of_module(module);

    state->singleton_lock = PyThread_allocate_lock();
    if (!state->singleton_lock) {
        PyErr_NoMemory();
        return -1;
    }
    if (init_names(state) < 0 || init_version(state) < 0 || init_python_types(state) < 0 ||
        init_types(module, state) < 0 || pm_records_init(module) < 0 ||
        pm_functions_add(module, (PyObject *)state->manager_type, pm_manager_methods) < 0 ||
        PyModule_AddObjectRef(module, "PortManager", (PyObject *)state->manager_type) < 0 ||
        init_builtins(state) < 0 || init_default_configs(module, state) < 0 ||
        init_functions(module, state) < 0 ||
        PyModule_AddObjectRef(module, "_Held", (PyObject *)state->held_type) < 0) {
        return -1;
    }
    return 0;
}

/* ---- the end ------------------------------------------------------------------------------- */

/* Calls `each` with the address of every reference that the state has. */
static int for_each_reference(pm_state *state, int (*each)(PyObject **, visitproc, void *),
                              visitproc visit, void *arg)
{
    PyObject **const references[] = {(PyObject **)&state->function_type,
                                     (PyObject **)&state->declared_type,
                                     (PyObject **)&state->coroutine_type,
                                     (PyObject **)&state->awaiter_type,
                                     (PyObject **)&state->hold_type,
                                     (PyObject **)&state->held_type,
                                     (PyObject **)&state->manager_type,
                                     &state->types_function,
                                     &state->types_coroutine,
                                     &state->types_method,
                                     &state->types_namespace,
                                     &state->get_origin_depth,
                                     &state->default_configs,
                                     &state->singleton,
                                     &state->declarations,
                                     &state->logger,
                                     &state->resolve,
                                     &state->builtin_is_port_available,
                                     &state->builtin_find_available_port,
#define X(name) &state->names.name,
                                     PM_NAMES(X)
#undef X
#define X(name) &state->dunders.name,
                                         PM_DUNDER_NAMES(X)
#undef X
#define X(name) &state->statuses.name,
                                             PM_STATUSES(X)
#undef X
    };
    int result = 0;

    for (size_t i = 0; result == 0 && i < sizeof references / sizeof *references; i++) {
        result = each(references[i], visit, arg);
    }
    for (size_t kind = 0; result == 0 && kind < PM_RECORDS; kind++) {
        result = each((PyObject **)&state->record_types[kind], visit, arg);
        result = result ? result : each(&state->record_fields[kind], visit, arg);
        result = result ? result : each(&state->record_defaults[kind], visit, arg);
    }
    return result;
}

static int visit_reference(PyObject **reference, visitproc visit, void *arg)
{
    Py_VISIT(*reference);
    return 0;
}

static int clear_reference(PyObject **reference, visitproc visit, void *arg)
{
    (void)visit, (void)arg;
    Py_CLEAR(*reference);
    return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    pm_state *state = pm_state_of_module(module);
    return state ? for_each_reference(state, visit_reference, visit, arg) : 0;
}

static int module_clear(PyObject *module)
{
    pm_state *state = pm_state_of_module(module);
    return state ? for_each_reference(state, clear_reference, NULL, NULL) : 0;
}

static void module_free(void *module)
{
    pm_state *state = pm_state_of_module(module);
    module_clear(module);
    if (state && state->singleton_lock) {
        PyThread_free_lock(state->singleton_lock);
        state->singleton_lock = NULL;
    }
}

/* ---- the module ---------------------------------------------------------------------------- */

/* Slots that a CPython does not know are an error there: each has the ones of its version. */
static PyModuleDef_Slot slots_3_10[] = {
    {Py_mod_exec, module_exec},
    {0,           NULL       },
};

static PyModuleDef_Slot slots_3_12[] = {
    {Py_mod_exec,                  module_exec                         },
    {PM_MOD_MULTIPLE_INTERPRETERS, PM_MOD_PER_INTERPRETER_GIL_SUPPORTED},
    {0,                            NULL                                },
};

static PyModuleDef_Slot slots_3_13[] = {
    {Py_mod_exec,                  module_exec                         },
    {PM_MOD_MULTIPLE_INTERPRETERS, PM_MOD_PER_INTERPRETER_GIL_SUPPORTED},
    {PM_MOD_GIL,                   PM_MOD_GIL_NOT_USED                 },
    {0,                            NULL                                },
};

/* For the package's own modules. */
static PyMethodDef module_methods[] = {
    {"_resolve", pm_resolve, METH_O, "The socket addresses of a host name, as bytes."},
    {"_listening_ports", pm_listening_ports, METH_O,
     "Those of the ports on which something listens, on any local address: a set."},
    {"_reserve", pm_reserve, METH_VARARGS,
     "(count, consecutive, key, label, first, last): a search for ports to hold."},
    {"_reserved_ports", pm_reserved_ports, METH_VARARGS,
     "(first, last): [(port, label, pid, since)] of what is held on this machine."},
    {"_log", pm_log_text, METH_VARARGS, "(level, text): a line for the logger `portmanager`."},
    {"_override", pm_override, METH_O, "The override of a manager's is_port_available, or None."},
    {0},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "portmanager._native",
    .m_doc = "The extension behind portmanager; its public names are the package's.",
    .m_size = sizeof(pm_state),
    .m_methods = module_methods,
    .m_slots = slots_3_10,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

/* The version that runs, which with the limited API need not be the one that compiled this. */
static int running_minor(void)
{
    int major = 0, minor = 0;
    return sscanf(Py_GetVersion(), "%d.%d", &major, &minor) == 2 ? minor : 10;
}

/* NOLINTNEXTLINE(misc-use-internal-linkage) */
PyMODINIT_FUNC PyInit__native(void)
{
    int minor = running_minor();

    module_def.m_slots = minor >= 13 ? slots_3_13 : minor >= 12 ? slots_3_12 : slots_3_10;
    return PyModuleDef_Init(&module_def);
}
