/* asyncio, as far as steps need it. It is imported only when something has to wait. */
#ifndef PM_LOOP_H
#define PM_LOOP_H

#include "ext/module.h"

/* The event loop that runs in this thread: 1 with a new reference, 0 if none, -1 on error. */
int pm_loop_running(pm_state *state, PyObject **loop);

/* An awaitable that pauses for so many seconds; a new reference. */
PyObject *pm_loop_sleep(pm_state *state, double seconds);

/* function(*arguments), off the thread of the running loop: 1 with an awaitable of its result in
 * *out. Without a running loop it is called here and now: 0 with its result. -1 on error. */
int pm_loop_run_in_thread(pm_state *state, PyObject *function, PyObject *arguments, PyObject **out);

/* future.set_result(value), unless it is done; never fails. */
void pm_loop_settle(pm_state *state, PyObject *future, PyObject *value);

#endif
