#include "ext/function.h"

#include <stdbool.h>

#include "ext/coroutine.h"

static pm_state *state_of(const pm_function *self)
{
    return pm_state_of_module(self->module);
}

PyObject *pm_spec_qualname(const pm_function_spec *spec)
{
    return spec->owner ? PyUnicode_FromFormat("%s.%s", spec->owner, spec->name)
                       : PyUnicode_FromString(spec->name);
}

/* `owner.name` of the declarations, or `name` alone: a new reference. */
static PyObject *declared(pm_state *state, const char *owner_name, const char *name)
{
    PyObject *module = pm_declarations(state), *owner, *found;

    if (!module) {
        return NULL;
    }
    owner = owner_name ? PyObject_GetAttrString(module, owner_name) : Py_NewRef(module);
    found = owner ? PyObject_GetAttrString(owner, name) : NULL;
    Py_XDECREF(owner);
    return found;
}

PyObject *pm_spec_declared(pm_state *state, const pm_function_spec *spec, const char *attribute)
{
    PyObject *function = declared(state, spec->owner, spec->name), *value;
    value = function ? PyObject_GetAttrString(function, attribute) : NULL;
    Py_XDECREF(function);
    return value;
}

/* ---- calls ------------------------------------------------------------------------------- */

/* Which parameter has this name; -1: none. */
static Py_ssize_t parameter_index(const pm_function *self, PyObject *name)
{
    Py_ssize_t count = PyTuple_Size(self->parameters);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (PyTuple_GetItem(self->parameters, i) == name) {
            return i;
        }
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (PyUnicode_Compare(PyTuple_GetItem(self->parameters, i), name) == 0) {
            return i;
        }
    }
    return -1;
}

/* Puts a call's arguments into the order of the parameters; false if they do not fit. */
static bool arrange(const pm_function *self, PyObject *args, PyObject *kwargs,
                    PyObject *arguments[PM_PARAMETERS_MAX])
{
    Py_ssize_t given = PyTuple_Size(args), at = 0;
    PyObject *name, *value;

    if (given > PyTuple_Size(self->parameters)) {
        return false;
    }
    for (Py_ssize_t i = 0; i < PM_PARAMETERS_MAX; i++) {
        arguments[i] = i < given ? PyTuple_GetItem(args, i) : NULL;
    }
    while (kwargs && PyDict_Next(kwargs, &at, &name, &value)) {
        Py_ssize_t index = PyUnicode_Check(name) ? parameter_index(self, name) : -1;
        if (index < 0 || arguments[index]) {
            return false;
        }
        arguments[index] = value;
    }
    for (int i = 0; i < self->spec->required; i++) {
        if (!arguments[i]) {
            return false;
        }
    }
    return true;
}

/* Lets Python word the TypeError of a call that does not fit. */
static PyObject *refuse(const pm_function *self, PyObject *args, PyObject *kwargs)
{
    const pm_function_spec *spec = self->spec;
    PyObject *function = declared(state_of(self), spec->owner, spec->name), *result;
    if (!function) {
        return NULL;
    }
    result = PyObject_Call(function, args, kwargs);
    Py_DECREF(function);
    if (result) {
        Py_DECREF(result);
        PyErr_Format(PyExc_SystemError, "the declaration of %s() does not match its code",
                     spec->name);
    }
    return NULL;
}

static bool is_manager_method(const pm_function_spec *spec)
{
    return spec->owner && strcmp(spec->owner, "PortManager") == 0;
}

static PyObject *function_call(pm_function *self, PyObject *args, PyObject *kwargs)
{
    PyObject *arguments[PM_PARAMETERS_MAX], *result;
    const pm_function_spec *spec = self->spec;
    pm_state *state = state_of(self);

    if (!arrange(self, args, kwargs, arguments)) {
        return refuse(self, args, kwargs);
    }
    if (is_manager_method(spec) && !PyObject_TypeCheck(arguments[0], state->manager_type)) {
        return PyErr_Format(PyExc_TypeError,
                            "PortManager.%s() is for PortManager objects, not for %R", spec->name,
                            (PyObject *)Py_TYPE(arguments[0]));
    }
    if (spec->kind) {
        return pm_coroutine_new(state, spec, arguments);
    }
    /* A keyword's value is only borrowed from a dict that other code may reach. */
    for (int i = 0; i < PM_PARAMETERS_MAX; i++) {
        Py_XINCREF(arguments[i]);
    }
    result = spec->call(state, spec, arguments);
    for (int i = 0; i < PM_PARAMETERS_MAX; i++) {
        Py_XDECREF(arguments[i]);
    }
    return result;
}

static PyObject *function_bind(PyObject *self, PyObject *instance, PyObject *type)
{
    (void)type;
    if (!instance || instance == Py_None) {
        return Py_NewRef(self);
    }
    return PyObject_CallFunctionObjArgs(state_of((pm_function *)self)->types_method, self, instance,
                                        NULL);
}

/* ---- attributes -------------------------------------------------------------------------- */

static PyObject *get_name(pm_function *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(self->spec->name);
}

static PyObject *get_qualname(pm_function *self, void *unused)
{
    (void)unused;
    return pm_spec_qualname(self->spec);
}

static PyObject *get_module(pm_function *self, void *unused)
{
    (void)self, (void)unused;
    return PyUnicode_FromString("portmanager");
}

static PyObject *get_class(pm_function *self, void *unused)
{
    (void)unused;
    return Py_NewRef(state_of(self)->types_function);
}

static PyObject *get_declared(pm_function *self, void *attribute)
{
    return pm_spec_declared(state_of(self), self->spec, attribute);
}

