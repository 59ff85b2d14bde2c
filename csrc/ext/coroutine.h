/* The one coroutine type of all asynchronous methods.
 *
 * A coroutine runs a step function until that is done:
 *
 *     send(value) --> step(co, received) --+-- PM_DONE, *out = result   -> StopIteration(result)
 *                        ^                 +-- PM_ERROR, exception set  -> raised
 *                        |                 +-- PM_AWAIT, *out = awaitable
 *                        |                          |
 *                        +---- its result ----------+   (each value that it yields goes up to
 *                              or its exception          the event loop, as `await` does)
 *
 * `received` is NULL at the first step, and NULL with an exception set when what was awaited
 * raised one; a step that does not handle it returns PM_ERROR. `co->state` is the step's own
 * program counter, 0 at first; `co->vars` holds its arguments and what else it must keep. A step
 * that never awaits finishes within the first send().
 *
 * For everybody else it is what an `async def` returns: it says that its class is
 * types.CoroutineType, warns if it was never awaited, and can be closed, thrown into and
 * inspected. */
#ifndef PM_COROUTINE_H
#define PM_COROUTINE_H

#include <stdatomic.h>

#include "ext/function.h"

enum { PM_VARS_MAX = 12 };

typedef enum { PM_ERROR = -1, PM_DONE, PM_AWAIT } pm_outcome;

typedef enum { PM_CREATED, PM_SUSPENDED, PM_RUNNING, PM_CLOSED } pm_life;

typedef struct pm_coroutine {
    PyObject_HEAD
    const pm_function_spec *spec; /* has the kind */
    pm_state *module_state;       /* lives as long as the type */
    PyObject *name, *qualname;    /* NULL: as in the spec */
    PyObject *origin;             /* a tuple for cr_origin, or NULL */
    PyObject *awaited;            /* what is awaited, */
    PyObject *awaiting;           /* and its iterator */
    PyObject *vars[PM_VARS_MAX];  /* the arguments first; NULL for those left out */
    void *frame;                  /* kind->frame_size bytes, zeroed */
    PyObject *weakrefs;
    int state;
    pm_life life;
    atomic_bool running;
} pm_coroutine;

typedef struct pm_coroutine_kind {
    pm_outcome (*step)(pm_coroutine *co, PyObject *received, PyObject **out);
    size_t frame_size;
    /* Gives up what the frame owns, however the coroutine ended, once; may run Python code, has
     * no exception set and must leave none. May be NULL. */
    void (*end)(pm_coroutine *co);
} pm_coroutine_kind;

PyObject *pm_coroutine_new(pm_state *state, const pm_function_spec *spec,
                           PyObject *const *arguments);

/* Runs until it awaits, is done or fails, as PyIter_Send. */
PySendResult pm_coroutine_send(pm_coroutine *self, PyObject *value, PyObject **result);

/* The same with an exception, given as to throw(type[, value[, traceback]]): a tuple. */
PySendResult pm_coroutine_throw(pm_coroutine *self, PyObject *thrown, PyObject **result);

/* Warns if it was never awaited, and closes it: the end of its life, by reference count or as
 * garbage. All that it owns is given up here. */
void pm_coroutine_finalize(pm_coroutine *self);

/* coroutine_type.c: the coroutine, and what its __await__ returns. */
extern PyType_Spec pm_coroutine_type_spec;
extern PyType_Spec pm_awaiter_type_spec;

#endif
