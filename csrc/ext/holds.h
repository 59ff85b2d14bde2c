/* What a manager holds in the ledger, and for which of its services.
 *
 * allocated_ports belongs to the callers, who may edit it at any time; the holds are ours. A
 * hold stands as long as allocated_ports has an allocation of its port under its service. One
 * that is being published is not yet in there, and stands too:
 *
 *     pm_hold_add  ->  allocated_ports[service] = allocation  ->  pm_hold_publish
 */
#ifndef PM_HOLDS_H
#define PM_HOLDS_H

#include <stdbool.h>

#include "ext/manager.h"

extern PyType_Spec pm_hold_type_spec;

/* Notes that the claimed `port` is the service's: 1. 0 if the service has a hold already (of an
 * attempt in another thread): then its allocation is in *standing, a new reference. -1 on error.
 * `service` is an exact str here and below, `name` the same as the caller wrote it. */
int pm_hold_add(pm_manager *self, PyObject *service, PyObject *name, uint16_t port,
                PyObject *allocation, PyObject **standing);
void pm_hold_publish(pm_manager *self, PyObject *service, PyObject *allocation);

/* The allocation that a service's hold is for: 1 with a new reference, 0 if there is none. */
int pm_hold_find(pm_manager *self, PyObject *service, PyObject **allocation);

/* When the port was allocated, in seconds since the epoch; 0: it is not held for the service. */
double pm_hold_time(pm_manager *self, PyObject *service, long port);

/* Gives back a service's port; 0 if there is none, 1 if there was, -1 on error. */
int pm_hold_release(pm_manager *self, PyObject *service);

/* Gives back every port. Runs no Python code of others; for dealloc too. */
void pm_holds_release_all(pm_manager *self);

bool pm_holds_any(pm_manager *self);

/* Gives back what does not stand any more. */
int pm_holds_reconcile(pm_manager *self, PyObject *allocated_ports);

#endif
