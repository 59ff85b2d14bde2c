/* The strategy: which port a service gets. Claim in the ledger, verify with a probe, keep the
 * claim or give it back, candidate by candidate:
 *
 *     the default port
 *     the range, ascending, but for ports that browsers refuse
 *     the range's ports that browsers refuse
 *
 * or, for a default port of 0, the candidates of candidates.h. One walk is one attempt without
 * waiting; it is run in pieces, so that a caller may give up the GIL for a long one. Before all
 * of them, a port that an ancestor process holds for the same service is borrowed. */
#ifndef PM_ALLOCATE_H
#define PM_ALLOCATE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/address.h"
#include "core/candidates.h"
#include "core/ledger.h"
#include "core/probe.h"
#include "core/status.h"
#include "core/take.h"

typedef struct {
    pm_holder holder;      /* who the port is for */
    pm_name name;          /* what it is for */
    uint16_t default_port; /* 0: any free port */
    bool has_range;
    uint16_t first, last; /* the range, both included; first <= last */
    /* Refuse a port that another holder of this process has? Else the walk stops there with
     * PM_HELD, so that the caller can see whether that holder is garbage, and goes on. */
    bool refuse_held;
} pm_request;

typedef enum {
    PM_PHASE_BORROW,
    PM_PHASE_DEFAULT,
    PM_PHASE_RANGE,
    PM_PHASE_BLOCKED,
    PM_PHASE_ANY,
    PM_PHASE_END
} pm_phase;

typedef struct {
    pm_request request;
    uint16_t port;     /* PM_OK: the port, claimed for the holder */
    bool from_default; /* PM_OK: it is the default port */
    bool from_any;     /* PM_OK: nobody asked for it by number */
    bool ephemeral;    /* PM_OK: any port, and only the ephemeral range was left */
    bool default_forbidden;
    uint32_t busy;      /* candidates that a socket or a reservation has */
    uint32_t forbidden; /* candidates that need a privilege */
    pm_phase phase;
    uint32_t next; /* the port of the range that is looked at next */
    pm_candidates candidates;
    pm_taker taker;
} pm_allocation;

/* Asks the ledger, which may read files; so does a default port of 0. PM_OK; PM_EXHAUSTED: out of
 * descriptors or memory, errno says which, and there is nothing to end. */
pm_status pm_allocation_begin(pm_allocation *allocation, const pm_request *request);

/* Looks at up to `budget` candidates; a few microseconds each. Does not wait, unless `patient`,
 * and then for 10 ms at most.
 * PM_OK: a port was claimed and verified. PM_BUSY, PM_FORBIDDEN (and none was busy): none is to
 * be had. PM_AGAIN, PM_HELD: not finished, call again (after PM_HELD with refuse_held set, if
 * the holder still stands). PM_EXHAUSTED, PM_FAILED: not known, errno says why. */
pm_status pm_allocation_run(pm_allocation *allocation, uint32_t budget, bool patient);

/* Closes what is open; a port that was found stays claimed. */
void pm_allocation_end(pm_allocation *allocation);

/* find_available_port: the first port of next..last that can be bound on a host and that nobody
 * holds. Nothing is claimed. */
typedef struct {
    pm_addresses host;
    uint32_t next, last;
    pm_holder holder; /* who asks */
    bool refuse_held; /* as in pm_request */
    uint16_t port;    /* PM_OK: the port */
    pm_prober prober;
} pm_search;

/* As pm_allocation_run; PM_BUSY: there is none. */
pm_status pm_search_run(pm_search *search, uint32_t budget);
void pm_search_end(pm_search *search);

#endif
