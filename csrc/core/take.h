/* One candidate: claim it, verify it with a probe, keep the claim or withdraw it. */
#ifndef PM_TAKE_H
#define PM_TAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/ledger.h"
#include "core/probe.h"
#include "core/status.h"

typedef struct {
    pm_wildcard_prober prober;
    uint16_t settling;      /* a claimed port whose last holder may still be dying; 0: none */
    int64_t settling_until; /* monotonic nanoseconds */
    bool settles;           /* is this port wanted more than the next one? the caller's to set, */
    bool patient;           /* and: may pm_take wait? */
} pm_taker;

#define PM_TAKER_IDLE ((pm_taker){.prober = PM_WILDCARD_PROBER_CLOSED})

/* Whose sockets count: pm_probe_service or pm_probe_strict. */
typedef pm_status (*pm_verifier)(pm_wildcard_prober *prober, uint16_t port);

/* PM_OK: the port is `me`'s. PM_HELD: not, `*holder` is who of this process has it, or PM_NOBODY.
 * PM_AGAIN: it is claimed, but its last holder died a moment ago and its sockets are not closed;
 * to be called again for the same port when the caller is patient. That waits 10 ms at most.
 * Else as the verifier says. */
pm_status pm_take(pm_taker *taker, pm_holder me, uint16_t port, const pm_name *name,
                  pm_verifier verify, pm_holder *holder);

/* Closes what is open; a claim that was to be looked at again is withdrawn. */
void pm_taker_end(pm_taker *taker, pm_holder me);

#endif
