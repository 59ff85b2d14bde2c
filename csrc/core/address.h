/* Host text to socket addresses. */
#ifndef PM_ADDRESS_H
#define PM_ADDRESS_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "core/status.h"

typedef union {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} pm_address;

/* A name with more addresses than this is judged by its first ones. */
enum { PM_ADDRESSES_MAX = 32 };

typedef struct {
    size_t count;
    pm_address items[PM_ADDRESSES_MAX];
} pm_addresses;

/* The addresses that a literal stands for; never blocks. Takes IPv4, IPv6, IPv6 in brackets or
 * with a scope (`fe80::1%lo`), and the empty string, which means 0.0.0.0 and `::`.
 * PM_UNRESOLVED: the text is not a literal. */
pm_status pm_address_literal(const char *host, pm_addresses *out);

/* The same for host names; asks the resolver and may block for as long as that does.
 * PM_UNRESOLVED: the name has no address. PM_EXHAUSTED: out of memory or descriptors. */
pm_status pm_address_resolve(const char *host, pm_addresses *out);

/* A port, in host byte order, put into an address of either family. */
void pm_address_set_port(pm_address *address, uint16_t port);

socklen_t pm_address_length(const pm_address *address);

/* The dual-stack wildcard's halves: 0.0.0.0 (AF_INET) and `::` (AF_INET6). */
pm_address pm_address_wildcard(int family);

/* 127.0.0.1 */
pm_address pm_address_loopback(void);

#endif
