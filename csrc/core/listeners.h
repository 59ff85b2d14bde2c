/* Who listens? Asked of the kernel's own tables: nothing is bound and nothing is connected.
 *
 * Ports are in host byte order. PM_OK says that the answer is known; PM_EXHAUSTED and PM_FAILED
 * say that it is not, and errno says why. Nothing here waits for the network; passes over all
 * sockets or all processes take as long as there are many. listeners_<platform>.c */
#ifndef PM_LISTENERS_H
#define PM_LISTENERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/address.h"
#include "core/port_set.h"
#include "core/status.h"

/* Would a connection to `address` and `port` reach a listener of this machine? An exact look, a
 * few microseconds. A wildcard address stands for the loopback address of its family. */
pm_status pm_listeners_reach(const pm_address *address, uint16_t port, bool *listening);

/* Is a socket bound to the port that does not listen? Where the kernel cannot tell (Linux
 * before 6.8) the answer is no. */
pm_status pm_listeners_bound(uint16_t port, bool *bound);

typedef struct {
    uint16_t port;
    uint64_t inode; /* what names the socket in /proc/PID/fd */
    int32_t pid;    /* 0: not known */
} pm_listener;

typedef struct {
    pm_listener *items;
    size_t count, capacity;
} pm_listeners;

/* All listening sockets on the wanted ports, on any local address, in one pass. The list is
 * the caller's to free, whatever the status. */
pm_status pm_listeners_list(const pm_port_set *wanted, pm_listeners *list);

/* Fills in the pids of those processes that we may look into, the lowest where several have a
 * socket; the rest stay 0. */
void pm_listeners_find_pids(pm_listeners *list);

void pm_listeners_free(pm_listeners *list);

#endif
