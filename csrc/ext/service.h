/* A service's configuration, read from whatever the callers put into port_configs and config. */
#ifndef PM_SERVICE_H
#define PM_SERVICE_H

#include <stdbool.h>

#include "core/ledger.h"
#include "ext/manager.h"

typedef struct {
    PyObject *default_port; /* as configured; owned; NULL if that is no number */
    uint16_t port;          /* the same as a number; 0: any free port */
    bool has_range;
    uint16_t first, last;
    bool may_fall_back; /* enable_auto_allocation */
    long max_retries;
    double retry_delay; /* seconds */
} pm_service;

/* Reads and checks the configuration of a service. 1: it is good. 0: there is something wrong,
 * which *message, a new reference, says. -1: an exception that is not an Exception. */
int pm_service_read(pm_manager *self, PyObject *name, PyObject *config, pm_service *service,
                    PyObject **message);

/* A service's name in UTF-8: bytes, whatever characters it has; a new reference. */
PyObject *pm_service_label(PyObject *exact_name);

/* What the ledger knows a service by. As alive as the label, which is pm_service_label's. */
pm_name pm_service_name(PyObject *label);

#endif
