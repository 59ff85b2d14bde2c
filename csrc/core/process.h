/* What tells this process from others. */
#ifndef PM_PROCESS_H
#define PM_PROCESS_H

#include <stdint.h>

/* Never 0; a forked child has one of its own. process_<platform>.c */
uint32_t pm_process_id(void);

/* A number that differs from process to process and from call to call; not for secrets. Never
 * blocks. */
uint32_t pm_entropy(void);

#endif
