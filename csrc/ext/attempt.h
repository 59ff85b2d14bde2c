/* An attempt of allocate_port: what it keeps, how it ends, and who waits for its end.
 *
 * The tasks of one loop that ask for the same service share one attempt. The first leads; it
 * announces the attempt before it waits for the first time, and the others follow. Whatever the
 * leader ends with is everybody's answer; if it ends without one (cancelled, or an override
 * raised), one of the followers leads. */
#ifndef PM_ATTEMPT_H
#define PM_ATTEMPT_H

#include "ext/manager.h"
#include "ext/service.h"

/* The coroutine's vars. */
enum {
    PM_ATTEMPT_MANAGER,
    PM_ATTEMPT_NAME,       /* as the caller gave it */
    PM_ATTEMPT_EXACT_NAME, /* the same as an exact str */
    PM_ATTEMPT_REQUESTED,  /* the configured default port */
    PM_ATTEMPT_KEY,        /* (service, loop) while it is announced */
    PM_ATTEMPT_LABEL,      /* the exact name in UTF-8: bytes */
};

/* The coroutine's frame. */
typedef struct {
    pm_service service;
    long retries; /* rounds that may still follow */
    bool collected;
    bool find_overridden;
    bool default_forbidden; /* the default port needs a privilege */
    uint16_t claimed;       /* held for this attempt alone while an override is asked; 0: none */
    uint32_t claimed_in;    /* pm_fork_count(): in a forked child the claim is the parent's */
    int asked;              /* how many free ports an override has refused in this round */
    uint16_t fallback;      /* a port of the browsers' list, for want of a better one; 0: none */
    long next;              /* where the search in the range goes on */
} pm_attempt;

static inline pm_manager *pm_attempt_manager(pm_coroutine *co)
{
    return (pm_manager *)co->vars[PM_ATTEMPT_MANAGER];
}

/* What the ledger knows the service by; for an attempt that has its exact name and label. */
static inline pm_name pm_attempt_name(pm_coroutine *co)
{
    return pm_service_name(co->vars[PM_ATTEMPT_LABEL]);
}

/* ---- the end: each is PM_DONE with the PortAllocation in *out, or PM_ERROR ------------------ */

/* With an allocation that exists, whose reference is taken over. */
pm_outcome pm_attempt_done(pm_coroutine *co, PyObject *allocation, PyObject **out);

/* With a port that is claimed for the manager: from now on it is the service's. */
pm_outcome pm_attempt_grant(pm_coroutine *co, uint16_t port, PyObject **out);

/* Without a port: the outcome is stored, unless another thread was successful. The reference to
 * the message is taken over; NULL is an error. */
pm_outcome pm_attempt_fail(pm_coroutine *co, PyObject *status, PyObject *message, PyObject **out);
pm_outcome pm_attempt_fail_busy(pm_coroutine *co, PyObject **out);
pm_outcome pm_attempt_fail_forbidden(pm_coroutine *co, PyObject **out);
pm_outcome pm_attempt_fail_unknown(pm_coroutine *co, PyObject **out); /* errno says why */

/* ---- on the way ---------------------------------------------------------------------------- */

/* Is another task of this loop attempting it? 1 with a future of its answer (None: it ended
 * without one), 0 or -1. */
int pm_attempt_follow(pm_coroutine *co, PyObject **future);

/* Awaits `awaitable`, whose reference is taken over (NULL is an error), and goes on in `state`. */
pm_outcome pm_attempt_wait(pm_coroutine *co, PyObject *awaitable, int state, PyObject **out);

/* A port is claimed for the attempt alone. */
void pm_attempt_note_claim(pm_coroutine *co, uint16_t port);

/* Gives it back, if there is one. */
void pm_attempt_unclaim(pm_coroutine *co);

/* The coroutine's end, however it came: nothing stays claimed, nobody waits in vain. */
void pm_attempt_end(pm_coroutine *co);

#endif
