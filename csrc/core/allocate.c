#include "core/allocate.h"

void pm_allocation_begin(pm_allocation *allocation, const pm_request *request)
{
    /* Field by field: the candidates are large, and needed for a default port of 0 alone. */
    allocation->request = *request;
    allocation->port = 0;
    allocation->from_default = allocation->from_any = false;
    allocation->ephemeral = allocation->default_forbidden = false;
    allocation->busy = allocation->forbidden = 0;
    allocation->phase = PM_PHASE_DEFAULT;
    allocation->next = request->first;
    allocation->prober = PM_WILDCARD_PROBER_CLOSED;
    if (request->default_port == 0) {
        allocation->phase = PM_PHASE_ANY;
        pm_candidates_begin(&allocation->candidates);
    }
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
    switch (allocation->phase) {
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
        if (pm_candidates_next(&allocation->candidates, port, &allocation->ephemeral)) {
            return true;
        }
        allocation->phase = PM_PHASE_END;
        return false;
    case PM_PHASE_END:
        return false;
    }
    return false;
}

/* Claims a port and verifies the claim; a claim that does not stand is given back. */
static pm_status take(pm_allocation *allocation, uint16_t port)
{
    pm_holder me = allocation->request.holder, holder;
    pm_status status = pm_ledger_claim(me, port, &holder);

    if (status == PM_HELD) {
        return holder == me || allocation->request.refuse_held ? PM_BUSY : PM_HELD;
    }
    status = allocation->from_any ? pm_probe_strict(&allocation->prober, port)
                                  : pm_probe_service(&allocation->prober, port);
    if (status != PM_OK) {
        pm_ledger_release(me, port);
    }
    return status;
}

/* Goes back to the candidate that next_candidate gave last. */
static void look_again(pm_allocation *allocation, uint16_t port)
{
    if (allocation->from_default) {
        allocation->phase = PM_PHASE_DEFAULT;
    } else if (allocation->from_any) {
        allocation->candidates.port = port;
        allocation->candidates.walked--;
    } else {
        allocation->next = port;
    }
}

pm_status pm_allocation_run(pm_allocation *allocation, uint32_t budget)
{
    uint16_t port;

    for (uint32_t looked = 0; looked < budget; looked++) {
        if (!next_candidate(allocation, &port)) {
            return allocation->forbidden && !allocation->busy ? PM_FORBIDDEN : PM_BUSY;
        }
        pm_status status = take(allocation, port);
        switch (status) {
        case PM_OK:
            allocation->port = port;
            if (allocation->from_any) {
                pm_candidates_taken(port);
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
    pm_wildcard_prober_close(&allocation->prober);
}

pm_status pm_search_run(pm_search *search, uint32_t budget)
{
    for (uint32_t looked = 0; looked < budget; looked++) {
        if (search->next > search->last) {
            return PM_BUSY;
        }
        uint16_t port = (uint16_t)search->next;
        pm_holder holder = pm_ledger_holder(port);
        bool held = holder != PM_NOBODY;
        if (held && holder != search->holder && !search->refuse_held) {
            return PM_HELD;
        }
        pm_status status = held ? PM_HELD : pm_probe_host(&search->prober, &search->host, port);
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
