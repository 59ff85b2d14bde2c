/* Where a file is kept. */
#ifndef PM_FILE_SYSTEM_H
#define PM_FILE_SYSTEM_H

#include <stdbool.h>

/* Is an open file on this machine, so that its locks and mappings are every process's here? A
 * file system that is not known is taken for local. file_system_<platform>.c */
bool pm_file_system_is_local(int fd);

#endif
