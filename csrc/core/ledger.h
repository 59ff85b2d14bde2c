/* Who holds which port.
 *
 * A word per port: the holder that claimed it, 0 for nobody. A claim is one compare-and-swap
 * from nobody to the claimant, so whoever holds a port is the only one who may probe it, take
 * it or hand it out:
 *
 *     claim -> probe -> keep, or release
 *
 * The words are the only global state of core. They are shared by every thread, every manager
 * and every subinterpreter of the process; a forked child starts with a copy of them.
 * Nothing here blocks or allocates. */
#ifndef PM_LEDGER_H
#define PM_LEDGER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/status.h"

/* One who may hold ports, a manager for example. Numbers are never given twice in a process. */
typedef uint64_t pm_holder;
#define PM_NOBODY ((pm_holder)0)

pm_holder pm_ledger_enroll(void);

/* PM_OK: the port is now `me`'s. PM_HELD: it has a holder, `me` perhaps, told in `*holder`. */
pm_status pm_ledger_claim(pm_holder me, uint16_t port, pm_holder *holder);

/* Gives back a port of `me`'s; somebody else's is left alone. */
void pm_ledger_release(pm_holder me, uint16_t port);

/* PM_NOBODY when the port is free to be claimed. */
pm_holder pm_ledger_holder(uint16_t port);

#endif
