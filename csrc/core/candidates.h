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

/* A walk over every port that nobody asked for by number: first those outside the ephemeral
 * range, then, as a last resort, those in it. Each walk goes on where the last one of the
 * process stopped, so a port that was given back is handed out again last. */
typedef struct {
    pm_port_policy policy;
    uint32_t walked; /* how many of both rounds are done */
    uint16_t port;   /* the one that the walk stands on */
} pm_candidates;

void pm_candidates_begin(pm_candidates *candidates);

/* The next candidate in `*port`; `*ephemeral` says that only the ephemeral range was left.
 * False when there is none. */
bool pm_candidates_next(pm_candidates *candidates, uint16_t *port, bool *ephemeral);

/* The candidate was taken: the process's next walk begins after it. */
void pm_candidates_taken(uint16_t port);

#endif
