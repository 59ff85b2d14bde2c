#include "ext/log.h"

#include <stdarg.h>
#include <stdbool.h>

#include "core/ledger.h"

/* The logger, or NULL: nobody can be listening, or with an exception set. A borrowed reference,
 * the state's. */
static PyObject *logger_for(pm_state *state, int level)
{
    PyObject *logging;

    if (state->logger) {
        return state->logger;
    }
    logging = level < PM_WARNING ? PyImport_GetModule(state->names.logging)
                                 : PyImport_Import(state->names.logging);
    if (logging) {
        PyObject *logger = PyObject_CallMethod(logging, "getLogger", "s", "portmanager");
        Py_DECREF(logging);
        if (!logger && level < PM_WARNING && PyErr_ExceptionMatches(PyExc_AttributeError)) {
            PyErr_Clear(); /* another thread is importing it */
        }
        if (state->logger) {
            Py_XDECREF(logger); /* another thread was first; getLogger gives one object */
        } else {
            state->logger = logger;
        }
    }
    return state->logger;
}

static bool is_enabled(pm_state *state, PyObject *logger, int level)
{
    PyObject *number = PyLong_FromLong(level), *answer;
    answer =
        number ? PyObject_CallMethodObjArgs(logger, state->names.isEnabledFor, number, NULL) : NULL;
    bool enabled = answer && PyObject_IsTrue(answer) == 1;
    Py_XDECREF(number);
    Py_XDECREF(answer);
    return enabled;
}

/* What a handler raised is not the caller's business, but for Ctrl-C: that is pressed again. */
static void report(PyObject *logger)
{
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
        PyErr_Clear();
        PyErr_SetInterrupt();
    } else {
        PyErr_WriteUnraisable(logger);
    }
}

void pm_log(pm_state *state, int level, const char *format, ...)
{
    PyObject *type, *value, *traceback, *logger, *text = NULL, *line = NULL, *result = NULL;
    va_list arguments;

    PyErr_Fetch(&type, &value, &traceback);
    logger = logger_for(state, level);
    if (logger && is_enabled(state, logger, level)) {
        va_start(arguments, format);
        text = PyUnicode_FromFormatV(format, arguments);
        va_end(arguments);
        line = text ? PyUnicode_FromFormat("[PortManager] %U", text) : NULL;
        if (line) {
            result = PyObject_CallMethod(logger, "log", "iO", level, line);
        }
    }
    if (PyErr_Occurred()) {
        report(logger);
    }
    Py_XDECREF(result);
    Py_XDECREF(line);
    Py_XDECREF(text);
    PyErr_Restore(type, value, traceback);
}

PyObject *pm_log_text(PyObject *module, PyObject *arguments)
{
    PyObject *text;
    int level;

    if (!PyArg_ParseTuple(arguments, "iU", &level, &text)) {
        return NULL;
    }
    pm_log(pm_state_of_module(module), level, "%U", text);
    Py_RETURN_NONE;
}

void pm_log_ledger(pm_state *state)
{
    pm_trouble trouble;

    if (pm_ledger_notice(&trouble)) {
        pm_log(state, PM_WARNING, "%s", trouble.text);
    }
}
