/* What Python sees of a coroutine: its methods and attributes, and the iterator that its
 * __await__ returns. */
#include "ext/coroutine.h"
#include "ext/raise.h"

static PyObject *method_result(PySendResult sent, PyObject *result)
{
    if (sent == PYGEN_RETURN) {
        pm_set_stop_iteration(result);
        Py_CLEAR(result);
    }
    return result;
}

static PyObject *coroutine_send(pm_coroutine *self, PyObject *value)
{
    PyObject *result;
    PySendResult sent = pm_coroutine_send(self, value, &result);
    return method_result(sent, result);
}

static PyObject *coroutine_throw(pm_coroutine *self, PyObject *args)
{
    PyObject *result;
    Py_ssize_t given = PyTuple_Size(args);

    if (given < 1 || given > 3) {
        return PyErr_Format(PyExc_TypeError, "throw expected %s %d argument%s, got %zd",
                            given ? "at most" : "at least", given ? 3 : 1, given ? "s" : "", given);
    }
    if (given > 1 && self->module_state->minor >= 12 &&
        PyErr_WarnEx(PyExc_DeprecationWarning,
                     "the (type, exc, tb) signature of throw() is deprecated, "
                     "use the single-arg signature instead.",
                     1) < 0) {
        return NULL;
    }
    PySendResult sent = pm_coroutine_throw(self, args, &result);
    return method_result(sent, result);
}

static PyObject *coroutine_close(pm_coroutine *self, PyObject *unused)
{
    PyObject *exit, *result = NULL;
    PySendResult sent = PYGEN_ERROR;

    (void)unused;
    if (self->life == PM_CLOSED) {
        Py_RETURN_NONE;
    }
    exit = PyTuple_Pack(1, PyExc_GeneratorExit);
    if (exit) {
        sent = pm_coroutine_throw(self, exit, &result);
        Py_DECREF(exit);
    }
    Py_XDECREF(result);
    if (sent == PYGEN_NEXT) {
        PyErr_SetString(PyExc_RuntimeError, "coroutine ignored GeneratorExit");
        return NULL;
    }
    if (sent == PYGEN_ERROR) {
        if (!PyErr_ExceptionMatches(PyExc_GeneratorExit)) {
            return NULL;
        }
        PyErr_Clear();
    }
    Py_RETURN_NONE;
}

/* ---- attributes -------------------------------------------------------------------------- */

static PyObject *get_name(pm_coroutine *self, void *unused)
{
    (void)unused;
    return self->name ? Py_NewRef(self->name) : PyUnicode_FromString(self->spec->name);
}

static PyObject *get_qualname(pm_coroutine *self, void *unused)
{
    (void)unused;
    return self->qualname ? Py_NewRef(self->qualname) : pm_spec_qualname(self->spec);
}

static int set_text(PyObject **slot, const char *name, PyObject *value)
{
    if (!value || !PyUnicode_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be set to a string object", name);
        return -1;
    }
    pm_set(slot, Py_NewRef(value));
    return 0;
}

static int set_name(pm_coroutine *self, PyObject *value, void *unused)
{
    (void)unused;
    return set_text(&self->name, "__name__", value);
}

static int set_qualname(pm_coroutine *self, PyObject *value, void *unused)
{
    (void)unused;
    return set_text(&self->qualname, "__qualname__", value);
}

static PyObject *get_class(pm_coroutine *self, void *unused)
{
    (void)unused;
    return Py_NewRef(self->module_state->types_coroutine);
}

static PyObject *get_running(pm_coroutine *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->life == PM_RUNNING);
}

static PyObject *get_suspended(pm_coroutine *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->life == PM_SUSPENDED);
}

static PyObject *get_state(pm_coroutine *self, void *unused)
{
    static const char *const names[] = {
        [PM_CREATED] = "CORO_CREATED",
        [PM_SUSPENDED] = "CORO_SUSPENDED",
        [PM_RUNNING] = "CORO_RUNNING",
        [PM_CLOSED] = "CORO_CLOSED",
    };
    (void)unused;
    return PyUnicode_FromString(names[self->life]);
}

