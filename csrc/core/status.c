#include "core/status.h"

#include <errno.h>

pm_status pm_status_of_errno(int error)
{
    switch (error) {
    case EADDRINUSE:
        return PM_BUSY;
    case EACCES:
    case EPERM:
        return PM_FORBIDDEN;
    case EADDRNOTAVAIL:
    case ENODEV: /* a scope id that names no interface, */
    case EINVAL: /* or a link-local address without one */
        return PM_NOT_LOCAL;
    case EAFNOSUPPORT:
    case EPROTONOSUPPORT:
    case EPFNOSUPPORT:
        return PM_UNSUPPORTED;
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
        return PM_EXHAUSTED;
    default:
        return PM_FAILED;
    }
}
