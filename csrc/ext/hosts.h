/* The `host` parameter of methods: literals at once, names by the resolver in another thread. */
#ifndef PM_HOSTS_H
#define PM_HOSTS_H

#include <stdbool.h>

#include "core/address.h"
#include "ext/module.h"

typedef enum {
    PM_HOST_ERROR = -1, /* an exception is set */
    PM_HOST_KNOWN,      /* the addresses are there */
    PM_HOST_WAIT,       /* *awaitable gives what pm_host_resolved takes */
    PM_HOST_NOWHERE,    /* the name has no address */
} pm_host;

/* `host` NULL stands for 127.0.0.1. */
pm_host pm_host_addresses(pm_state *state, PyObject *host, pm_addresses *addresses,
                          PyObject **awaitable);

/* What was awaited, turned into addresses: KNOWN or NOWHERE. */
pm_host pm_host_resolved(PyObject *result, pm_addresses *addresses);

/* Is it the default, 127.0.0.1 or left out? Overrides are then called without a host. */
bool pm_host_is_default(PyObject *host);

/* _resolve(host: str) -> bytes, for a thread: blocks for as long as the resolver does. */
PyObject *pm_resolve(PyObject *module, PyObject *host);

#endif
