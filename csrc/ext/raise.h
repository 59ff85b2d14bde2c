/* Exceptions that are put together by hand. */
#ifndef PM_RAISE_H
#define PM_RAISE_H

#include <stdbool.h>

#include "core/status.h"
#include "ext/python.h"

/* Is StopIteration set? Then it is cleared and its value, a new reference, put in *value. */
bool pm_fetch_stop_iteration(PyObject **value);

/* Raises StopIteration(value), whatever the value is. */
void pm_set_stop_iteration(PyObject *value);

/* Raises `type(message)` in place of the exception that is set, which becomes its cause. */
void pm_raise_from_current(PyObject *type, const char *message);

/* Raises what was given to throw(type[, value[, traceback]]), a tuple; sets a TypeError and says
 * false if that is no exception. */
bool pm_raise_thrown(PyObject *thrown);

/* Raises OSError(error, message); the reference to the message is taken over, NULL is an exception
 * already. */
void pm_raise_os_error(int error, PyObject *message);

/* Raises OSError(errno, ...) for a status whose answer is not known; `doing` and the port say
 * what was tried. Always NULL. */
PyObject *pm_raise_unknown(const char *doing, long port);

#endif
