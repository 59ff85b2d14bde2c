/* Ports that tests hold, and how: bound, listening, connected, closed. */
#ifndef PM_TEST_SOCKETS_H
#define PM_TEST_SOCKETS_H

#include "support.h"

#include <sys/mman.h>

enum {
    REUSE_ADDRESS = 1,
    REUSE_PORT = 2,
    ONLY_V6 = 4,
    LISTENING = 8,
    DATAGRAM = 16,
};

static inline void switch_option(int fd, int level, int option, int value)
{
    assert_int_equal(setsockopt(fd, level, option, &value, sizeof value), 0);
}

typedef union {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} any_address;

static inline socklen_t fill_address(any_address *address, const char *literal, uint16_t port)
{
    memset(address, 0, sizeof *address);
    if (strchr(literal, ':')) {
        address->v6.sin6_family = AF_INET6;
        address->v6.sin6_port = htons(port);
        assert_int_equal(inet_pton(AF_INET6, literal, &address->v6.sin6_addr), 1);
        return sizeof address->v6;
    }
    address->v4.sin_family = AF_INET;
    address->v4.sin_port = htons(port);
    assert_int_equal(inet_pton(AF_INET, literal, &address->v4.sin_addr), 1);
    return sizeof address->v4;
}

static inline uint16_t port_of(int fd)
{
    any_address address;
    socklen_t length = sizeof address;
    assert_int_equal(getsockname(fd, &address.any, &length), 0);
    return ntohs(address.any.sa_family == AF_INET6 ? address.v6.sin6_port : address.v4.sin_port);
}

/* A socket bound to the literal address and `*port`, which the kernel chooses when it is 0;
 * -1 with errno. `::` is dual-stack but for ONLY_V6. */
static inline int try_hold(const char *literal, uint16_t *port, unsigned options)
{
    any_address address;
    socklen_t length = fill_address(&address, literal, *port);
    int type = options & DATAGRAM ? SOCK_DGRAM : SOCK_STREAM;
    int fd = socket(address.any.sa_family, type | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        return -1;
    }
    if (address.any.sa_family == AF_INET6) {
        switch_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, (options & ONLY_V6) != 0);
    }
    switch_option(fd, SOL_SOCKET, SO_REUSEADDR, (options & REUSE_ADDRESS) != 0);
    switch_option(fd, SOL_SOCKET, SO_REUSEPORT, (options & REUSE_PORT) != 0);
    if (bind(fd, &address.any, length) != 0 || (options & LISTENING && listen(fd, 16) != 0)) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    *port = port_of(fd);
    return fd;
}

/* The ports that this program's tests were given, children's included. */
static _Atomic bool *given_ports;

__attribute__((constructor)) static inline void share_given_ports(void)
{
    given_ports =
        mmap(NULL, UINT16_MAX + 1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (given_ports == MAP_FAILED) {
        abort();
    }
}

/* Fails the test where try_hold fails. The kernel chooses one number twice where addresses or
 * protocols differ, which tests mean to tell apart, and where another test left a TIME_WAIT: what
 * is chosen here is a new one. */
static inline int hold(const char *literal, uint16_t *port, unsigned options)
{
    enum { TRIES = 100 }; /* the tests may have had all ports there are */
    bool chosen = *port == 0;
    int fd = try_hold(literal, port, options);

    for (int i = 0; chosen && fd >= 0 && given_ports[*port] && i < TRIES; i++) {
        close(fd);
        *port = 0;
        fd = try_hold(literal, port, options);
    }
    if (fd < 0) {
        fail_msg("port %d of %s cannot be had: %s", *port, literal, strerror(errno));
    }
    given_ports[*port] = true;
    return fd;
}

static inline bool has_ipv6(void)
{
    uint16_t port = 0;
    int fd = try_hold("::1", &port, 0);
    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0;
}

static inline void need_ipv6(void)
{
    if (!has_ipv6()) {
        skip_because("this machine has no ::1");
    }
}

/* A client connected to a listener on 127.0.0.1. */
static inline int connected_to(uint16_t port)
{
    any_address address;
    socklen_t length = fill_address(&address, "127.0.0.1", port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, &address.any, length), 0);
    return fd;
}

static inline int accepted_from(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

/* Leaves a connection in TIME_WAIT on the port of a server that is gone. */
static inline uint16_t leave_time_wait(unsigned options)
{
    uint16_t port = 0;
    char byte;
    int listener = hold("127.0.0.1", &port, LISTENING | options);
    int client = connected_to(port), accepted = accepted_from(listener);

    close(accepted); /* who closes first has the TIME_WAIT */
    assert_int_equal(read(client, &byte, 1), 0);
    close(client);
    close(listener);
    return port;
}

/* The lowest of `count` neighbouring ports that the kernel has free. */
static inline uint16_t free_ports(unsigned count)
{
    enum { MOST = 64, TRIES = 100 };
    const char *everywhere = has_ipv6() ? "::" : "0.0.0.0";
    int fds[MOST];

    assert_in_range(count, 1, MOST);
    for (int i = 0; i < TRIES; i++) {
        uint16_t first = 0;
        unsigned held = 0;
        fds[held++] = hold(everywhere, &first, 0);
        while (held < count && first + held <= UINT16_MAX) {
            uint16_t next = (uint16_t)(first + held);
            int fd = try_hold(everywhere, &next, 0);
            if (fd < 0) {
                break;
            }
            fds[held++] = fd;
        }
        bool complete = held == count;
        while (held > 0) {
            close(fds[--held]);
        }
        if (complete) {
            return first;
        }
    }
    skip_because("the kernel has not so many neighbouring ports free");
    return 0;
}

#endif
