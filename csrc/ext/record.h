/* PortConfig, PortAllocation, PortStatus and PortManagerConfig: whatever a @dataclass with these
 * fields does. One implementation; record.c has a table of the four.
 *
 * An instance keeps its fields in its __dict__, a class its defaults as attributes, and
 * __init__, __repr__ and __eq__ are pm_functions. What the dataclasses module looks for comes
 * from the real dataclass of the same name in portmanager/_declarations.py. */
#ifndef PM_RECORD_H
#define PM_RECORD_H

#include "ext/module.h"

enum { PM_FIELDS_MAX = 5 };

/* Makes the four classes and puts them into the state. */
int pm_records_init(PyObject *module);

/* A record of the class itself; `values` are as many as it has fields, and stay the caller's.
 * A new reference. */
PyObject *pm_record_new(pm_state *state, pm_record_kind kind, PyObject *const *values);

/* The same with every field at its default; for PortManagerConfig. */
PyObject *pm_record_new_default(pm_state *state, pm_record_kind kind);

/* copy.copy(record), without the module for a record of the class itself. A new reference. */
PyObject *pm_record_copy(pm_state *state, pm_record_kind kind, PyObject *record);

#endif
