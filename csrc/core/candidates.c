#include "core/candidates.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

#include "core/clock.h"
#include "core/ledger.h"
#include "core/process.h"

/* Ports below this are never handed out unasked, even where they need no privilege: they are
 * the well-known services'. */
enum { WELL_KNOWN_END = 1024 };

/* So long a port rests that was given back: connections of its server may be in TIME_WAIT. */
#define REST_NS (INT64_C(120) * 1000000000)

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

/* ---- which lap a port comes in -------------------------------------------------------------- */

enum { LAP_RESTED, LAP_LATELY, LAP_REMEMBERED, LAP_LAST, NO_LAP };
/* The same for a name. */
enum { LAP_OWN, LAP_NAMELESS, LAP_OTHERS };

_Static_assert((int)NO_LAP == (int)PM_LAPS, "candidates.h says how many laps there are");

static bool has_range(const pm_candidates *candidates)
{
    return candidates->wish.last != 0;
}

static bool is_ephemeral(const pm_port_policy *policy, uint16_t port)
{
    return port >= policy->ephemeral_first && port <= policy->ephemeral_last;
}

static bool is_fit(const pm_candidates *candidates, uint16_t port)
{
    const pm_port_policy *policy = &candidates->policy;

    return has_range(candidates) ||
           (port >= WELL_KNOWN_END && port >= policy->unprivileged_start &&
            !pm_port_set_has(&policy->reserved, port) && !pm_port_is_blocked(port));
}

/* The ports that come when no other is left. */
static bool is_last_resort(const pm_candidates *candidates, uint16_t port)
{
    return has_range(candidates) ? pm_port_is_blocked(port)
                                 : is_ephemeral(&candidates->policy, port);
}

static uint32_t lap_of(const pm_candidates *candidates, uint16_t port)
{
    if (!is_fit(candidates, port)) {
        return NO_LAP;
    }
    pm_port_past past = pm_ledger_past(port);
    uint64_t name = candidates->wish.name;
    if (name && past.remembered == name) {
        return LAP_OWN;
    }
    if (is_last_resort(candidates, port)) {
        return LAP_LAST;
    }
    if (name) {
        return past.remembered ? LAP_OTHERS : LAP_NAMELESS;
    }
    if (past.remembered) {
        return LAP_REMEMBERED;
    }
    /* The clock may have been set back: what is in the future is long ago. */
    bool lately = past.changed_at > candidates->now - REST_NS && past.changed_at <= candidates->now;
    return lately ? LAP_LATELY : LAP_RESTED;
}

/* ---- the order within a lap ----------------------------------------------------------------- */

static uint32_t count_of(const pm_candidates *candidates)
{
    return candidates->last - candidates->first + 1;
}