static PyObject *get_awaited(pm_coroutine *self, void *unused)
{
    (void)unused;
    return Py_NewRef(self->awaited ? self->awaited : Py_None);
}

static PyObject *get_code(pm_coroutine *self, void *unused)
{
    (void)unused;
    return pm_spec_declared(self->module_state, self->spec, "__code__");
}

static PyObject *get_origin(pm_coroutine *self, void *unused)
{
    (void)unused;
    return Py_NewRef(self->origin ? self->origin : Py_None);
}

/* There is no frame; what inspect and asyncio read of one is the declaration's place, and
 * whether the first step was taken. */
static PyObject *get_frame(pm_coroutine *self, void *unused)
{
    PyObject *code, *line, *globals, *fields = NULL, *arguments, *frame = NULL;

    (void)unused;
    if (self->life == PM_CLOSED) {
        Py_RETURN_NONE;
    }
    code = pm_spec_declared(self->module_state, self->spec, "__code__");
    line = code ? PyObject_GetAttrString(code, "co_firstlineno") : NULL;
    globals = line ? pm_spec_declared(self->module_state, self->spec, "__globals__") : NULL;
    if (globals) {
        fields = Py_BuildValue("{sOsOsOsOs{}sisOsO}", "f_code", code, "f_lineno", line, "f_back",
                               Py_None, "f_globals", globals, "f_locals", "f_lasti",
                               self->life == PM_CREATED ? -1 : 0, "f_trace", Py_None, "f_generator",
                               self);
    }
    arguments = fields ? PyTuple_New(0) : NULL;
    if (arguments) {
        frame = PyObject_Call(self->module_state->types_namespace, arguments, fields);
    }
    Py_XDECREF(arguments);
    Py_XDECREF(fields);
    Py_XDECREF(globals);
    Py_XDECREF(line);
    Py_XDECREF(code);
    return frame;
}

#define GETTER(name, function) {name, (getter)(function), NULL, NULL, NULL}

static PyGetSetDef coroutine_getset[] = {
    {"__name__", (getter)get_name, (setter)set_name, NULL, NULL},
    {"__qualname__", (getter)get_qualname, (setter)set_qualname, NULL, NULL},
    GETTER("__class__", get_class),
    GETTER("cr_running", get_running),
    GETTER("cr_suspended", get_suspended),
    GETTER("cr_state", get_state),
    GETTER("cr_await", get_awaited),
    GETTER("cr_code", get_code),
    GETTER("cr_origin", get_origin),
    GETTER("cr_frame", get_frame),
    {0},
};

static PyMemberDef coroutine_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(pm_coroutine, weakrefs), READONLY, NULL},
    {0},
};

static PyMethodDef coroutine_methods[] = {
    {"send", (PyCFunction)coroutine_send, METH_O, "Run until the next value is yielded."},
    {"throw", (PyCFunction)coroutine_throw, METH_VARARGS, "Raise an exception inside."},
    {"close", (PyCFunction)coroutine_close, METH_NOARGS, "Raise GeneratorExit inside."},
    {0},
};

static PyObject *coroutine_repr(pm_coroutine *self)
{
    PyObject *name = get_qualname(self, NULL), *text;
    if (!name) {
        return NULL;
    }
    text = PyUnicode_FromFormat("<coroutine object %U at %p>", name, (void *)self);
    Py_DECREF(name);
    return text;
}

/* ---- life -------------------------------------------------------------------------------- */

/* There is no dealloc: the interpreter's own calls finalize, which may hand the coroutine to
 * hooks that keep it, and frees it if none did. */

static int coroutine_traverse(pm_coroutine *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->name);
    Py_VISIT(self->qualname);
    Py_VISIT(self->origin);
    Py_VISIT(self->awaited);
    Py_VISIT(self->awaiting);
    for (int i = 0; i < PM_VARS_MAX; i++) {
        Py_VISIT(self->vars[i]);
    }
    return 0;
}

static int coroutine_clear(pm_coroutine *self)
{
    pm_coroutine_finalize(self);
    return 0;
}

