/* PortManager: the object, and what its methods share. */
#ifndef PM_MANAGER_H
#define PM_MANAGER_H

#include "core/ledger.h"
#include "ext/coroutine.h"
#include "ext/function.h"

/* config, port_configs, allocated_ports and port_monitors are in the instance's __dict__, where
 * callers read, edit and replace them. */
typedef struct {
    PyObject_HEAD
    PyObject *dict;
    PyObject *weakrefs;
    pm_state *state;
    pm_holder holder;        /* who the ledger knows this manager as */
    PyThread_type_lock lock; /* over holds; never held while Python code may run */
    PyObject *holds;         /* {service: hold}, see holds.h */
    PyObject *attempts;      /* {(service, loop): [futures of those who wait]} */
    PyObject *config_file;   /* what _config_file.load() made of the file, or NULL */
} pm_manager;

extern PyType_Spec pm_manager_type_spec;

/* All methods, in the order of the documentation. */
extern const pm_function_spec pm_manager_methods[];

/* singleton.c */
extern const pm_function_spec pm_get_port_manager_spec;

/* The three methods that may be overridden: what attribute lookup finds now, if it is not the
 * built-in one. 1 with a new reference, 0, or -1 on error. `name` is one of state->names'. */
int pm_manager_override(pm_manager *self, PyObject *name, PyObject *builtin, PyObject **found);

/* Is is_port_available, or find_available_port, overridden? 1, 0 or -1. */
int pm_manager_overrides_probe(pm_manager *self);
int pm_manager_overrides_search(pm_manager *self);

/* _override(manager): the override of is_port_available, or None; for _monitor.py, which honours
 * it too. */
PyObject *pm_override(PyObject *module, PyObject *manager);

/* What is_port_available, as attribute lookup finds it now, returns for a port, to be awaited.
 * Called with (port), and with host only where it is not the default. */
PyObject *pm_manager_ask(pm_manager *self, long port, PyObject *host);

/* getattr(manager, "allocated_ports") after holds that no longer stand were given back. */
PyObject *pm_manager_allocated_ports(pm_manager *self);

/* Gives holds back that no longer stand; costs next to nothing where there are none. */
int pm_manager_reconcile(pm_manager *self);

/* [(service, allocation)] of what is allocated: a new list. */
PyObject *pm_manager_allocated_items(pm_manager *self);

/* Cancels the monitor of a port, if there is one, and forgets it; -1 on error. */
int pm_manager_stop_monitor(pm_manager *self, PyObject *port);
int pm_manager_stop_monitors(pm_manager *self);

/* Gives back every reservation and clears allocated_ports. */
int pm_manager_clear(pm_manager *self);

/* The plain methods, by the file that has them: pm_call each. */
#define PM_METHOD(name)                                                                            \
    PyObject *name(pm_state *state, const pm_function_spec *spec, PyObject *const *arguments)
PM_METHOD(pm_get_port); /* ports.c */
PM_METHOD(pm_get_allocated_ports);
PM_METHOD(pm_get_environment_variables);
PM_METHOD(pm_release_port);
PM_METHOD(pm_release_all_ports);
PM_METHOD(pm_start_port_monitoring); /* monitoring.c */
PM_METHOD(pm_stop_port_monitoring);
PM_METHOD(pm_on_port_became_available);

/* The kinds of coroutines, by the file that has their steps. */
extern const pm_coroutine_kind pm_is_port_available; /* probing.c */
extern const pm_coroutine_kind pm_find_available_port;
extern const pm_coroutine_kind pm_allocate_port; /* allocating.c */
extern const pm_coroutine_kind pm_allocate_all_ports;
extern const pm_coroutine_kind pm_bind_port;       /* binding.c */
extern const pm_coroutine_kind pm_get_port_status; /* looking.c */
extern const pm_coroutine_kind pm_wait_for_port;
extern const pm_coroutine_kind pm_save_configuration; /* saving.c */
extern const pm_coroutine_kind pm_cleanup;

#endif
