/* What a forked child must not find half done. */
#ifndef PM_FORK_H
#define PM_FORK_H

#include <stdint.h>

/* Between these two no thread forks: a child would keep a socket that is bound for a moment. Not to
 * be nested; short, for who forks waits. */
void pm_fork_forbid(void);
void pm_fork_allow(void);

/* How often this process has forked: a socket that was made before has a second owner. */
uint32_t pm_fork_children(void);

/* A number that is another one in a forked child. */
uint32_t pm_fork_count(void);

#endif
