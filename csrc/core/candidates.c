#include "core/candidates.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

#include "core/entropy.h"

/* Ports below this are never handed out unasked, even where they need no privilege: they are
 * the well-known services'. */
enum { WELL_KNOWN_END = 1024, CANDIDATES = UINT16_MAX + 1 - WELL_KNOWN_END };

/* https://fetch.spec.whatwg.org/#port-blocking, ascending. */
static const uint16_t blocked[] = {
    0,    1,    7,    9,    11,   13,   15,   17,   19,   20,   21,   22,   23,    25,
    37,   42,   43,   53,   69,   77,   79,   87,   95,   101,  102,  103,  104,   109,
    110,  111,  113,  115,  117,  119,  123,  135,  137,  139,  143,  161,  179,   389,
    427,  465,  512,  513,  514,  515,  526,  530,  531,  532,  540,  548,  554,   556,
    563,  587,  601,  636,  989,  990,  993,  995,  1719, 1720, 1723, 2049, 3659,  4045,
    4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
};

static int compare_ports(const void *left, const void *right)
{
    return (int)*(const uint16_t *)left - (int)*(const uint16_t *)right;
}

bool pm_port_is_blocked(uint16_t port)
{
    return bsearch(&port, blocked, sizeof blocked / sizeof *blocked, sizeof *blocked,
                   compare_ports) != NULL;
}

/* Where the next walk of this process begins, as an offset from WELL_KNOWN_END, plus 1; 0: not
 * drawn yet. A process starts somewhere of its own, so that two that start at once rarely try
 * the same ports. */
static _Atomic(uint32_t) next_start;

void pm_candidates_taken(uint16_t port)
{
    atomic_store(&next_start, (uint32_t)(port - WELL_KNOWN_END + 1) % CANDIDATES + 1);
}

void pm_candidates_begin(pm_candidates *candidates)
{
    uint32_t start = atomic_load(&next_start);
    if (start == 0) {
        start = pm_entropy() % CANDIDATES + 1;
    }
    pm_port_policy_read(&candidates->policy);
    candidates->walked = 0;
    candidates->port = (uint16_t)(WELL_KNOWN_END + start - 1);
}

static bool is_fit(const pm_port_policy *policy, uint16_t port)
{
    return port >= policy->unprivileged_start && !pm_port_set_has(&policy->reserved, port) &&
           !pm_port_is_blocked(port);
}

bool pm_candidates_next(pm_candidates *candidates, uint16_t *port, bool *ephemeral)
{
    const pm_port_policy *policy = &candidates->policy;

    while (candidates->walked < 2 * CANDIDATES) {
        bool last_resort = candidates->walked >= CANDIDATES;
        uint16_t at = candidates->port;
        bool in_range = at >= policy->ephemeral_first && at <= policy->ephemeral_last;

        candidates->walked++;
        candidates->port = at == UINT16_MAX ? WELL_KNOWN_END : (uint16_t)(at + 1);
        if (in_range == last_resort && is_fit(policy, at)) {
            *port = at;
            *ephemeral = last_resort;
            return true;
        }
    }
    return false;
}
