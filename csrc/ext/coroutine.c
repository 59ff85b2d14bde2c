#include "ext/coroutine.h"

#include <stdbool.h>

#include "ext/raise.h"

enum { DEPTH_MAX = 500 };

/* Gives up what a coroutine needs for running. */
static void drop(pm_coroutine *self)
{
    Py_CLEAR(self->awaiting);
    Py_CLEAR(self->awaited);
    for (int i = 0; i < PM_VARS_MAX; i++) {
        Py_CLEAR(self->vars[i]);
    }
    PyMem_Free(self->frame);
    self->frame = NULL;
}

/* The stack of the call, `depth` frames deep, as ((file, line, function), ...). */
static PyObject *trace_origin(long depth)
{
    PyObject *getframe = PySys_GetObject("_getframe"); /* borrowed */
    PyObject *frame = getframe ? PyObject_CallFunction(getframe, "i", 0) : NULL;
    PyObject *entries = frame ? PyList_New(0) : NULL, *origin = NULL;

    while (entries && frame && frame != Py_None && depth-- > 0) {
        PyObject *code = PyObject_GetAttrString(frame, "f_code");
        PyObject *file = code ? PyObject_GetAttrString(code, "co_filename") : NULL;
        PyObject *name = file ? PyObject_GetAttrString(code, "co_name") : NULL;
        PyObject *line = name ? PyObject_GetAttrString(frame, "f_lineno") : NULL;
        PyObject *entry = line ? PyTuple_Pack(3, file, line, name) : NULL;
        if (!entry || PyList_Append(entries, entry) < 0) {
            Py_CLEAR(entries);
        }
        Py_XDECREF(entry);
        Py_XDECREF(line);
        Py_XDECREF(name);
        Py_XDECREF(file);
        Py_XDECREF(code);
        pm_set(&frame, PyObject_GetAttrString(frame, "f_back"));
    }
    if (entries && frame) {
        origin = PyList_AsTuple(entries);
    }
    Py_XDECREF(entries);
    Py_XDECREF(frame);
    return origin;
}

/* Notes where the coroutine is made, if this thread tracks that (asyncio's debug mode does). */
static int note_origin(pm_coroutine *self)
{
    PyObject *depth = PyObject_CallNoArgs(self->module_state->get_origin_depth);
    long number = depth ? PyLong_AsLong(depth) : -1;

    Py_XDECREF(depth);
    if (number > 0) {
        self->origin = trace_origin(number);
    }
    return PyErr_Occurred() ? -1 : 0;
}

PyObject *pm_coroutine_new(pm_state *state, const pm_function_spec *spec,
                           PyObject *const *arguments)
{
    pm_coroutine *self = (pm_coroutine *)PyType_GenericAlloc(state->coroutine_type, 0);

    if (!self) {
        return NULL;
    }
    self->spec = spec;
    self->module_state = state;
    self->life = PM_CLOSED; /* until it is complete: no warning */
    for (int i = 0; i < PM_PARAMETERS_MAX; i++) {
        self->vars[i] = Py_XNewRef(arguments[i]);
    }
    if (spec->kind->frame_size) {
        self->frame = PyMem_Calloc(1, spec->kind->frame_size);
        if (!self->frame) {
            PyErr_NoMemory();
        }
    }
    if (PyErr_Occurred() || note_origin(self) < 0) {
        drop(self);
        Py_DECREF(self);
        return NULL;
    }
    self->life = PM_CREATED;
    return (PyObject *)self;
}

/* ---- the end ------------------------------------------------------------------------------ */

/* Closed for good: the step's end runs once, with the exception of the moment set aside. */
static void finish(pm_coroutine *self)
{
    PyObject *type, *value, *traceback;
    bool started = self->life != PM_CREATED;

    if (self->life == PM_CLOSED) {
        return;
    }
    PyErr_Fetch(&type, &value, &traceback);
    self->life = PM_CLOSED;
    Py_CLEAR(self->awaiting);
    Py_CLEAR(self->awaited);
    if (started && self->spec->kind->end) {
        self->spec->kind->end(self);
    }
    drop(self);
    PyErr_Restore(type, value, traceback);
}

