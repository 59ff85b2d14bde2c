/* Can this port be bound? The operating system's own answer, by binding and closing again.
 *
 * Nothing here blocks, nothing here looks at reservations. Ports are in host byte order, 0 (any
 * free port) to 65535. Where the answer is not known the status is PM_EXHAUSTED or PM_FAILED and
 * errno says why. */
#ifndef PM_PROBE_H
#define PM_PROBE_H

#include <stdint.h>

#include "core/address.h"
#include "core/status.h"

/* A socket that is kept from one probe to the next: a bind that fails leaves it unbound, so a
 * walk over busy ports costs one bind for each. A prober is one thread's at a time. */
typedef struct {
    int fd; /* -1: none open */
    int family;
    int type; /* SOCK_STREAM or SOCK_DGRAM */
    int reuse;
    uint32_t made_at; /* pm_fork_children() before it was made */
} pm_prober;

#define PM_PROBER_CLOSED ((pm_prober){.fd = -1})

/* One bind of `address` (its port is overwritten). With `reuse`, SO_REUSEADDR is set, so that
 * connections in TIME_WAIT do not count. Afterwards the port is free again in any case.
 * PM_OK: it can be bound; else PM_BUSY, PM_FORBIDDEN, PM_NOT_LOCAL, PM_UNSUPPORTED or unknown. */
pm_status pm_prober_bind(pm_prober *prober, const pm_address *address, uint16_t port, int type,
                         int reuse);
void pm_prober_close(pm_prober *prober);

/* Is the port free on a host, given all its addresses? Each address that is this machine's must
 * be, with SO_REUSEADDR; PM_NOT_LOCAL when none is. */
pm_status pm_probe_host(pm_prober *prober, const pm_addresses *host, uint16_t port);

/* Three sockets for the probe of an allocation: one dual-stack wildcard bind says whether
 * any local address, IPv4 or IPv6, has the port. */
typedef struct {
    pm_prober plain;
    pm_prober reusing;
    pm_prober datagram;
} pm_wildcard_prober;

#define PM_WILDCARD_PROBER_CLOSED                                                                  \
    ((pm_wildcard_prober){PM_PROBER_CLOSED, PM_PROBER_CLOSED, PM_PROBER_CLOSED})

/* Could a named service have the port, whatever address it binds? TIME_WAIT does not count, a
 * socket that is bound and does not listen yet does. */
pm_status pm_probe_service(pm_wildcard_prober *prober, uint16_t port);

/* Could a server that does not set SO_REUSEADDR have it, TCP and UDP alike? */
pm_status pm_probe_strict(pm_wildcard_prober *prober, uint16_t port);

void pm_wildcard_prober_close(pm_wildcard_prober *prober);

#endif
