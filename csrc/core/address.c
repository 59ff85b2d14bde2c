#include "core/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

/* The longest text that can be a host: a DNS name has 253 characters, a literal with its scope
 * fewer. Longer ones must not travel to a resolver. */
enum { HOST_MAX = 255 };

pm_address pm_address_wildcard(int family)
{
    pm_address address;
    memset(&address, 0, sizeof address);
    address.any.sa_family = (sa_family_t)family;
    return address;
}

pm_address pm_address_loopback(void)
{
    pm_address address = pm_address_wildcard(AF_INET);
    address.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

void pm_address_set_port(pm_address *address, uint16_t port)
{
    if (address->any.sa_family == AF_INET6) {
        address->v6.sin6_port = htons(port);
    } else {
        address->v4.sin_port = htons(port);
    }
}

socklen_t pm_address_length(const pm_address *address)
{
    return address->any.sa_family == AF_INET6 ? (socklen_t)sizeof address->v6
                                              : (socklen_t)sizeof address->v4;
}

/* ::ffff:127.0.0.1 becomes 127.0.0.1, which is what it means: the kernel's tables and sockets that
 * are IPv6 only (net.ipv6.bindv6only) know that alone. */
static void unmap(pm_address *address)
{
    struct in_addr v4;

    if (address->any.sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&address->v6.sin6_addr)) {
        memcpy(&v4, &address->v6.sin6_addr.s6_addr[12], sizeof v4);
        *address = pm_address_wildcard(AF_INET);
        address->v4.sin_addr = v4;
    }
}

/* Can a descriptor be had now? A resolver that cannot open its files calls every name unknown. */
static pm_status check_descriptors(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return pm_status_of_errno(errno) == PM_EXHAUSTED ? PM_EXHAUSTED : PM_OK;
    }
    close(fd);
    return PM_OK;
}

static pm_status status_of_lookup(int code)
{
    if (code == 0) {
        return PM_OK;
    }
    if (code == EAI_MEMORY) {
        errno = ENOMEM;
        return PM_EXHAUSTED;
    }
    if (code == EAI_SYSTEM && pm_status_of_errno(errno) == PM_EXHAUSTED) {
        return PM_EXHAUSTED;
    }
    return check_descriptors() == PM_OK ? PM_UNRESOLVED : PM_EXHAUSTED;
}

static pm_status lookup(const char *host, int flags, pm_addresses *out)
{
    struct addrinfo hints, *list = NULL;

    memset(&hints, 0, sizeof hints);
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = flags;
    out->count = 0;

    pm_status status = status_of_lookup(getaddrinfo(host, NULL, &hints, &list));
    if (status != PM_OK) {
        return status;
    }
    for (const struct addrinfo *at = list; at && out->count < PM_ADDRESSES_MAX; at = at->ai_next) {
        if ((at->ai_family == AF_INET || at->ai_family == AF_INET6) &&
            at->ai_addrlen <= sizeof out->items[0]) {
            memcpy(&out->items[out->count], at->ai_addr, at->ai_addrlen);
            unmap(&out->items[out->count++]);
        }
    }
    freeaddrinfo(list);
    return out->count ? PM_OK : PM_UNRESOLVED;
}

/* `[::1]` without its brackets, in `copy`; other text is returned as it is. */
static const char *unbracketed(const char *host, char copy[HOST_MAX + 1])
{
    size_t length = strlen(host);
    if (length < 2 || host[0] != '[' || host[length - 1] != ']') {
        return host;
    }
    memcpy(copy, host + 1, length - 2);
    copy[length - 2] = '\0';
    return copy;
}

pm_status pm_address_literal(const char *host, pm_addresses *out)
{
    char copy[HOST_MAX + 1];
    pm_address *first = &out->items[0];

    if (strnlen(host, HOST_MAX + 1) > HOST_MAX) {
        return PM_UNRESOLVED;
    }
    if (*host == '\0') {
        out->count = 2;
        out->items[0] = pm_address_wildcard(AF_INET);
        out->items[1] = pm_address_wildcard(AF_INET6);
        return PM_OK;
    }
    out->count = 1;
    *first = pm_address_wildcard(AF_INET);
    if (inet_pton(AF_INET, host, &first->v4.sin_addr) == 1) {
        return PM_OK;
    }
    const char *text = unbracketed(host, copy);
    *first = pm_address_wildcard(AF_INET6);
    if (inet_pton(AF_INET6, text, &first->v6.sin6_addr) == 1) {
        unmap(first);
        return PM_OK;
    }
    out->count = 0;
    return strchr(text, '%') ? lookup(text, AI_NUMERICHOST, out) : PM_UNRESOLVED;
}

pm_status pm_address_resolve(const char *host, pm_addresses *out)
{
    pm_status status = pm_address_literal(host, out);
    if (status != PM_UNRESOLVED || strnlen(host, HOST_MAX + 1) > HOST_MAX) {
        return status;
    }
    return lookup(host, 0, out);
}
