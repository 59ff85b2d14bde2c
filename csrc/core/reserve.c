#include "core/reserve.h"

#include <errno.h>

pm_status pm_reservation_begin(pm_reservation *reservation, const pm_reserve_request *request,
                               uint16_t *ports)
{
    pm_wish wish = {.name = request->name.key, .first = request->first, .last = request->last};
    pm_status status = pm_ledger_check();

    if (status != PM_OK) {
        return status;
    }
    reservation->request = *request;
    reservation->ports = ports;
    reservation->found = reservation->longest = reservation->forbidden = 0;
    reservation->wanted = 0;
    reservation->borrowed = reservation->begun = false;
    reservation->ephemeral = 0;
    reservation->lap = 0;
    reservation->taker = PM_TAKER_IDLE;
    reservation->taker.settles = request->name.key != 0;
    pm_candidates_begin(&reservation->candidates, &wish);
    /* Behind the last walk's; what is before that comes in the second lap. */
    reservation->next = reservation->candidates.first + reservation->candidates.start;
    return PM_OK;
}

/* Gives up what was found so far. */
static void drop(pm_reservation *reservation)
{
    int error = errno;

    for (uint32_t i = 0; i < reservation->found; i++) {
        pm_ledger_withdraw(reservation->request.holder, reservation->ports[i]);
    }
    if (reservation->found > reservation->longest) {
        reservation->longest = reservation->found;
    }
    reservation->found = 0;
    errno = error;
}

static pm_status take(pm_reservation *reservation, uint16_t port)
{
    const pm_reserve_request *request = &reservation->request;
    pm_holder holder;
    pm_status status = pm_take(&reservation->taker, request->holder, port, &request->name,
                               request->name.key ? pm_probe_service : pm_probe_strict, &holder);

    switch (status) {
    case PM_OK:
        reservation->ports[reservation->found++] = port;
        return PM_OK;
    case PM_FORBIDDEN:
        reservation->forbidden++;
        return PM_BUSY;
    case PM_HELD:
        return PM_BUSY;
    default:
        return status;
    }
}

/* ---- ports in any order --------------------------------------------------------------------- */

static bool borrow(pm_reservation *reservation)
{
    const pm_reserve_request *request = &reservation->request;
    uint16_t first = request->last ? request->first : 1;
    uint16_t last = request->last ? request->last : UINT16_MAX;

    return request->name.key != 0 && pm_ledger_has_kin() &&
           pm_ledger_lend(request->holder, first, last, &request->name, reservation->ports) ==
               PM_OK;
}

/* A name has one port that is kept for it; another one that it gets meanwhile is not. */
static void remember(const pm_reserve_request *request, uint16_t port)
{
    uint16_t kept = 0;

    if (request->name.key && !pm_ledger_find_remembered(request->name.key, &kept, UINT16_MAX)) {
        pm_ledger_remember(request->holder, port, request->name.key);
    }
}

static pm_status run_single(pm_reservation *reservation, uint32_t budget)
{
    const pm_reserve_request *request = &reservation->request;
    pm_candidates *candidates = &reservation->candidates;
    uint16_t port;

    if (!reservation->begun) {
        reservation->begun = true;
        if (borrow(reservation)) {
            reservation->borrowed = true;
            reservation->wanted = reservation->ports[0];
            reservation->found = 1;
            return PM_OK;
        }
    }
    for (uint32_t looked = 0; looked < budget && reservation->found < request->count; looked++) {
        if (reservation->taker.settling) {
            port = reservation->taker.settling;
        } else if (!pm_candidates_next(candidates, &port)) {
            return PM_BUSY;
        }
        bool ephemeral = candidates->ephemeral; /* now, for it is of the candidate seen last */
        if (reservation->wanted == 0) {
            reservation->wanted = port;
        }
        pm_status status = take(reservation, port);
        if (status == PM_OK) {
            reservation->ephemeral += ephemeral;
            pm_candidates_taken(candidates, port);
            remember(request, port);
        } else if (status != PM_BUSY) {
            return status;
        }
    }
    return reservation->found == request->count ? PM_OK : PM_AGAIN;
}

/* ---- consecutive ports ---------------------------------------------------------------------- */

static pm_status run_consecutive(pm_reservation *reservation, uint32_t budget)
{
    const pm_reserve_request *request = &reservation->request;
    pm_candidates *candidates = &reservation->candidates;

    for (uint32_t looked = 0; looked < budget; looked++) {
        if (reservation->next > candidates->last) {
            drop(reservation);
            reservation->next = candidates->first;
            if (++reservation->lap == PM_LAPS) {
                return PM_BUSY;
            }
        }
        uint16_t port = (uint16_t)reservation->next++;
        if (!pm_candidates_allow(candidates, port, reservation->lap)) {
            drop(reservation);
            continue;
        }
        pm_status status = take(reservation, port);
        if (status == PM_BUSY) {
            drop(reservation);
        } else if (status != PM_OK) {
            return status;
        } else if (reservation->found == request->count) {
            for (uint32_t i = 0; i < request->count; i++) {
                uint16_t at = reservation->ports[i];
                reservation->ephemeral += pm_candidates_meet_ephemeral(candidates, at, at);
            }
            pm_candidates_taken(candidates, port);
            return PM_OK;
        }
    }
    return PM_AGAIN;
}

pm_status pm_reservation_run(pm_reservation *reservation, uint32_t budget, bool patient)
{
    pm_status status;

    reservation->taker.patient = patient;
    status = reservation->request.consecutive ? run_consecutive(reservation, budget)
                                              : run_single(reservation, budget);
    if (status != PM_OK && status != PM_AGAIN) {
        drop(reservation);
        reservation->found = reservation->longest;
    }
    return status;
}

void pm_reservation_end(pm_reservation *reservation)
{
    pm_taker_end(&reservation->taker, reservation->request.holder);
    pm_candidates_end(&reservation->candidates);
}