static void warn_never_awaited(pm_coroutine *self)
{
    PyObject *type, *value, *traceback, *qualname, *warnings = NULL, *result = NULL;

    PyErr_Fetch(&type, &value, &traceback);
    qualname = PyObject_GetAttrString((PyObject *)self, "__qualname__");
    if (qualname && self->origin) {
        /* Python's own words, with the stack. */
        warnings = PyImport_ImportModule("warnings");
        result =
            warnings ? PyObject_CallMethod(warnings, "_warn_unawaited_coroutine", "O", self) : NULL;
    } else if (qualname) {
        PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine '%U' was never awaited", qualname);
    }
    if (PyErr_Occurred()) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    Py_XDECREF(result);
    Py_XDECREF(warnings);
    Py_XDECREF(qualname);
    PyErr_Restore(type, value, traceback);
}

void pm_coroutine_finalize(pm_coroutine *self)
{
    if (self->life == PM_CREATED) {
        warn_never_awaited(self);
    }
    finish(self);
    Py_CLEAR(self->name);
    Py_CLEAR(self->qualname);
    Py_CLEAR(self->origin);
}

/* ---- running ------------------------------------------------------------------------------ */

/* The iterator that `await` runs. What has no __await__ is given to a real coroutine that awaits
 * it: that knows generator-based coroutines, and how this Python words the TypeError. */
static PyObject *await_iterator(pm_state *state, PyObject *awaitable)
{
    unaryfunc await = (unaryfunc)PyType_GetSlot(Py_TYPE(awaitable), Py_am_await);
    PyObject *declarations, *proxy, *iterator;

    if (await) {
        iterator = await(awaitable);
        if (iterator && !PyIter_Check(iterator)) {
            PyErr_Format(PyExc_TypeError, "__await__() returned a non-iterator: %R", iterator);
            Py_CLEAR(iterator);
        }
        return iterator;
    }
    declarations = pm_declarations(state);
    proxy = declarations ? PyObject_CallMethod(declarations, "awaiting", "O", awaitable) : NULL;
    iterator = proxy ? await_iterator(state, proxy) : NULL;
    Py_XDECREF(proxy);
    return iterator;
}

/* Calls a method of what is awaited: 1 with its result, 0 if there is no such method, -1. */
static int call_awaited(pm_coroutine *self, const char *name, PyObject *arguments,
                        PyObject **result)
{
    PyObject *method = PyObject_GetAttrString(self->awaiting, name);

    if (!method) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
            return -1;
        }
        PyErr_Clear();
        return 0;
    }
    *result = PyObject_CallObject(method, arguments);
    Py_DECREF(method);
    return *result ? 1 : -1;
}

/* Throws into what is awaited, as `yield from` does: GeneratorExit closes it and goes on here.
 * PYGEN_ERROR: the exception that is set is what the step receives. */
static PySendResult throw_into_awaited(pm_coroutine *self, PyObject *thrown, PyObject **result)
{
    int called;

    if (PyErr_GivenExceptionMatches(PyTuple_GetItem(thrown, 0), PyExc_GeneratorExit)) {
        called = call_awaited(self, "close", NULL, result);
        Py_CLEAR(*result);
        if (called >= 0) {
            pm_raise_thrown(thrown);
        }
        return PYGEN_ERROR;
    }
    called = call_awaited(self, "throw", thrown, result);
    if (called == 0) {
        pm_raise_thrown(thrown);
    }
    if (called > 0) {
        return PYGEN_NEXT;
    }
    return pm_fetch_stop_iteration(result) ? PYGEN_RETURN : PYGEN_ERROR;
}

/* One send, or one throw where `thrown` is given: runs steps until one is done, fails, or what
 * it awaits yields. */
