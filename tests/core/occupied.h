/* Who has a port, and who sees it: one row for each kind of holder. */
#ifndef PM_TEST_OCCUPIED_H
#define PM_TEST_OCCUPIED_H

#include "sockets.h"

enum {
    V4 = 1,        /* a client of 127.0.0.1 finds a listener */
    V6 = 2,        /* a client of ::1 does */
    HIDDEN = 4,    /* /proc/net does not tell IPV6_V6ONLY, so there both seem to */
    NEEDS_6_8 = 8, /* an older kernel does not tell sockets that are bound */
};

/* Ports are occupied until the process ends: for children of in_child. */
typedef struct {
    const char *holder;
    uint16_t (*occupy)(void);
    /* With SO_REUSEADDR, on these hosts. */
    pm_status on_127_0_0_1, on_1, on_0_0_0_0;
    pm_status service, strict;
    unsigned flags;
} occupied_row;

static inline uint16_t occupy(const char *literal, unsigned options)
{
    uint16_t port = 0;
    if (strchr(literal, ':')) {
        need_ipv6();
    }
    hold(literal, &port, options);
    return port;
}

static inline uint16_t by_nobody(void)
{
    return free_ports(1);
}

static inline uint16_t by_loopback(void)
{
    return occupy("127.0.0.1", LISTENING);
}

static inline uint16_t by_reusing(void)
{
    return occupy("127.0.0.1", LISTENING | REUSE_ADDRESS);
}

static inline uint16_t by_any(void)
{
    return occupy("0.0.0.0", LISTENING);
}

static inline uint16_t by_alias(void)
{
    return occupy("127.0.20.4", LISTENING);
}

static inline uint16_t by_interface(void)
{
    enter_new_network();
    add_address("192.0.2.1");
    return occupy("192.0.2.1", LISTENING);
}

static inline uint16_t by_dual(void)
{
    return occupy("::", LISTENING);
}

static inline uint16_t by_v6only(void)
{
    return occupy("::", LISTENING | ONLY_V6);
}

static inline uint16_t by_loopback6(void)
{
    return occupy("::1", LISTENING);
}

/* How a Java server binds 127.0.0.1. */
static inline uint16_t by_mapped(void)
{
    return occupy("::ffff:127.0.0.1", LISTENING);
}

static inline uint16_t by_mapped_any(void)
{
    return occupy("::ffff:0.0.0.0", LISTENING);
}

static inline uint16_t by_bound(void)
{
    return occupy("127.0.0.1", 0);
}

static inline uint16_t by_reusing_bound(void)
{
    return occupy("127.0.0.1", REUSE_ADDRESS);
}

static inline uint16_t by_reusing_bound6(void)
{
    return occupy("::1", REUSE_ADDRESS);
}

static inline uint16_t by_sharing_bound(void)
{
    return occupy("127.0.0.1", REUSE_PORT);
}

static inline uint16_t by_sharing(void)
{
    return occupy("127.0.0.1", LISTENING | REUSE_PORT);
}

static inline uint16_t by_outgoing(void)
{
    uint16_t port = 0;
    hold("127.0.0.1", &port, LISTENING);
    return port_of(connected_to(port));
}

static inline uint16_t by_accepted_of(unsigned options)
{
    uint16_t port = 0;
    int listener = hold("127.0.0.1", &port, LISTENING | options);
    connected_to(port);
    accepted_from(listener);
    close(listener);
    return port;
}

static inline uint16_t by_accepted(void)
{
    return by_accepted_of(0);
}

static inline uint16_t by_reusing_accepted(void)
{
    return by_accepted_of(REUSE_ADDRESS);
}

static inline uint16_t by_closed(void)
{
    return leave_time_wait(0);
}

static inline uint16_t by_reusing_closed(void)
{
    return leave_time_wait(REUSE_ADDRESS);
}

static inline uint16_t by_datagram(void)
{
    return occupy("127.0.0.1", DATAGRAM);
}

