#include "core/listen.h"

#include <errno.h>
#include <stdbool.h>
#include <unistd.h>

static pm_status listen_at(const pm_address *address, uint16_t port, bool dual_stack, int backlog,
                           int *fd)
{
    pm_address bound = *address;
    int on = 1, off = 0;
    pm_status status = PM_OK;

    pm_address_set_port(&bound, port);
    *fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*fd < 0) {
        return pm_status_of_errno(errno);
    }
    if (setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        (dual_stack && setsockopt(*fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) < 0) ||
        bind(*fd, &bound.any, pm_address_length(&bound)) < 0 || listen(*fd, backlog) < 0) {
        int error = errno;
        status = pm_status_of_errno(error);
        close(*fd);
        *fd = -1;
        errno = error;
    }
    return status;
}

static bool is_wildcard(const pm_address *address)
{
    return address->any.sa_family == AF_INET ? address->v4.sin_addr.s_addr == htonl(INADDR_ANY)
                                             : IN6_IS_ADDR_UNSPECIFIED(&address->v6.sin6_addr);
}

static bool is_everywhere(const pm_addresses *host)
{
    return host->count == 2 && is_wildcard(&host->items[0]) && is_wildcard(&host->items[1]);
}

pm_status pm_listen(const pm_addresses *host, uint16_t port, int backlog, int *fd)
{
    pm_status status = PM_NOT_LOCAL;

    *fd = -1;
    errno = EADDRNOTAVAIL;
    if (is_everywhere(host)) {
        pm_address wildcard = pm_address_wildcard(AF_INET6);
        status = listen_at(&wildcard, port, true, backlog, fd);
        if (status != PM_UNSUPPORTED && status != PM_NOT_LOCAL) {
            return status;
        }
    }
    for (size_t i = 0; i < host->count; i++) {
        status = listen_at(&host->items[i], port, false, backlog, fd);
        if (status != PM_NOT_LOCAL && status != PM_UNSUPPORTED) {
            break;
        }
    }
    return status;
}