static PySendResult run_steps(pm_coroutine *self, PyObject *value, PyObject *thrown,
                              PyObject **result)
{
    const pm_coroutine_kind *kind = self->spec->kind;
    PyObject *received = NULL, *out;

    self->life = PM_RUNNING;
    for (;;) {
        if (self->awaiting) {
            PySendResult sent = thrown ? throw_into_awaited(self, thrown, &received)
                                       : PyIter_Send(self->awaiting, value, &received);
            if (sent == PYGEN_NEXT) {
                *result = received;
                self->life = PM_SUSPENDED;
                return PYGEN_NEXT;
            }
            Py_CLEAR(self->awaiting);
        }
        Py_CLEAR(self->awaited);
        out = NULL;
        pm_outcome outcome = kind->step(self, received, &out);
        Py_CLEAR(received);
        if (outcome != PM_AWAIT) {
            if (outcome == PM_ERROR && PyErr_ExceptionMatches(PyExc_StopIteration)) {
                pm_raise_from_current(PyExc_RuntimeError, "coroutine raised StopIteration");
            }
            finish(self);
            if (outcome == PM_ERROR) {
                Py_CLEAR(out);
            }
            *result = out;
            return outcome == PM_DONE ? PYGEN_RETURN : PYGEN_ERROR;
        }
        /* Without an iterator, the step receives the TypeError. */
        self->awaited = out;
        self->awaiting = await_iterator(self->module_state, out);
        value = Py_None;
        thrown = NULL;
    }
}

/* Coroutines that await each other without end must not overrun the C stack: the interpreter's
 * own limit counts with the frames of Python, ours keeps within any stack. */
static PySendResult run(pm_coroutine *self, PyObject *value, PyObject *thrown, PyObject **result)
{
    static _Thread_local int depth;
    PySendResult sent = PYGEN_ERROR;

    if (depth >= DEPTH_MAX) {
        PyErr_SetString(PyExc_RecursionError,
                        "maximum recursion depth exceeded while awaiting a coroutine");
    } else if (Py_EnterRecursiveCall(" while awaiting a coroutine") == 0) {
        depth++;
        sent = run_steps(self, value, thrown, result);
        depth--;
        Py_LeaveRecursiveCall();
        return sent;
    }
    finish(self);
    return sent;
}

/* True if nobody else is running it. */
static bool claim(pm_coroutine *self)
{
    /* An exchange, since free-threaded callers may come at once. */
    if (atomic_exchange(&self->running, true)) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return false;
    }
    return true;
}

PySendResult pm_coroutine_send(pm_coroutine *self, PyObject *value, PyObject **result)
{
    PySendResult sent = PYGEN_ERROR;

    *result = NULL;
    if (!claim(self)) {
        return PYGEN_ERROR;
    }
    if (self->life == PM_CLOSED) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
    } else if (self->life == PM_CREATED && value != Py_None) {
        PyErr_SetString(PyExc_TypeError, "can't send non-None value to a just-started coroutine");
    } else {
        sent = run(self, value, NULL, result);
    }
    atomic_store(&self->running, false);
    return sent;
}

PySendResult pm_coroutine_throw(pm_coroutine *self, PyObject *thrown, PyObject **result)
{
    PySendResult sent = PYGEN_ERROR;

    *result = NULL;
    if (!claim(self)) {
        return PYGEN_ERROR;
    }
    if (self->life == PM_SUSPENDED) {
        sent = run(self, NULL, thrown, result);
    } else if (pm_raise_thrown(thrown)) {
        if (self->life == PM_CLOSED) {
            PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        } else if (PyErr_ExceptionMatches(PyExc_StopIteration)) {
            pm_raise_from_current(PyExc_RuntimeError, "coroutine raised StopIteration");
        }
        finish(self); /* before its first step: the exception is all that comes of it */
    }
    atomic_store(&self->running, false);
    return sent;
}