#define GETTER(name, function, closure) {name, (getter)(function), NULL, NULL, closure}
#define DECLARED(name) GETTER(name, get_declared, name)

static PyGetSetDef function_getset[] = {
    GETTER("__name__", get_name, NULL),
    GETTER("__qualname__", get_qualname, NULL),
    GETTER("__module__", get_module, NULL),
    GETTER("__class__", get_class, NULL),
    DECLARED("__doc__"),
    DECLARED("__code__"),
    DECLARED("__defaults__"),
    DECLARED("__kwdefaults__"),
    DECLARED("__annotations__"),
    DECLARED("__globals__"),
    DECLARED("__closure__"),
    DECLARED("__builtins__"),
    DECLARED("__type_params__"),
    DECLARED("__wrapped__"), /* of a __repr__: pprint knows a dataclass by it */
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {0},
};

static PyMemberDef function_members[] = {
    {"__dictoffset__", T_PYSSIZET, offsetof(pm_function, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(pm_function, weakrefs), READONLY, NULL},
    {0},
};

static PyObject *function_reduce(pm_function *self, PyObject *unused)
{
    (void)unused;
    return pm_spec_qualname(self->spec);
}

static PyMethodDef function_methods[] = {
    {"__reduce__", (PyCFunction)function_reduce, METH_NOARGS, NULL},
    {0},
};

static PyObject *function_repr(pm_function *self)
{
    PyObject *name = pm_spec_qualname(self->spec), *text;
    if (!name) {
        return NULL;
    }
    text = PyUnicode_FromFormat("<function %U at %p>", name, (void *)self);
    Py_DECREF(name);
    return text;
}

/* ---- life -------------------------------------------------------------------------------- */

PyObject *pm_function_new(PyObject *module, const pm_function_spec *spec)
{
    pm_state *state = pm_state_of_module(module);
    pm_function *self = (pm_function *)PyType_GenericAlloc(state->function_type, 0);
    Py_ssize_t count = 0;

    if (!self) {
        return NULL;
    }
    while (spec->parameters[count]) {
        count++;
    }
    self->spec = spec;
    self->module = Py_NewRef(module);
    self->parameters = PyTuple_New(count);
    for (Py_ssize_t i = 0; self->parameters && i < count; i++) {
        PyObject *name = PyUnicode_InternFromString(spec->parameters[i]);
        if (!name || PyTuple_SetItem(self->parameters, i, name) < 0) {
            Py_CLEAR(self->parameters);
        }
    }
    if (!self->parameters) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

int pm_functions_add(PyObject *module, PyObject *target, const pm_function_spec *table)
{
    for (; table->name; table++) {
        PyObject *function = pm_function_new(module, table);
        if (!function) {
            return -1;
        }
        int result = PyObject_SetAttrString(target, table->name, function);
        Py_DECREF(function);
        if (result < 0) {
            return -1;
        }
    }
    return 0;
}

static int function_traverse(pm_function *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->module);
    Py_VISIT(self->parameters);
    Py_VISIT(self->dict);
    return 0;
}

static int function_clear(pm_function *self)
{
    Py_CLEAR(self->dict);
    return 0;
}

static void function_dealloc(pm_function *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->weakrefs) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    function_clear(self);
    Py_XDECREF(self->parameters);
    Py_XDECREF(self->module);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyType_Slot function_slots[] = {
    {Py_tp_call,      function_call    },
    {Py_tp_descr_get, function_bind    },
    {Py_tp_repr,      function_repr    },
    {Py_tp_getset,    function_getset  },
    {Py_tp_members,   function_members },
    {Py_tp_methods,   function_methods },
    {Py_tp_traverse,  function_traverse},
    {Py_tp_clear,     function_clear   },
    {Py_tp_dealloc,   function_dealloc },
    {0,               NULL             },
};

PyType_Spec pm_function_type_spec = {
    .name = "portmanager._native.function",
    .basicsize = sizeof(pm_function),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_METHOD_DESCRIPTOR |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = function_slots,
};

/* ---- class attributes --------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *module;
    const char *owner;
    const char *attribute;
} pm_declared;

int pm_declared_add(PyObject *module, PyObject *class, const char *owner, const char *attribute)
{
    pm_state *state = pm_state_of_module(module);
    pm_declared *self = (pm_declared *)PyType_GenericAlloc(state->declared_type, 0);

    if (!self) {
        return -1;
    }
    self->module = Py_NewRef(module);
    self->owner = owner;
    self->attribute = attribute;
    int result = PyObject_SetAttrString(class, attribute, (PyObject *)self);
    Py_DECREF(self);
    return result;
}

static PyObject *declared_get(pm_declared *self, PyObject *instance, PyObject *type)
{
    pm_state *state = pm_state_of_module(self->module);
    PyObject *value = declared(state, self->owner, self->attribute);

    (void)type;
    if (value && instance && (PyObject *)Py_TYPE(value) == state->types_function) {
        pm_set(&value, PyObject_CallFunctionObjArgs(state->types_method, value, instance, NULL));
    }
    return value;
}

static int declared_traverse(pm_declared *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->module);
    return 0;
}

static void declared_dealloc(pm_declared *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->module);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyType_Slot declared_slots[] = {
    {Py_tp_descr_get, declared_get     },
    {Py_tp_traverse,  declared_traverse},
    {Py_tp_dealloc,   declared_dealloc },
    {0,               NULL             },
};

PyType_Spec pm_declared_type_spec = {
    .name = "portmanager._native.declared",
    .basicsize = sizeof(pm_declared),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = declared_slots,
};
