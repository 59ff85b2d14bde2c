/* What reservations add to a probe: the core alone, without Python. bench_ledger.py loads it. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/ledger.h"
#include "core/probe.h"

/* The probe of an allocation, `count` times; false unless the port was free each time. */
bool probe_alone(uint16_t port, int count)
{
    bool free = true;

    while (count-- > 0) {
        pm_wildcard_prober prober = PM_WILDCARD_PROBER_CLOSED;
        free &= pm_probe_service(&prober, port) == PM_OK;
        pm_wildcard_prober_close(&prober);
    }
    return free;
}

/* The same, with the port claimed before and released after it, the ledger's identity checked. */
bool probe_claimed(uint16_t port, int count)
{
    static const pm_name name = {UINT64_C(0x9e3779b97f4a7c15), "web"};
    static pm_holder me;
    bool free = true;

    if (me == PM_NOBODY) {
        me = pm_ledger_enroll();
    }
    while (count-- > 0) {
        pm_wildcard_prober prober = PM_WILDCARD_PROBER_CLOSED;
        pm_claim claim;
        free &= pm_ledger_check() == PM_OK && pm_ledger_claim(me, port, &name, &claim) == PM_OK &&
                pm_probe_service(&prober, port) == PM_OK;
        pm_wildcard_prober_close(&prober);
        pm_ledger_release(me, port);
    }
    return free;
}

/* The probe of a reservation, by TCP and UDP, of `count` ports from `first` on. */
bool probe_strictly(uint16_t first, int count)
{
    bool any = false;

    for (int i = 0; i < count; i++) {
        pm_wildcard_prober prober = PM_WILDCARD_PROBER_CLOSED;
        any |= pm_probe_strict(&prober, (uint16_t)(first + i)) == PM_OK;
        pm_wildcard_prober_close(&prober);
    }
    return any;
}
