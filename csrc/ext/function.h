/* Functions and methods that are written in C and look like Python's own.
 *
 * A pm_function is what `def` or `async def` would have made: it has a name, a signature, a
 * docstring, annotations and a code object, becomes a bound method by attribute access, is
 * pickled by reference, and says that its class is types.FunctionType. inspect, help(),
 * unittest.mock and asyncio accept such a function by its attributes.
 *
 * The attributes come from a real function of the same name in portmanager/_declarations.py,
 * which is imported when somebody asks; a call does not need it. Calls that do not fit the
 * signature are passed on to that real function, so that Python itself words the TypeError. */
#ifndef PM_FUNCTION_H
#define PM_FUNCTION_H

#include "ext/module.h"

enum { PM_PARAMETERS_MAX = 6 };

struct pm_coroutine_kind;

/* The arguments, in the order of the parameters, `self` first in a method. Those that the
 * caller left out are NULL; all are borrowed. */
struct pm_function_spec;
typedef PyObject *(*pm_call)(pm_state *state, const struct pm_function_spec *spec,
                             PyObject *const *arguments);

typedef struct pm_function_spec {
    const char *owner; /* the class, NULL for a function of the module */
    const char *name;
    const char *parameters[PM_PARAMETERS_MAX + 1]; /* `self` included; NULL ends them */
    int required;                                  /* how many have no default */
    pm_call call;                                  /* of a plain function, else NULL */
    const struct pm_coroutine_kind *kind;          /* of a coroutine function, else NULL */
    const void *data;                              /* what `call` needs to know besides */
} pm_function_spec;

typedef struct {
    PyObject_HEAD
    const pm_function_spec *spec;
    PyObject *module;
    PyObject *parameters; /* a tuple of interned names */
    PyObject *dict;
    PyObject *weakrefs;
} pm_function;

extern PyType_Spec pm_function_type_spec;

/* A class attribute whose value is the declaration's, fetched when somebody asks for it. */
extern PyType_Spec pm_declared_type_spec;
int pm_declared_add(PyObject *module, PyObject *class, const char *owner, const char *attribute);

/* A new reference. */
PyObject *pm_function_new(PyObject *module, const pm_function_spec *spec);

/* Adds the functions of a table, which ends with a NULL name, to a class or module. */
int pm_functions_add(PyObject *module, PyObject *target, const pm_function_spec *table);

/* What the declaration of a function has under `attribute`; a new reference. */
PyObject *pm_spec_declared(pm_state *state, const pm_function_spec *spec, const char *attribute);

/* `PortManager.get_port`; a new reference. */
PyObject *pm_spec_qualname(const pm_function_spec *spec);

#endif
