/* A socket that listens on a port, made at once: between the allocation of a port and the bind of
 * its service there is no gap for others. */
#ifndef PM_LISTEN_H
#define PM_LISTEN_H

#include <stdint.h>

#include "core/address.h"
#include "core/status.h"

/* Binds the first address of a host that is this machine's, with SO_REUSEADDR, and listens; both
 * wildcards together (the empty host) are one dual-stack socket. `*fd` is the caller's,
 * close-on-exec and blocking. PM_BUSY, PM_FORBIDDEN, PM_NOT_LOCAL (none is ours), PM_UNSUPPORTED,
 * PM_EXHAUSTED or PM_FAILED: no socket, errno says why. Never blocks. */
pm_status pm_listen(const pm_addresses *host, uint16_t port, int backlog, int *fd);

#endif
