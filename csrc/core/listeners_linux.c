/* Linux: sock_diag netlink, and /proc/net/tcp and tcp6 where that is refused. */
#include "core/listeners.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* States of include/net/tcp_states.h, which the kernel does not export. */
enum { STATE_LISTEN = 10, STATE_BOUND_INACTIVE = 13 };

/* What a machine sends to itself comes in by `lo`, the first interface of every network namespace:
 * a socket that is bound to that one counts too. */
enum { LOOPBACK_INDEX = 1 };

/* What a look does with each socket that the kernel names; false ends the look. */
typedef bool (*visit)(void *context, int family, uint16_t port, const uint32_t address[4],
                      uint64_t inode);

/* ---- sock_diag ------------------------------------------------------------------------- */

typedef struct {
    struct nlmsghdr header;
    struct inet_diag_req_v2 body;
} diag_request;

static pm_status diag_open(int *fd)
{
    *fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    return *fd < 0 ? pm_status_of_errno(errno) : PM_OK;
}

static pm_status diag_send(int fd, int family, unsigned states, uint16_t port,
                           const pm_address *exact)
{
    diag_request request;
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    ssize_t sent;

    memset(&request, 0, sizeof request);
    request.header.nlmsg_len = sizeof request;
    request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
    request.header.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | (exact ? 0 : NLM_F_DUMP));
    request.body.sdiag_family = (uint8_t)family;
    request.body.sdiag_protocol = IPPROTO_TCP;
    request.body.idiag_states = states;
    request.body.id.idiag_sport = htons(port);
    request.body.id.idiag_cookie[0] = INET_DIAG_NOCOOKIE;
    request.body.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
    if (exact && family == AF_INET) {
        memcpy(request.body.id.idiag_src, &exact->v4.sin_addr, sizeof exact->v4.sin_addr);
        request.body.id.idiag_if = LOOPBACK_INDEX;
    } else if (exact) {
        memcpy(request.body.id.idiag_src, &exact->v6.sin6_addr, sizeof exact->v6.sin6_addr);
        request.body.id.idiag_if =
            exact->v6.sin6_scope_id ? exact->v6.sin6_scope_id : LOOPBACK_INDEX;
    }
    do {
        sent = sendto(fd, &request, sizeof request, 0, (struct sockaddr *)&kernel, sizeof kernel);
    } while (sent < 0 && errno == EINTR);
    return sent < 0 ? pm_status_of_errno(errno) : PM_OK;
}

/* The kernel's refusal in an NLMSG_ERROR: 0 for a plain acknowledgement. */
static int diag_error(const struct nlmsghdr *header)
{
    const struct nlmsgerr *error = NLMSG_DATA(header);
    return header->nlmsg_len < NLMSG_LENGTH(sizeof *error) ? EBADMSG : -error->error;
}

/* What ended a dump before its end: 0 for nothing. */
static int dump_error(const struct nlmsghdr *header)
{
    int error = 0;
    if (header->nlmsg_len >= NLMSG_LENGTH(sizeof error)) {
        memcpy(&error, NLMSG_DATA(header), sizeof error);
    }
    return -error;
}

/* Reads the kernel's answers until the last one. `one`: there is only one message. ENOENT: there
 * is no such socket, or no table of TCP sockets at all (a module that cannot be loaded). */
static pm_status diag_receive(int fd, bool one, visit each, void *context)
{
    /* The kernel fills dump messages up to 32 KiB when the reader offers that much. */
    _Alignas(struct nlmsghdr) char buffer[32768];

    for (;;) {
        ssize_t got;
        do {
            got = recv(fd, buffer, sizeof buffer, 0);
        } while (got < 0 && errno == EINTR);
        if (got < 0) {
            return pm_status_of_errno(errno);
        }
        size_t left = (size_t)got;
        const struct nlmsghdr *header = (const struct nlmsghdr *)buffer;
        for (; NLMSG_OK(header, left); header = NLMSG_NEXT(header, left)) {
            const struct inet_diag_msg *message = NLMSG_DATA(header);
            if (header->nlmsg_type == NLMSG_DONE || header->nlmsg_type == NLMSG_ERROR) {
                errno = header->nlmsg_type == NLMSG_DONE ? dump_error(header) : diag_error(header);
                return errno == 0 ? PM_OK : pm_status_of_errno(errno);
            }
            if (header->nlmsg_type == SOCK_DIAG_BY_FAMILY &&
                header->nlmsg_len >= NLMSG_LENGTH(sizeof *message) &&
                !each(context, message->idiag_family, ntohs(message->id.idiag_sport),
                      message->id.idiag_src, message->idiag_inode)) {
                return PM_OK;
            }
        }
        if (one) {
            return PM_OK;
        }
    }
}

