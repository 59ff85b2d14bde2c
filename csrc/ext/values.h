/* Python's values, checked and turned into C's. Errors name the value and what is expected. */
#ifndef PM_VALUES_H
#define PM_VALUES_H

#include <stdbool.h>

#include "ext/module.h"

/* A port: an integer (anything with __index__) in lowest..65535, `lowest` being 0 or 1.
 * TypeError or ValueError naming `what`, and false, otherwise. */
bool pm_port_from(PyObject *value, const char *what, long lowest, long *port);

/* A count: an integer, cut to what a C long can hold; the same TypeError. */
bool pm_count_from(PyObject *value, const char *what, long *number);

/* Seconds, infinity included; TypeError for what is no number, ValueError for NaN. */
bool pm_seconds_from(PyObject *value, const char *what, double *seconds);

/* The UTF-8 text of a host, alive as long as the object. NULL with TypeError if it is no str,
 * with ValueError if it holds a NUL or a lone surrogate. */
const char *pm_host_text(PyObject *host);

/* The value's repr, or its type's name where that fails. Always a new reference, but for want
 * of memory. */
PyObject *pm_safe_repr(PyObject *value);

/* mapping[key]: 1 with a new reference, 0 if there is none, -1 on another error. */
int pm_mapping_get(PyObject *mapping, PyObject *key, PyObject **value);

/* mapping.pop(key, None), the value dropped. */
int pm_mapping_remove(PyObject *mapping, PyObject *key);

/* [(key, value)]: a new list of pairs that nobody else has. TypeError if the mapping's items are
 * none. */
PyObject *pm_mapping_items(PyObject *mapping);

/* mapping.clear() */
int pm_mapping_clear(PyObject *mapping);

/* Is an object an allocation with status 'allocated'? Then its port is in *port. 1, 0, or -1
 * with an exception that is not an Exception (KeyboardInterrupt for example). */
int pm_allocated_port(pm_state *state, PyObject *allocation, long *port);

/* Clears an exception derived from Exception and says true; leaves others set. */
bool pm_clear_exception(void);

#endif