static uint32_t greatest_common_divisor(uint32_t a, uint32_t b)
{
    while (b) {
        uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Behind the port that was handed out last; a ledger that is new begins somewhere, so that two
 * that start at once rarely try the same ports. */
static uint32_t next_start(const pm_candidates *candidates)
{
    uint32_t port = pm_ledger_next_port();

    for (int draws = 0; port < WELL_KNOWN_END && draws < 64; draws++) {
        uint16_t drawn = (uint16_t)(candidates->first + pm_entropy() % count_of(candidates));
        if (is_fit(candidates, drawn) && !is_ephemeral(&candidates->policy, drawn)) {
            port = drawn;
        }
    }
    return port < WELL_KNOWN_END ? 0 : port - WELL_KNOWN_END;
}

static void choose_order(pm_candidates *candidates)
{
    uint32_t count = count_of(candidates);
    uint64_t name = candidates->wish.name;

    candidates->start = 0;
    candidates->step = 1;
    if (name) {
        /* A step that has no divisor in common with the count comes by every port. */
        candidates->start = (uint32_t)(name % count);
        candidates->step = (uint32_t)((name >> 32) % count);
        while (greatest_common_divisor(candidates->step, count) != 1) {
            candidates->step++;
        }
    } else if (!has_range(candidates)) {
        candidates->start = next_start(candidates);
    }
}

void pm_candidates_begin(pm_candidates *candidates, const pm_wish *wish)
{
    candidates->now = pm_clock_ns(CLOCK_REALTIME);
    candidates->wish = *wish;
    candidates->lap = candidates->walked = 0;
    candidates->ephemeral = candidates->rested_too = false;
    candidates->by_age = NULL;
    candidates->first = wish->last ? wish->first : WELL_KNOWN_END;
    candidates->last = wish->last ? wish->last : UINT16_MAX;
    pm_port_policy_read(&candidates->policy);
    choose_order(candidates);
}

/* ---- the lately returned of a range ---------------------------------------------------------- */

typedef struct {
    int64_t changed_at;
    uint16_t port;
} aged;

static int compare_ages(const void *left, const void *right)
{
    const aged *a = left, *b = right;
    if (a->changed_at != b->changed_at) {
        return a->changed_at < b->changed_at ? -1 : 1;
    }
    return (int)a->port - (int)b->port;
}

/* A range's own order by age; without memory for it the order is that of numbers. */
static void sort_by_age(pm_candidates *candidates)
{
    uint32_t count = count_of(candidates), first = candidates->first;
    aged *ages = malloc(count * sizeof *ages);

    candidates->by_age = malloc(count * sizeof *candidates->by_age);
    if (ages && candidates->by_age) {
        for (uint32_t i = 0; i < count; i++) {
            uint16_t port = (uint16_t)(first + i);
            ages[i] = (aged){pm_ledger_past(port).changed_at, port};
        }
        qsort(ages, count, sizeof *ages, compare_ages);
        for (uint32_t i = 0; i < count; i++) {
            candidates->by_age[i] = ages[i].port;
        }
    } else {
        free(candidates->by_age);
        candidates->by_age = NULL;
    }
    free(ages);
}

/* ---- walking -------------------------------------------------------------------------------- */

static uint16_t port_at(const pm_candidates *candidates, uint32_t position)
{
    if (candidates->by_age && candidates->lap == LAP_LATELY) {
        return candidates->by_age[position];
    }
    uint64_t offset = candidates->start + (uint64_t)position * candidates->step;
    return (uint16_t)(candidates->first + offset % count_of(candidates));
}

/* Found by their name, not one by one: they are few. */
static bool next_own(pm_candidates *candidates, uint16_t *port)
{
    uint32_t at = candidates->first + candidates->walked;

    *port = (uint16_t)at;
    if (at > candidates->last ||
        !pm_ledger_find_remembered(candidates->wish.name, port, (uint16_t)candidates->last)) {
        return false;
    }
    candidates->walked = *port - candidates->first + 1;
    return true;
}

/* Where a walk came by all ports that rested, and none was to be had, the next one need not look
 * for them before the first of the others has rested: it takes whatever comes, those included. */
static _Atomic(int64_t) none_rests_before;

/* Without a look at each: they may be few among many. */
static bool next_rested(pm_candidates *candidates, uint16_t *port)
{
    uint32_t count = count_of(candidates);

    if (candidates->walked == 0) {
        candidates->oldest = INT64_MAX;
        candidates->rested_too =
            !has_range(candidates) && candidates->now < atomic_load(&none_rests_before);
        if (candidates->rested_too) {
            return false;
        }
    }
    while (candidates->walked < count) {
        uint32_t at = port_at(candidates, candidates->walked), end = candidates->last;
        if (!has_range(candidates) && is_ephemeral(&candidates->policy, (uint16_t)at)) {
            /* Up to where the order goes on from the first port. */
            end = candidates->policy.ephemeral_last;
            candidates->walked += end - at + 1;
            continue;
        }
        if (!has_range(candidates) && at < candidates->policy.ephemeral_first &&
            end >= candidates->policy.ephemeral_first) {
            end = candidates->policy.ephemeral_first - 1u;
        }
        *port = (uint16_t)at;
        bool found = pm_ledger_find_rested(candidates->now - REST_NS, candidates->now, port,
                                           (uint16_t)end, &candidates->oldest);
        candidates->walked += (found ? *port : end) - at + 1;
        if (found && candidates->walked <= count) {
            return true;
        }
    }
    if (!has_range(candidates) && candidates->oldest != INT64_MAX) {
        atomic_store(&none_rests_before, candidates->oldest + REST_NS);
    }
    return false;
}

/* The next port of the lap; false behind the last one. */
static bool next_of_lap(pm_candidates *candidates, uint16_t *port)
{
    bool named = candidates->wish.name != 0;

    for (;;) {
        if (named && candidates->lap == LAP_OWN) {
            if (!next_own(candidates, port)) {
                return false;
            }
        } else if (!named && candidates->lap == LAP_RESTED) {
            if (!next_rested(candidates, port)) {
                return false;
            }
        } else if (candidates->walked < count_of(candidates)) {
            *port = port_at(candidates, candidates->walked++);
        } else {
            return false;
        }
        uint32_t lap = lap_of(candidates, *port);
        if (lap == candidates->lap ||
            (candidates->rested_too && candidates->lap == LAP_LATELY && lap == LAP_RESTED)) {
            return true;
        }
    }
}

bool pm_candidates_next(pm_candidates *candidates, uint16_t *port)
{
    for (; candidates->lap < PM_LAPS; candidates->lap++, candidates->walked = 0) {
        if (candidates->lap == LAP_LATELY && has_range(candidates) && !candidates->wish.name &&
            !candidates->by_age) {
            sort_by_age(candidates);
        }
        if (next_of_lap(candidates, port)) {
            candidates->ephemeral = pm_candidates_meet_ephemeral(candidates, *port, *port);
            return true;
        }
    }
    return false;
}

bool pm_candidates_allow(const pm_candidates *candidates, uint16_t port, uint32_t lap)
{
    return lap_of(candidates, port) <= lap;
}

bool pm_candidates_meet_ephemeral(const pm_candidates *candidates, uint16_t first, uint16_t last)
{
    const pm_port_policy *policy = &candidates->policy;
    return !has_range(candidates) && first <= policy->ephemeral_last &&
           last >= policy->ephemeral_first;
}

void pm_candidates_taken(const pm_candidates *candidates, uint16_t port)
{
    if (candidates->wish.name == 0 && !has_range(candidates)) {
        pm_ledger_set_next_port(port == UINT16_MAX ? WELL_KNOWN_END : (uint16_t)(port + 1));
    }
}

void pm_candidates_end(pm_candidates *candidates)
{
    free(candidates->by_age);
    candidates->by_age = NULL;
}