/* The listener that the kernel would give a connection. Where there is none it says the same as
 * where it has no table; a dump of no state at all, which is quick, tells which it is. */
static pm_status diag_find(int fd, const pm_address *address, uint16_t port, visit each,
                           void *context)
{
    int family = address->any.sa_family;
    pm_status status = diag_send(fd, family, 1u << STATE_LISTEN, port, address);

    if (status == PM_OK) {
        status = diag_receive(fd, true, each, context);
    }
    if (status == PM_FAILED && errno == ENOENT) {
        status = diag_send(fd, family, 0, port, NULL);
        if (status == PM_OK) {
            status = diag_receive(fd, false, each, context);
        }
    }
    return status;
}

/* Every socket of a state, IPv4 and IPv6; of one port, or of all for port 0. */
static pm_status diag_dump(unsigned state, uint16_t port, visit each, void *context)
{
    static const int families[] = {AF_INET, AF_INET6};
    int fd;
    pm_status status = diag_open(&fd);

    for (size_t i = 0; status == PM_OK && i < 2; i++) {
        status = diag_send(fd, families[i], 1u << state, port, NULL);
        if (status == PM_OK) {
            status = diag_receive(fd, false, each, context);
        }
    }
    if (fd >= 0) {
        int error = errno;
        close(fd);
        errno = error;
    }
    return status;
}

/* ---- /proc/net -------------------------------------------------------------------------- */

/* One line: `sl local:port remote:port state queues timers retransmits uid timeout inode`. */
static bool parse_line(const char *line, uint16_t *port, uint32_t address[4], unsigned *state,
                       uint64_t *inode)
{
    char local[33];
    unsigned number;
    memset(address, 0, 4 * sizeof *address);
    if (sscanf(line,
               " %*[0-9]: %32[0-9A-Fa-f]:%4x %*[0-9A-Fa-f]:%*x %2x %*[^ ] %*[^ ] %*[^ ] %*u %*u"
               " %" SCNu64,
               local, &number, state, inode) != 4) {
        return false;
    }
    /* Each eight digits are one word in the byte order of the machine. */
    for (size_t i = 0; i < 4 && strlen(local) >= 8 * (i + 1); i++) {
        if (sscanf(local + 8 * i, "%8" SCNx32, &address[i]) != 1) {
            return false;
        }
    }
    *port = (uint16_t)number;
    return true;
}

/* A socket of IPv6 that is bound to ::ffff:127.0.0.1, as Java's are, is one of 127.0.0.1. */
static int unmapped(int family, uint32_t address[4])
{
    if (family != AF_INET6 || address[0] || address[1] || address[2] != htonl(0xffff)) {
        return family;
    }
    address[0] = address[3];
    address[2] = address[3] = 0;
    return AF_INET;
}

static pm_status proc_dump(unsigned state, visit each, void *context)
{
    static const struct {
        const char *path;
        int family;
    } tables[] = {
        {"/proc/net/tcp",  AF_INET },
        {"/proc/net/tcp6", AF_INET6}
    };
    pm_status answer = PM_FAILED;
    bool going = true;

    for (size_t i = 0; going && i < 2; i++) {
        char line[512];
        FILE *file = fopen(tables[i].path, "re");
        if (!file) {
            if (pm_status_of_errno(errno) == PM_EXHAUSTED) {
                return PM_EXHAUSTED;
            }
            if (errno != ENOENT) {
                return PM_FAILED;
            }
            continue; /* a machine without IPv6 has no tcp6 */
        }
        answer = PM_OK;
        while (going && fgets(line, sizeof line, file)) {
            uint16_t port;
            uint32_t address[4];
            unsigned its_state;
            uint64_t inode;
            if (parse_line(line, &port, address, &its_state, &inode) && its_state == state) {
                int family = unmapped(tables[i].family, address);
                going = each(context, family, port, address, inode);
            }
        }
        if (ferror(file)) {
            answer = pm_status_of_errno(errno) == PM_EXHAUSTED ? PM_EXHAUSTED : PM_FAILED;
        }
        int error = errno;
        fclose(file);
        errno = error;
        if (answer != PM_OK) {
            return answer;
        }
    }
    return answer;
}