static inline uint16_t by_reusing_datagram(void)
{
    return occupy("127.0.0.1", DATAGRAM | REUSE_ADDRESS);
}

static inline uint16_t by_datagram6(void)
{
    return occupy("::1", DATAGRAM);
}

#define FREE PM_OK
#define USED PM_BUSY

static const occupied_row occupied_rows[] = {
    {"nobody",                     by_nobody,           FREE, FREE, FREE, FREE, FREE, 0          },
    {"listener on 127.0.0.1",      by_loopback,         USED, FREE, USED, USED, USED, V4         },
    {"listener, SO_REUSEADDR",     by_reusing,          USED, FREE, USED, USED, USED, V4         },
    {"listener on 0.0.0.0",        by_any,              USED, FREE, USED, USED, USED, V4         },
    {"listener on 127.0.20.4",     by_alias,            FREE, FREE, USED, USED, USED, 0          },
    {"listener on an interface",   by_interface,        FREE, FREE, USED, USED, USED, 0          },
    {"listener on ::, dual",       by_dual,             USED, USED, USED, USED, USED, V4 | V6    },
    {"listener on ::, IPv6 only",  by_v6only,           FREE, USED, FREE, USED, USED, V6 | HIDDEN},
    {"listener on ::1",            by_loopback6,        FREE, USED, FREE, USED, USED, V6         },
    {"listener, ::ffff:127.0.0.1", by_mapped,           USED, FREE, USED, USED, USED, V4         },
    {"listener, ::ffff:0.0.0.0",   by_mapped_any,       USED, FREE, USED, USED, USED, V4         },
    {"listener, SO_REUSEPORT",     by_sharing,          USED, FREE, USED, USED, USED, V4         },
    {"bound",                      by_bound,            USED, FREE, USED, USED, USED, 0          },
    {"bound, SO_REUSEPORT",        by_sharing_bound,    USED, FREE, USED, USED, USED, 0          },
    {"bound, SO_REUSEADDR",        by_reusing_bound,    FREE, FREE, FREE, USED, USED, NEEDS_6_8  },
    {"bound ::1, SO_REUSEADDR",    by_reusing_bound6,   FREE, FREE, FREE, USED, USED, NEEDS_6_8  },
    {"outgoing",                   by_outgoing,         USED, FREE, USED, USED, USED, 0          },
    {"accepted",                   by_accepted,         USED, FREE, USED, USED, USED, 0          },
    {"accepted, SO_REUSEADDR",     by_reusing_accepted, FREE, FREE, FREE, FREE, USED, 0          },
    {"TIME_WAIT",                  by_closed,           USED, FREE, USED, USED, USED, 0          },
    {"TIME_WAIT, SO_REUSEADDR",    by_reusing_closed,   FREE, FREE, FREE, FREE, USED, 0          },
    {"UDP on 127.0.0.1",           by_datagram,         FREE, FREE, FREE, FREE, USED, 0          },
    {"UDP, SO_REUSEADDR",          by_reusing_datagram, FREE, FREE, FREE, FREE, USED, 0          },
    {"UDP on ::1",                 by_datagram6,        FREE, FREE, FREE, FREE, USED, 0          },
};

enum { OCCUPIED_ROWS = sizeof occupied_rows / sizeof *occupied_rows };

/* A test of its own for every row; `about` goes in front of its name. */
static inline void add_row_tests(struct CMUnitTest tests[OCCUPIED_ROWS], const char *about,
                                 CMUnitTestFunction test)
{
    static char names[4 * OCCUPIED_ROWS][96];
    static size_t named;

    for (size_t i = 0; i < OCCUPIED_ROWS; i++) {
        char *name = names[named++];
        snprintf(name, sizeof names[0], "%s: %s", about, occupied_rows[i].holder);
        tests[i] = (struct CMUnitTest){
            .name = name, .test_func = test, .initial_state = (void *)(uintptr_t)&occupied_rows[i]};
    }
}

#endif
