#include "ext/loop.h"

int pm_loop_running(pm_state *state, PyObject **loop)
{
    PyObject *asyncio = PyImport_GetModule(state->names.asyncio);

    *loop = NULL;
    if (!asyncio) {
        return PyErr_Occurred() ? -1 : 0;
    }
    *loop = PyObject_CallMethodObjArgs(asyncio, state->names._get_running_loop, NULL);
    Py_DECREF(asyncio);
    if (*loop == Py_None) {
        Py_CLEAR(*loop);
        return 0;
    }
    if (!*loop && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear(); /* another thread is importing it: nobody runs a loop yet */
        return 0;
    }
    return *loop ? 1 : -1;
}

PyObject *pm_loop_sleep(pm_state *state, double seconds)
{
    PyObject *asyncio = PyImport_Import(state->names.asyncio), *pause;
    if (!asyncio) {
        return NULL;
    }
    pause = PyObject_CallMethod(asyncio, "sleep", "d", seconds);
    Py_DECREF(asyncio);
    return pause;
}

/* loop.run_in_executor(None, function, *arguments) */
static PyObject *in_executor(pm_state *state, PyObject *loop, PyObject *function,
                             PyObject *arguments)
{
    PyObject *method = PyObject_GetAttr(loop, state->names.run_in_executor);
    PyObject *head = PyTuple_Pack(2, Py_None, function);
    PyObject *all = head ? PySequence_Concat(head, arguments) : NULL, *future = NULL;

    if (method && all) {
        future = PyObject_Call(method, all, NULL);
    }
    Py_XDECREF(all);
    Py_XDECREF(head);
    Py_XDECREF(method);
    return future;
}

int pm_loop_run_in_thread(pm_state *state, PyObject *function, PyObject *arguments, PyObject **out)
{
    PyObject *loop;
    int running = pm_loop_running(state, &loop);

    if (running < 0) {
        return -1;
    }
    *out = running ? in_executor(state, loop, function, arguments)
                   : PyObject_Call(function, arguments, NULL);
    Py_XDECREF(loop);
    return *out ? running : -1;
}

void pm_loop_settle(pm_state *state, PyObject *future, PyObject *value)
{
    PyObject *done = PyObject_CallMethodObjArgs(future, state->names.done, NULL), *result = NULL;

    if (done && PyObject_IsTrue(done) == 0) {
        result = PyObject_CallMethodObjArgs(future, state->names.set_result, value, NULL);
    }
    Py_XDECREF(done);
    Py_XDECREF(result);
    PyErr_Clear(); /* its loop is closed: nobody waits any more */
}
