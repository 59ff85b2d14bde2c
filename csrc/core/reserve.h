/* Ports for those who need no service: one, several, consecutive ones, or a name's own. All of
 * them or none. */
#ifndef PM_RESERVE_H
#define PM_RESERVE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/candidates.h"
#include "core/ledger.h"
#include "core/status.h"
#include "core/take.h"

typedef struct {
    pm_holder holder;
    uint32_t count; /* 1..65535 */
    bool consecutive;
    pm_name name;         /* with a key: the port of this name; count is 1 */
    uint16_t first, last; /* as pm_wish's */
} pm_reserve_request;

typedef struct {
    pm_reserve_request request;
    uint16_t *ports; /* the caller's, `count` of them: those that are held so far */
    uint32_t found;  /* how many those are; PM_BUSY: how many there were, in a row if need be */
    uint32_t longest;
    uint16_t wanted;    /* the name's first candidate; 0: none was fit */
    bool borrowed;      /* from an ancestor process */
    uint32_t ephemeral; /* how many, the last, are of the ephemeral range that nobody asked for */
    bool begun;
    uint32_t lap, next; /* of a walk for consecutive ports */
    uint32_t forbidden; /* candidates that need a privilege */
    pm_candidates candidates;
    pm_taker taker;
} pm_reservation;

/* Asks the ledger and reads the ports' policy: files. PM_OK; PM_EXHAUSTED: out of descriptors or
 * memory, errno says which, and there is nothing to end. */
pm_status pm_reservation_begin(pm_reservation *reservation, const pm_reserve_request *request,
                               uint16_t *ports);

/* Looks at up to `budget` candidates. Does not wait, unless `patient`, and then for 10 ms at most.
 * PM_OK: all are held. PM_AGAIN: not finished, call again. PM_BUSY: there are not so many, and
 * none is held. PM_EXHAUSTED, PM_FAILED: not known, errno says why; none is held. */
pm_status pm_reservation_run(pm_reservation *reservation, uint32_t budget, bool patient);

/* Closes what is open; ports that were found stay held. */
void pm_reservation_end(pm_reservation *reservation);

#endif
