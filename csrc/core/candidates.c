#include "core/candidates.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

#include "core/process.h"

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

/* Where the next walk begins, and in its upper half which process noted that; 0: nobody did. */
static _Atomic(uint64_t) noted_start;

void pm_candidates_taken(uint16_t port)
{
    uint16_t next = port == UINT16_MAX ? WELL_KNOWN_END : (uint16_t)(port + 1);
    atomic_store(&noted_start, (uint64_t)pm_process_id() << 32 | next);
}

static bool is_ephemeral(const pm_port_policy *policy, uint16_t port)
{
    return port >= policy->ephemeral_first && port <= policy->ephemeral_last;
}

static bool is_fit(const pm_port_policy *policy, uint16_t port)
{
    return port >= policy->unprivileged_start && !pm_port_set_has(&policy->reserved, port) &&
           !pm_port_is_blocked(port);
}

/* A process starts somewhere of its own, a forked one too, so that two that start at once rarely
 * try the same ports. Not in the ephemeral range: behind it all of them would begin with the
 * same port. */
static uint16_t draw_start(const pm_port_policy *policy)
{
    uint16_t port = WELL_KNOWN_END;

    for (int draws = 0; draws < 64; draws++) {
        port = (uint16_t)(WELL_KNOWN_END + pm_entropy() % CANDIDATES);
        if (!is_ephemeral(policy, port) && is_fit(policy, port)) {
            break;
        }
    }
    return port;
}

void pm_candidates_begin(pm_candidates *candidates)
{
    uint64_t noted = atomic_load(&noted_start);

    pm_port_policy_read(&candidates->policy);
    candidates->walked = 0;
    candidates->port =
        noted >> 32 == pm_process_id() ? (uint16_t)noted : draw_start(&candidates->policy);
}

bool pm_candidates_next(pm_candidates *candidates, uint16_t *port, bool *ephemeral)
{
    const pm_port_policy *policy = &candidates->policy;

    while (candidates->walked < 2 * CANDIDATES) {
        bool last_resort = candidates->walked >= CANDIDATES;
        uint16_t at = candidates->port;

        candidates->walked++;
        candidates->port = at == UINT16_MAX ? WELL_KNOWN_END : (uint16_t)(at + 1);
        if (is_ephemeral(policy, at) == last_resort && is_fit(policy, at)) {
            *port = at;
            *ephemeral = last_resort;
            return true;
        }
    }
    return false;
}
