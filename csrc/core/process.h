/* What tells this process from others, and whose child it is. process_<platform>.c */
#ifndef PM_PROCESS_H
#define PM_PROCESS_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

/* Never 0; a forked child has one of its own. */
uint32_t pm_process_id(void);

/* A number that differs from process to process and from call to call; not for secrets. Never
 * blocks. */
uint32_t pm_entropy(void);

/* Two processes that had one pid differ in when they started, in a unit of the platform's. */
typedef struct {
    uint32_t pid; /* 0: not known */
    uint64_t started;
} pm_process;

/* This process; its start is 0 where the system does not tell. */
pm_process pm_process_self(void);

/* A process, its parent, its parent's and so on, as far as can be seen, at most `max`; returns how
 * many. Reads a small file for each. */
size_t pm_process_lineage(uint32_t pid, pm_process *lineage, size_t max);

/* What tells this process's network from others'; 0 where the system does not tell. PM_EXHAUSTED:
 * out of memory, errno says so. */
pm_status pm_network_namespace(uint64_t *number);

#endif
