/* Does the holder of a slot live? The kernel knows: a process that has a slot holds one lock on
 * the slot's byte of the ledger's file, and loses it only by dying (or by exec).
 *
 * liveness_<platform>.c */
#ifndef PM_LIVENESS_H
#define PM_LIVENESS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/status.h"

/* Locks a slot's byte for the open file description of `fd`, without waiting. The lock stays as
 * long as that description lives, be it by a mapping alone, and no forked child has it.
 * PM_BUSY: somebody has it. PM_FAILED: errno says why. */
pm_status pm_liveness_lock(int fd, uint32_t slot);
void pm_liveness_unlock(int fd, uint32_t slot);

/* Is the slot's byte locked, by whichever process, this one included? `fd` is of another
 * description than the lock's. PM_FAILED: errno says why. Does not block. */
pm_status pm_liveness_ask(int fd, uint32_t slot, bool *locked);

#endif
