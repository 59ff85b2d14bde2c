/* Which ports may be handed out unasked, and in which order. */
#ifndef PM_CANDIDATES_H
#define PM_CANDIDATES_H

#include <stdbool.h>
#include <stdint.h>

#include "core/port_set.h"

/* Is the port one that browsers, Node's fetch and Deno refuse (the "bad ports" of the Fetch
 * standard)? */
bool pm_port_is_blocked(uint16_t port);

/* What the operating system keeps ports for, in this network namespace, at this moment. */
typedef struct {
    uint16_t unprivileged_start; /* lower ports need a privilege */
    uint16_t ephemeral_first;    /* outgoing connections take their ports from first..last */
    uint16_t ephemeral_last;     /* first > last: no such range is known */
    pm_port_set reserved;        /* set aside by the administrator */
} pm_port_policy;

/* Reads files, so it may block for as long as those do; what cannot be read has the system's
 * documented default. candidates_<platform>.c */
void pm_port_policy_read(pm_port_policy *policy);

/* What a walk is for. */
typedef struct {
    uint64_t name;        /* a stable name's key: its own order of ports; 0: any port will do */
    uint16_t first, last; /* the ports that were asked for; 0, 0: all that are fit */
} pm_wish;

/* A walk over ports that nobody asked for by number, in laps: each port comes in the lap of its
 * kind. Without a range, ports below 1024, that need a privilege, that browsers refuse or that
 * the administrator set aside are left out.
 *
 * For any port: those that rested for two minutes, in the order of numbers from where the last
 * walk stopped; those given back lately; those remembered for a name; those of the ephemeral
 * range, if no range was asked for; those that browsers refuse, if one was.
 *
 * For a name: the port that is remembered for it; the others in an order that is the name's own,
 * first those that no other name has. */
typedef struct {
    pm_wish wish;
    pm_port_policy policy;
    int64_t now;          /* nanoseconds since the epoch */
    uint32_t first, last; /* the ports of the walk, fit or not */
    uint32_t lap;
    uint32_t walked;      /* how many ports of the lap are done */
    uint32_t start, step; /* the order: start, start + step, ... */
    int64_t oldest;       /* when the first port that did not rest was changed */
    bool rested_too;      /* the second lap is the first one's, too */
    bool ephemeral;       /* the last one is of the ephemeral range, and was not asked for */
    uint16_t *by_age;     /* a range's ports that were given back lately, NULL if not known */
} pm_candidates;

/* Reads the policy's files; to be called after pm_ledger_check(). */
void pm_candidates_begin(pm_candidates *candidates, const pm_wish *wish);

/* The next candidate in `*port`, which may well be held or busy. False when there is none. */
bool pm_candidates_next(pm_candidates *candidates, uint16_t *port);

/* May the port be handed out in this lap or an earlier one? For runs of consecutive ports. */
bool pm_candidates_allow(const pm_candidates *candidates, uint16_t port, uint32_t lap);
enum { PM_LAPS = 4 };

/* Is one of the ports of first..last in the ephemeral range, and nobody asked for a range? */
bool pm_candidates_meet_ephemeral(const pm_candidates *candidates, uint16_t first, uint16_t last);

/* The candidate was taken. */
void pm_candidates_taken(const pm_candidates *candidates, uint16_t port);

void pm_candidates_end(pm_candidates *candidates);

#endif
