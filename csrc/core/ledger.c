#include "core/ledger.h"

#include <stdatomic.h>

static _Atomic(pm_holder) words[UINT16_MAX + 1];
static _Atomic(pm_holder) last_enrolled;

pm_holder pm_ledger_enroll(void)
{
    return atomic_fetch_add_explicit(&last_enrolled, 1, memory_order_relaxed) + 1;
}

pm_status pm_ledger_claim(pm_holder me, uint16_t port, pm_holder *holder)
{
    *holder = PM_NOBODY;
    return atomic_compare_exchange_strong(&words[port], holder, me) ? PM_OK : PM_HELD;
}

void pm_ledger_release(pm_holder me, uint16_t port)
{
    pm_holder expected = me;
    atomic_compare_exchange_strong(&words[port], &expected, PM_NOBODY);
}

pm_holder pm_ledger_holder(uint16_t port)
{
    return atomic_load(&words[port]);
}
