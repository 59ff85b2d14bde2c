/* Passive looking for Python code of the package. */
#ifndef PM_LOOKING_H
#define PM_LOOKING_H

#include "ext/python.h"

/* _listening_ports(ports: Iterable[int]) -> set[int]; gives up the GIL. OSError when the
 * kernel does not tell. */
PyObject *pm_listening_ports(PyObject *module, PyObject *iterable);

#endif