/* Netlink may be missing or refused in a container; being out of descriptors is neither. */
static bool needs_proc(pm_status status)
{
    return status != PM_OK && status != PM_EXHAUSTED;
}

/* ---- the questions ----------------------------------------------------------------------- */

typedef struct {
    pm_address address;
    uint16_t port;
    bool found;
} reach_query;

static bool is_wildcard(const uint32_t address[4])
{
    return !(address[0] | address[1] | address[2] | address[3]);
}

/* Would the query's address reach a listener with this local address? */
static bool visit_reach(void *context, int family, uint16_t port, const uint32_t address[4],
                        uint64_t inode)
{
    reach_query *query = context;
    const pm_address *wanted = &query->address;
    (void)inode;
    if (port != query->port) {
        return true;
    }
    if (is_wildcard(address)) {
        /* `::` is taken as dual-stack: the table does not say. */
        query->found = family == wanted->any.sa_family || family == AF_INET6;
    } else if (family == wanted->any.sa_family) {
        query->found = family == AF_INET
                           ? !memcmp(address, &wanted->v4.sin_addr, sizeof wanted->v4.sin_addr)
                           : !memcmp(address, &wanted->v6.sin6_addr, sizeof wanted->v6.sin6_addr);
    }
    return !query->found;
}

static bool visit_any(void *context, int family, uint16_t port, const uint32_t address[4],
                      uint64_t inode)
{
    (void)family, (void)address, (void)inode;
    reach_query *query = context;
    query->found = port == query->port;
    return !query->found;
}

static void wildcard_to_loopback(pm_address *address)
{
    if (address->any.sa_family == AF_INET && address->v4.sin_addr.s_addr == htonl(INADDR_ANY)) {
        address->v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    } else if (address->any.sa_family == AF_INET6 &&
               !memcmp(&address->v6.sin6_addr, &in6addr_any, sizeof in6addr_any)) {
        address->v6.sin6_addr = in6addr_loopback;
    }
}

typedef struct {
    struct nlmsghdr header;
    struct rtmsg body;
    struct rtattr attribute;
    uint8_t destination[16];
} route_request;

/* Loopback is this machine's without a question: not every kernel has routes that say so. */
static bool is_loopback(const pm_address *address)
{
    return address->any.sa_family == AF_INET ? ntohl(address->v4.sin_addr.s_addr) >> 24 == 127
                                             : IN6_IS_ADDR_LOOPBACK(&address->v6.sin6_addr);
}

/* No route: the address is somebody else's. Any other refusal is no answer. */
static bool says_no_route(const struct nlmsghdr *header, ssize_t got)
{
    if (got < (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)) || header->nlmsg_type != NLMSG_ERROR) {
        return false;
    }
    int error = diag_error(header);
    return error == ENETUNREACH || error == EHOSTUNREACH;
}

/* Is the address one of this machine's, as the kernel routes it? Where the kernel does not say,
 * it is taken for one. */
static bool is_local(const pm_address *address)
{
    bool v6 = address->any.sa_family == AF_INET6, local = true;
    size_t size = v6 ? sizeof address->v6.sin6_addr : sizeof address->v4.sin_addr;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    route_request request;
    _Alignas(struct nlmsghdr) char buffer[1024];
    const struct nlmsghdr *answer = (const struct nlmsghdr *)buffer;

    memset(&request, 0, sizeof request);
    request.header.nlmsg_type = RTM_GETROUTE;
    request.header.nlmsg_flags = NLM_F_REQUEST;
    request.body.rtm_family = (uint8_t)address->any.sa_family;
    request.body.rtm_dst_len = (uint8_t)(8 * size);
    request.attribute.rta_type = RTA_DST;
    request.attribute.rta_len = (uint16_t)RTA_LENGTH(size);
    memcpy(request.destination,
           v6 ? (const void *)&address->v6.sin6_addr : (const void *)&address->v4.sin_addr, size);
    request.header.nlmsg_len = (uint32_t)(offsetof(route_request, attribute) + RTA_LENGTH(size));
    if (fd >= 0 && send(fd, &request, request.header.nlmsg_len, 0) >= 0) {
        ssize_t got = recv(fd, buffer, sizeof buffer, 0);
        const struct rtmsg *route = NLMSG_DATA(answer);
        if (got >= (ssize_t)NLMSG_LENGTH(sizeof *route) && answer->nlmsg_type == RTM_NEWROUTE) {
            local = route->rtm_type == RTN_LOCAL;
        } else {
            local = !says_no_route(answer, got);
        }
    }
    if (fd >= 0) {
        close(fd);
    }
    return local;
}

