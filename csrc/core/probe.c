#include "core/probe.h"

#include <errno.h>
#include <stdbool.h>
#include <unistd.h>

#include "core/fork.h"
#include "core/listeners.h"

void pm_prober_close(pm_prober *prober)
{
    if (prober->fd >= 0) {
        int error = errno; /* the caller's message needs the errno of what went before */
        close(prober->fd);
        errno = error;
        prober->fd = -1;
    }
}

/* An open socket of the wanted kind, the kept one where it fits. */
static pm_status prepare(pm_prober *prober, int family, int type, int reuse)
{
    if (prober->fd >= 0 && (prober->family != family || prober->type != type)) {
        pm_prober_close(prober);
    }
    if (prober->fd < 0) {
        prober->made_at = pm_fork_children();
        prober->fd = socket(family, type | SOCK_CLOEXEC, 0);
        if (prober->fd < 0) {
            return pm_status_of_errno(errno);
        }
        prober->family = family;
        prober->type = type;
        prober->reuse = 0;
    }
    if (prober->reuse != reuse) {
        if (setsockopt(prober->fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse) < 0) {
            return pm_status_of_errno(errno);
        }
        prober->reuse = reuse;
    }
    return PM_OK;
}

/* PM_AGAIN: a forked child has the socket too, and would keep the port when we let go. */
static pm_status bind_and_let_go(pm_prober *prober, const pm_address *address, uint16_t port)
{
    pm_address bound = *address;
    int result;

    pm_address_set_port(&bound, port);
    pm_fork_forbid();
    if (prober->made_at != pm_fork_children()) {
        pm_fork_allow();
        pm_prober_close(prober);
        return PM_AGAIN;
    }
    do {
        result = bind(prober->fd, &bound.any, pm_address_length(&bound));
    } while (result < 0 && errno == EINTR);
    int error = errno;
    if (result == 0) {
        pm_prober_close(prober); /* a bound socket cannot be bound again */
    }
    pm_fork_allow();
    errno = error;
    return result == 0 ? PM_OK : pm_status_of_errno(error);
}

pm_status pm_prober_bind(pm_prober *prober, const pm_address *address, uint16_t port, int type,
                         int reuse)
{
    pm_status status;

    do {
        status = prepare(prober, address->any.sa_family, type, reuse);
        if (status == PM_OK) {
            status = bind_and_let_go(prober, address, port);
        }
    } while (status == PM_AGAIN);
    return status;
}

pm_status pm_probe_host(pm_prober *prober, const pm_addresses *host, uint16_t port)
{
    pm_status answer = PM_NOT_LOCAL;

    for (size_t i = 0; i < host->count; i++) {
        pm_status status = pm_prober_bind(prober, &host->items[i], port, SOCK_STREAM, 1);
        if (status == PM_OK) {
            answer = PM_OK;
        } else if (status != PM_NOT_LOCAL && status != PM_UNSUPPORTED) {
            return status;
        }
    }
    return answer;
}

/* One bind of `::` that covers IPv4 too; of 0.0.0.0 where this machine has no IPv6. */
static pm_status try_everywhere(pm_prober *prober, uint16_t port, int type, int reuse)
{
    pm_address wildcard = pm_address_wildcard(AF_INET6);
    bool fresh = prober->fd < 0;

    if (fresh || prober->family == AF_INET6) {
        pm_status status = prepare(prober, AF_INET6, type, reuse);
        if (status == PM_OK && fresh) {
            int off = 0;
            if (setsockopt(prober->fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) < 0) {
                status = errno == ENOPROTOOPT ? PM_UNSUPPORTED : pm_status_of_errno(errno);
                pm_prober_close(prober); /* it covers IPv6 alone */
            }
        }
        if (status == PM_OK) {
            status = bind_and_let_go(prober, &wildcard, port);
        }
        if (status != PM_UNSUPPORTED && status != PM_NOT_LOCAL) {
            return status;
        }
    }
    wildcard = pm_address_wildcard(AF_INET);
    return pm_prober_bind(prober, &wildcard, port, type, reuse);
}

static pm_status bind_everywhere(pm_prober *prober, uint16_t port, int type, int reuse)
{
    pm_status status;

    do {
        status = try_everywhere(prober, port, type, reuse);
    } while (status == PM_AGAIN);
    return status;
}

pm_status pm_probe_service(pm_wildcard_prober *prober, uint16_t port)
{
    bool bound = false;
    pm_status status = bind_everywhere(&prober->plain, port, SOCK_STREAM, 0);

    if (status != PM_BUSY) {
        return status;
    }
    status = bind_everywhere(&prober->reusing, port, SOCK_STREAM, 1);
    if (status != PM_OK) {
        return status;
    }
    /* Only SO_REUSEADDR made the bind succeed: connections in TIME_WAIT, or a socket that is
     * bound with SO_REUSEADDR and will listen. The bind cannot tell them apart. */
    status = pm_listeners_bound(port, &bound);
    if (status != PM_OK) {
        return status == PM_EXHAUSTED ? status : PM_OK;
    }
    return bound ? PM_BUSY : PM_OK;
}

pm_status pm_probe_strict(pm_wildcard_prober *prober, uint16_t port)
{
    pm_status status = bind_everywhere(&prober->plain, port, SOCK_STREAM, 0);
    return status == PM_OK ? bind_everywhere(&prober->datagram, port, SOCK_DGRAM, 0) : status;
}

void pm_wildcard_prober_close(pm_wildcard_prober *prober)
{
    pm_prober_close(&prober->plain);
    pm_prober_close(&prober->reusing);
    pm_prober_close(&prober->datagram);
}
