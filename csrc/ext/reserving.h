/* reserve() and reserved_ports(), as far as they are not portmanager/_reservation.py's. */
#ifndef PM_RESERVING_H
#define PM_RESERVING_H

#include "ext/python.h"

/* Ports that are held until release() or the object's end: .ports, a tuple; .found, how many there
 * were; .wanted, .borrowed, .ephemeral as pm_reservation's; .forbidden: did one need a privilege? Without ports when there were not
 * enough. */
extern PyType_Spec pm_held_type_spec;

/* _reserve(count: int, consecutive: bool, key: bytes | None, label: bytes | None, first: int,
 *          last: int) -> _Held
 * Gives up the GIL for a long search. OSError when the answer is not known. */
PyObject *pm_reserve(PyObject *module, PyObject *arguments);

/* _reserved_ports(first: int, last: int) -> list of (port, label, pid, since); label and pid may
 * be None, since is in seconds since the epoch. */
PyObject *pm_reserved_ports(PyObject *module, PyObject *arguments);

#endif
