/* A number that differs from process to process and from call to call; not for secrets. */
#ifndef PM_ENTROPY_H
#define PM_ENTROPY_H

#include <stdint.h>

/* Never blocks. entropy_<platform>.c */
uint32_t pm_entropy(void);

#endif