/* ---- what __await__ returns ---------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    pm_coroutine *coroutine;
} pm_awaiter;

static PyObject *coroutine_await(pm_coroutine *self)
{
    if (self->life == PM_SUSPENDED) {
        PyErr_SetString(PyExc_RuntimeError, "coroutine is being awaited already");
        return NULL;
    }
    pm_awaiter *awaiter = (pm_awaiter *)PyType_GenericAlloc(self->module_state->awaiter_type, 0);
    if (awaiter) {
        awaiter->coroutine = (pm_coroutine *)Py_NewRef((PyObject *)self);
    }
    return (PyObject *)awaiter;
}

static PySendResult coroutine_am_send(PyObject *self, PyObject *value, PyObject **result)
{
    return pm_coroutine_send((pm_coroutine *)self, value, result);
}

static PySendResult awaiter_am_send(PyObject *self, PyObject *value, PyObject **result)
{
    return pm_coroutine_send(((pm_awaiter *)self)->coroutine, value, result);
}

static PyObject *awaiter_next(pm_awaiter *self)
{
    PyObject *result;
    PySendResult sent = pm_coroutine_send(self->coroutine, Py_None, &result);
    if (sent == PYGEN_RETURN && result == Py_None) {
        Py_CLEAR(result); /* no exception: StopIteration without a value */
        return NULL;
    }
    return method_result(sent, result);
}

static PyObject *awaiter_send(pm_awaiter *self, PyObject *value)
{
    return coroutine_send(self->coroutine, value);
}

static PyObject *awaiter_throw(pm_awaiter *self, PyObject *args)
{
    return coroutine_throw(self->coroutine, args);
}

static PyObject *awaiter_close(pm_awaiter *self, PyObject *unused)
{
    return coroutine_close(self->coroutine, unused);
}

static int awaiter_traverse(pm_awaiter *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->coroutine);
    return 0;
}

static void awaiter_dealloc(pm_awaiter *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->coroutine);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* Where a debugger walks along cr_await, it finds the coroutine's attributes. */
static PyObject *awaiter_getattr(pm_awaiter *self, PyObject *name)
{
    PyObject *value = PyObject_GenericGetAttr((PyObject *)self, name);
    if (!value && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        value = PyObject_GetAttr((PyObject *)self->coroutine, name);
    }
    return value;
}

static PyMethodDef awaiter_methods[] = {
    {"send", (PyCFunction)awaiter_send, METH_O, NULL},
    {"throw", (PyCFunction)awaiter_throw, METH_VARARGS, NULL},
    {"close", (PyCFunction)awaiter_close, METH_NOARGS, NULL},
    {0},
};

static PyType_Slot awaiter_slots[] = {
    {Py_tp_getattro, awaiter_getattr  },
    {Py_tp_iter,     PyObject_SelfIter},
    {Py_tp_iternext, awaiter_next     },
    {Py_am_send,     awaiter_am_send  },
    {Py_tp_methods,  awaiter_methods  },
    {Py_tp_traverse, awaiter_traverse },
    {Py_tp_dealloc,  awaiter_dealloc  },
    {0,              NULL             },
};

PyType_Spec pm_awaiter_type_spec = {
    .name = "portmanager._native.coroutine_wrapper",
    .basicsize = sizeof(pm_awaiter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = awaiter_slots,
};

static PyType_Slot coroutine_slots[] = {
    {Py_am_await,    coroutine_await      },
    {Py_am_send,     coroutine_am_send    },
    {Py_tp_repr,     coroutine_repr       },
    {Py_tp_getset,   coroutine_getset     },
    {Py_tp_members,  coroutine_members    },
    {Py_tp_methods,  coroutine_methods    },
    {Py_tp_traverse, coroutine_traverse   },
    {Py_tp_clear,    coroutine_clear      },
    {Py_tp_finalize, pm_coroutine_finalize},
    {0,              NULL                 },
};

PyType_Spec pm_coroutine_type_spec = {
    .name = "portmanager._native.coroutine",
    .basicsize = sizeof(pm_coroutine),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = coroutine_slots,
};
