#include "core/allocate.h"

pm_status pm_allocation_begin(pm_allocation *allocation, const pm_request *request)
{
    static const pm_wish any = {0};
    pm_status status = pm_ledger_check();

    if (status != PM_OK) {
        return status;
    }
    /* Field by field: the candidates are large, and needed for a default port of 0 alone. */
    allocation->request = *request;
    allocation->port = 0;
    allocation->from_default = allocation->from_any = false;
    allocation->ephemeral = allocation->default_forbidden = false;
    allocation->busy = allocation->forbidden = 0;
    allocation->phase = PM_PHASE_BORROW;
    allocation->next = request->first;
    allocation->taker = PM_TAKER_IDLE;
    allocation->taker.settles = request->default_port != 0;
    if (request->default_port == 0) {
        pm_candidates_begin(&allocation->candidates, &any);
    }
    return PM_OK;
}

/* A port that this service may have, if an ancestor holds it for the same one. */
static bool borrow(pm_allocation *allocation)
{
    const pm_request *request = &allocation->request;
    uint16_t port = request->default_port;
    bool any = port == 0, borrowed = false;

    if (request->name.key == 0 || !pm_ledger_has_kin()) {
        return false;
    }
    if (any) {
        borrowed = pm_ledger_lend(request->holder, 1, UINT16_MAX, &request->name,
                                  &allocation->port) == PM_OK;
    } else {
        borrowed =
            pm_ledger_lend(request->holder, port, port, &request->name, &allocation->port) == PM_OK;
        if (!borrowed && request->has_range) {
            borrowed = pm_ledger_lend(request->holder, request->first, request->last,
                                      &request->name, &allocation->port) == PM_OK;
        }
    }
    allocation->from_any = borrowed && any;
    allocation->from_default = borrowed && !any && allocation->port == port;
    return borrowed;
}

/* The next port of the range that is wanted in this phase; false behind the last one. */
static bool next_of_range(pm_allocation *allocation, bool blocked, uint16_t *port)
{
    const pm_request *request = &allocation->request;

    while (request->has_range && allocation->next <= request->last) {
        uint16_t at = (uint16_t)allocation->next++;
        if (at != request->default_port && pm_port_is_blocked(at) == blocked) {
            *port = at;
            return true;
        }
    }
    allocation->next = request->first;
    return false;
}

static bool next_candidate(pm_allocation *allocation, uint16_t *port)
{
    if (allocation->taker.settling) {
        *port = allocation->taker.settling;
        return true;
    }
    switch (allocation->phase) {
    case PM_PHASE_BORROW: /* comes before all candidates */
    case PM_PHASE_DEFAULT:
        *port = allocation->request.default_port;
        allocation->from_default = true;
        allocation->phase = PM_PHASE_RANGE;
        return true;
    case PM_PHASE_RANGE:
        allocation->from_default = false;
        if (next_of_range(allocation, false, port)) {
            return true;
        }
        allocation->phase = PM_PHASE_BLOCKED;
        /* fall through */
    case PM_PHASE_BLOCKED:
        if (next_of_range(allocation, true, port)) {
            return true;
        }
        allocation->phase = PM_PHASE_END;
        return false;
    case PM_PHASE_ANY:
        allocation->from_any = true;
        if (pm_candidates_next(&allocation->candidates, port)) {
            allocation->ephemeral = allocation->candidates.ephemeral;
            return true;
        }
        allocation->phase = PM_PHASE_END;
        return false;
    case PM_PHASE_END:
        return false;
    }
    return false;
}

static pm_status take(pm_allocation *allocation, uint16_t port)
{
    const pm_request *request = &allocation->request;
    pm_holder holder;
    pm_status status = pm_take(&allocation->taker, request->holder, port, &request->name,
                               allocation->from_any ? pm_probe_strict : pm_probe_service, &holder);

    if (status == PM_HELD) {
        /* Another process's holder is no garbage of ours. */
        bool refused = holder == request->holder || holder == PM_NOBODY || request->refuse_held;
        return refused ? PM_BUSY : PM_HELD;
    }
    return status;
}

/* Goes back to the candidate that next_candidate gave last. */
static void look_again(pm_allocation *allocation, uint16_t port)
{
    if (allocation->from_default) {
        allocation->phase = PM_PHASE_DEFAULT;
    } else if (allocation->from_any) {
        allocation->candidates.walked--;
    } else {
        allocation->next = port;
    }
}

pm_status pm_allocation_run(pm_allocation *allocation, uint32_t budget, bool patient)
{
    uint16_t port;

    allocation->taker.patient = patient;
    if (allocation->phase == PM_PHASE_BORROW) {
        if (borrow(allocation)) {
            return PM_OK;
        }
        allocation->phase = allocation->request.default_port == 0 ? PM_PHASE_ANY : PM_PHASE_DEFAULT;
    }
    for (uint32_t looked = 0; looked < budget; looked++) {
        if (!next_candidate(allocation, &port)) {
            return allocation->forbidden && !allocation->busy ? PM_FORBIDDEN : PM_BUSY;
        }
        pm_status status = take(allocation, port);
        switch (status) {
        case PM_OK:
            allocation->port = port;
            if (allocation->from_any) {
                pm_candidates_taken(&allocation->candidates, port);
            }
            return PM_OK;
        case PM_BUSY:
            allocation->busy++;
            break;
        case PM_FORBIDDEN:
            allocation->forbidden++;
            allocation->default_forbidden |= allocation->from_default;
            break;
        case PM_HELD:
            look_again(allocation, port);
            return PM_HELD;
        default:
            return status;
        }
    }
    return PM_AGAIN;
}

void pm_allocation_end(pm_allocation *allocation)
{
    pm_taker_end(&allocation->taker, allocation->request.holder);
    if (allocation->request.default_port == 0) {
        pm_candidates_end(&allocation->candidates);
    }
}

pm_status pm_search_run(pm_search *search, uint32_t budget)
{
    pm_status status = pm_ledger_check();

    if (status != PM_OK) {
        return status;
    }
    for (uint32_t looked = 0; looked < budget; looked++) {
        if (search->next > search->last) {
            return PM_BUSY;
        }
        uint16_t port = (uint16_t)search->next;
        pm_holder holder;
        bool held = pm_ledger_look(port, &holder) == PM_HELD;
        if (held && holder != PM_NOBODY && holder != search->holder && !search->refuse_held) {
            return PM_HELD;
        }
        status = held ? PM_HELD : pm_probe_host(&search->prober, &search->host, port);
        if (status == PM_OK) {
            search->port = port;
            return PM_OK;
        }
        if (status == PM_EXHAUSTED || status == PM_FAILED) {
            return status;
        }
        search->next++;
    }
    return PM_AGAIN;
}

void pm_search_end(pm_search *search)
{
    pm_prober_close(&search->prober);
}
