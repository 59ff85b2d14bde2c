#include "ext/coroutine.h"

#include "ext/raise.h"

PyObject *pm_coroutine_new(pm_state *state, pm_function *function, PyObject *const *arguments)
{
    const pm_coroutine_kind *kind = function->spec->kind;
    pm_coroutine *self = (pm_coroutine *)PyType_GenericAlloc(state->coroutine_type, 0);

    if (!self) {
        return NULL;
    }
    self->kind = kind;
    self->module_state = state;
    self->function = (pm_function *)Py_NewRef((PyObject *)function);
    self->life = PM_CREATED;
    for (int i = 0; i < PM_PARAMETERS_MAX; i++) {
        self->vars[i] = Py_XNewRef(arguments[i]);
    }
    if (kind->frame_size) {
        self->frame = PyMem_Calloc(1, kind->frame_size);
        if (!self->frame) {
            self->life = PM_CLOSED; /* nobody has seen it: no warning */
            Py_DECREF(self);
            return PyErr_NoMemory();
        }
    }
    return (PyObject *)self;
}

/* ---- the end ------------------------------------------------------------------------------ */

static void drop_references(pm_coroutine *self)
{
    Py_CLEAR(self->awaiting);
    Py_CLEAR(self->awaited);
    for (int i = 0; i < PM_VARS_MAX; i++) {
        Py_CLEAR(self->vars[i]);
    }
}

/* Closed for good: the step's end runs once, with the exception of the moment set aside. */
static void finish(pm_coroutine *self)
{
    PyObject *type, *value, *traceback;

    if (self->life == PM_CLOSED) {
        return;
    }
    PyErr_Fetch(&type, &value, &traceback);
    bool started = self->life != PM_CREATED;
    self->life = PM_CLOSED;
    Py_CLEAR(self->awaiting);
    Py_CLEAR(self->awaited);
    if (started && self->kind->end) {
        self->kind->end(self);
    }
    drop_references(self);
    PyErr_Restore(type, value, traceback);
}

static void warn_never_awaited(pm_coroutine *self)
{
    PyObject *type, *value, *traceback, *name;

    PyErr_Fetch(&type, &value, &traceback);
    name = pm_function_qualname(self->function);
    if (!name || PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine '%U' was never awaited",
                                  name) < 0) {
        PyErr_WriteUnraisable((PyObject *)self->function);
    }
    Py_XDECREF(name);
    PyErr_Restore(type, value, traceback);
}

void pm_coroutine_finalize(pm_coroutine *self)
{
    if (self->life == PM_CREATED) {
        warn_never_awaited(self);
    }
    finish(self);
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

/* Sends on to what is awaited; NULL sends the exception that is set. */
static PySendResult resume_awaited(pm_coroutine *self, PyObject *value, PyObject **result)
{
    PyObject *type, *exception, *traceback, *throw;

    *result = NULL;
    if (value) {
        return PyIter_Send(self->awaiting, value, result);
    }
    PyErr_Fetch(&type, &exception, &traceback);
    PyErr_NormalizeException(&type, &exception, &traceback);
    if (traceback) {
        PyException_SetTraceback(exception, traceback);
    }
    if (PyErr_GivenExceptionMatches(exception, PyExc_GeneratorExit)) {
        /* As `yield from`: what is awaited is closed, and the exception goes on here. */
        PyObject *closed = NULL, *close = PyObject_GetAttrString(self->awaiting, "close");
        if (close) {
            closed = PyObject_CallNoArgs(close);
            Py_DECREF(close);
        } else if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
            PyErr_Clear();
            closed = Py_NewRef(Py_None);
        }
        if (closed) {
            Py_DECREF(closed);
            PyErr_Restore(type, exception, traceback);
            return PYGEN_ERROR;
        }
    } else if ((throw = PyObject_GetAttrString(self->awaiting, "throw"))) {
        *result = PyObject_CallFunctionObjArgs(throw, exception, NULL);
        Py_DECREF(throw);
    } else if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Restore(type, exception, traceback);
        return PYGEN_ERROR;
    }
    Py_XDECREF(type);
    Py_XDECREF(exception);
    Py_XDECREF(traceback);
    if (*result) {
        return PYGEN_NEXT;
    }
    return pm_fetch_stop_iteration(result) ? PYGEN_RETURN : PYGEN_ERROR;
}

/* One send: runs steps until one is done, fails, or what it awaits yields. `value` NULL sends
 * the exception that is set. */
static PySendResult run(pm_coroutine *self, PyObject *value, PyObject **result)
{
    PyObject *received = NULL, *out;

    for (;;) {
        if (self->awaiting) {
            PySendResult sent = resume_awaited(self, value, &received);
            if (sent == PYGEN_NEXT) {
                *result = received;
                self->life = PM_SUSPENDED;
                return PYGEN_NEXT;
            }
            Py_CLEAR(self->awaiting);
        }
        Py_CLEAR(self->awaited);
        out = NULL;
        pm_outcome outcome = self->kind->step(self, received, &out);
        Py_CLEAR(received);
        if (outcome == PM_AWAIT) {
            self->awaiting = await_iterator(self->module_state, out);
            self->awaited = out;
            value = Py_None;
            continue; /* without an iterator, the step receives the TypeError */
        }
        if (outcome == PM_ERROR && PyErr_ExceptionMatches(PyExc_StopIteration)) {
            pm_raise_from_current(PyExc_RuntimeError, "coroutine raised StopIteration");
        }
        finish(self);
        *result = out;
        return outcome == PM_DONE ? PYGEN_RETURN : PYGEN_ERROR;
    }
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
    } else if (self->life == PM_CREATED && value && value != Py_None) {
        PyErr_SetString(PyExc_TypeError, "can't send non-None value to a just-started coroutine");
    } else {
        self->life = PM_RUNNING;
        sent = run(self, value, result);
    }
    atomic_store(&self->running, false);
    return sent;
}

PySendResult pm_coroutine_throw(pm_coroutine *self, PyObject **result)
{
    PySendResult sent = PYGEN_ERROR;

    *result = NULL;
    if (!claim(self)) {
        return PYGEN_ERROR;
    }
    if (self->life == PM_CLOSED) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
    } else if (self->life == PM_CREATED) {
        finish(self); /* raised before the first line */
    } else {
        self->life = PM_RUNNING;
        sent = run(self, NULL, result);
    }
    atomic_store(&self->running, false);
    return sent;
}
