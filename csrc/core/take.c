#include "core/take.h"

#include <time.h>

#include "core/clock.h"

/* A dying process's locks go before its sockets do: measured up to a millisecond. */
enum { SETTLE_NS = 10000000, PAUSE_NS = 500000 };

/* Busy now; will it stay so? */
static pm_status settle(pm_taker *taker, uint16_t port, pm_verifier verify)
{
    const struct timespec pause = {.tv_nsec = PAUSE_NS};
    pm_status status = PM_BUSY;

    if (taker->settling == 0) {
        taker->settling = port;
        taker->settling_until = pm_clock_ns(CLOCK_MONOTONIC) + SETTLE_NS;
    }
    if (!taker->patient) {
        return PM_AGAIN;
    }
    while (status == PM_BUSY && pm_clock_ns(CLOCK_MONOTONIC) < taker->settling_until) {
        nanosleep(&pause, NULL);
        status = verify(&taker->prober, port);
    }
    return status;
}

pm_status pm_take(pm_taker *taker, pm_holder me, uint16_t port, const pm_name *name,
                  pm_verifier verify, pm_holder *holder)
{
    bool settling = taker->settling == port && port != 0;
    pm_claim claim = {PM_NOBODY, settling};
    pm_status status = settling ? PM_OK : pm_ledger_claim(me, port, name, &claim);

    *holder = claim.holder;
    if (status != PM_OK) {
        return status;
    }
    status = verify(&taker->prober, port);
    if (status == PM_BUSY && claim.inherited && taker->settles) {
        status = settle(taker, port, verify);
    }
    if (status == PM_AGAIN) {
        return PM_AGAIN;
    }
    taker->settling = 0;
    if (status != PM_OK) {
        pm_ledger_withdraw(me, port);
    }
    return status;
}

void pm_taker_end(pm_taker *taker, pm_holder me)
{
    if (taker->settling) {
        pm_ledger_withdraw(me, taker->settling);
        taker->settling = 0;
    }
    pm_wildcard_prober_close(&taker->prober);
}
