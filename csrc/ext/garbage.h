/* A port that garbage holds is not refused. */
#ifndef PM_GARBAGE_H
#define PM_GARBAGE_H

/* gc.collect(), also where automatic collection is off; -1 with an exception. */
int pm_collect_garbage(void);

#endif