pm_status pm_listeners_reach(const pm_address *address, uint16_t port, bool *listening)
{
    reach_query query = {.address = *address, .port = port};
    int fd;

    wildcard_to_loopback(&query.address);
    pm_status status = diag_open(&fd);
    if (status == PM_OK) {
        status = diag_find(fd, &query.address, port, visit_any, &query);
        int error = errno;
        close(fd);
        errno = error;
    }
    if (needs_proc(status)) {
        status = proc_dump(STATE_LISTEN, visit_reach, &query);
    }
    /* The kernel finds a wildcard's listener for foreign addresses too. */
    *listening = query.found && (is_loopback(&query.address) || is_local(&query.address));
    return status;
}

pm_status pm_listeners_bound(uint16_t port, bool *bound)
{
    reach_query query = {.port = port};
    pm_status status = diag_dump(STATE_BOUND_INACTIVE, port, visit_any, &query);
    *bound = query.found;
    return status;
}

typedef struct {
    const pm_port_set *wanted;
    pm_listeners *list;
    bool out_of_memory;
} list_query;

static bool visit_list(void *context, int family, uint16_t port, const uint32_t address[4],
                       uint64_t inode)
{
    list_query *query = context;
    pm_listeners *list = query->list;
    (void)family, (void)address;

    if (!pm_port_set_has(query->wanted, port)) {
        return true;
    }
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 16;
        pm_listener *items = realloc(list->items, capacity * sizeof *items);
        if (!items) {
            query->out_of_memory = true;
            return false;
        }
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = (pm_listener){.port = port, .inode = inode};
    return true;
}

pm_status pm_listeners_list(const pm_port_set *wanted, pm_listeners *list)
{
    list_query query = {.wanted = wanted, .list = list};
    memset(list, 0, sizeof *list);
    pm_status status = diag_dump(STATE_LISTEN, 0, visit_list, &query);
    if (needs_proc(status)) {
        list->count = 0; /* the kernel may have given up half-way */
        status = proc_dump(STATE_LISTEN, visit_list, &query);
    }
    if (query.out_of_memory) {
        errno = ENOMEM;
        return PM_EXHAUSTED;
    }
    return status;
}

void pm_listeners_free(pm_listeners *list)
{
    free(list->items);
    memset(list, 0, sizeof *list);
}

/* ---- whose socket ------------------------------------------------------------------------ */

static int compare_inodes(const void *left, const void *right)
{
    uint64_t a = ((const pm_listener *)left)->inode, b = ((const pm_listener *)right)->inode;
    return (a > b) - (a < b);
}

/* Notes pid as the owner of each listed socket that one of its descriptors names. */
static void look_into(DIR *proc, int32_t pid, pm_listeners *list)
{
    char path[32], target[64];
    snprintf(path, sizeof path, "%" PRId32 "/fd", pid);
    int fd = openat(dirfd(proc), path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (!folder) {
        if (fd >= 0) {
            close(fd);
        }
        return; /* another user's, or gone */
    }
    for (const struct dirent *entry; (entry = readdir(folder));) {
        ssize_t length = readlinkat(dirfd(folder), entry->d_name, target, sizeof target - 1);
        pm_listener key;
        if (length <= 0) {
            continue;
        }
        target[length] = '\0';
        if (sscanf(target, "socket:[%" SCNu64 "]", &key.inode) != 1) {
            continue;
        }
        pm_listener *found =
            bsearch(&key, list->items, list->count, sizeof *list->items, compare_inodes);
        if (found && (found->pid == 0 || pid < found->pid)) {
            found->pid = pid;
        }
    }
    closedir(folder);
}

void pm_listeners_find_pids(pm_listeners *list)
{
    DIR *proc = list->count ? opendir("/proc") : NULL;
    if (!proc) {
        return;
    }
    qsort(list->items, list->count, sizeof *list->items, compare_inodes);
    for (const struct dirent *entry; (entry = readdir(proc));) {
        char *end;
        long pid = strtol(entry->d_name, &end, 10);
        if (*end == '\0' && pid > 0 && pid <= INT32_MAX) {
            look_into(proc, (int32_t)pid, list);
        }
    }
    closedir(proc);
}
