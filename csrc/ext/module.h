/* The module's state: one for each interpreter that imports the extension. */
#ifndef PM_MODULE_H
#define PM_MODULE_H

#include "ext/python.h"

/* Names that are looked up at run time, interned once. */
#define PM_NAMES(X)                                                                                \
    X(allocate_port)                                                                               \
    X(allocated_port)                                                                              \
    X(allocated_ports)                                                                             \
    X(asyncio)                                                                                     \
    X(cancel)                                                                                      \
    X(config)                                                                                      \
    X(configs)                                                                                     \
    X(create_future)                                                                               \
    X(default_port)                                                                                \
    X(done)                                                                                        \
    X(enable_auto_allocation)                                                                      \
    X(find_available_port)                                                                         \
    X(fromtimestamp)                                                                               \
    X(is_port_available)                                                                           \
    X(isEnabledFor)                                                                                \
    X(log)                                                                                         \
    X(logging)                                                                                     \
    X(max_retries)                                                                                 \
    X(port_config_path)                                                                            \
    X(port_configs)                                                                                \
    X(port_monitors)                                                                               \
    X(range)                                                                                       \
    X(required)                                                                                    \
    X(retry_delay)                                                                                 \
    X(run_in_executor)                                                                             \
    X(service)                                                                                     \
    X(set_result)                                                                                  \
    X(status)                                                                                      \
    X(_get_running_loop)

#define PM_DUNDER_NAMES(X)                                                                         \
    X(class)                                                                                       \
    X(func)

/* What a PortAllocation's status may say. */
#define PM_STATUSES(X)                                                                             \
    X(allocated)                                                                                   \
    X(in_use)                                                                                      \
    X(error)

typedef enum {
    PM_RECORD_PORT_CONFIG,
    PM_RECORD_PORT_ALLOCATION,
    PM_RECORD_PORT_STATUS,
    PM_RECORD_PORT_MANAGER_CONFIG,
    PM_RECORD_PORT_RESERVATION,
    PM_RECORDS
} pm_record_kind;

typedef struct {
    PyTypeObject *function_type;
    PyTypeObject *declared_type;
    PyTypeObject *coroutine_type;
    PyTypeObject *awaiter_type;
    PyTypeObject *hold_type;
    PyTypeObject *held_type;
    PyTypeObject *manager_type;
    PyTypeObject *record_types[PM_RECORDS];
    PyObject *record_fields[PM_RECORDS];   /* tuples of names */
    PyObject *record_defaults[PM_RECORDS]; /* tuples; None for a field without default */
    int minor;                             /* this is CPython 3.minor */

    /* From `types`: what ours say they are, and what makes bound methods. */
    PyObject *types_function;
    PyObject *types_coroutine;
    PyObject *types_method;
    PyObject *types_namespace;

    PyObject *get_origin_depth; /* sys.get_coroutine_origin_tracking_depth */

    PyObject *default_configs; /* DEFAULT_PORT_CONFIGS */
    PyObject *singleton;       /* get_port_manager's, NULL before its first call */
    PyThread_type_lock singleton_lock;

    /* Modules that are imported when they are first needed. */
    PyObject *declarations;
    PyObject *logger;

    PyObject *resolve; /* _resolve of hosts.c, as Python calls it */

    struct {
#define X(name) PyObject *name;
        PM_NAMES(X)
#undef X
    } names;
    struct {
#define X(name) PyObject *name;
        PM_DUNDER_NAMES(X)
#undef X
    } dunders;
    struct {
#define X(name) PyObject *name;
        PM_STATUSES(X)
#undef X
    } statuses;

    PyObject *builtin_is_port_available;
    PyObject *builtin_find_available_port;
} pm_state;

pm_state *pm_state_of_module(PyObject *module);

/* The state of a type of ours or of a subclass of one. NULL with TypeError for other types. */
pm_state *pm_state_of_type(PyTypeObject *type);

/* portmanager._declarations, imported at the first call. A borrowed reference. */
PyObject *pm_declarations(pm_state *state);

#endif
