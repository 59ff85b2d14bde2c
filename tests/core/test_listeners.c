/* Who listens? */
#include "support.h"

#include <inttypes.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "occupied.h"

#include "core/listeners.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- a kernel that lacks a part ------------------------------------------------------------ */

/* Stands in for the C library's, so that a request to the kernel's tables can be made to ask for
 * a protocol that has none: the kernel's answer is then that of a kernel whose table of TCP
 * sockets is missing, a module that cannot be loaded. */
static bool tcp_table_is_missing;
/* Requests that go through before the others fail. */
static int requests_left = INT32_MAX;

#ifdef __GLIBC__
ssize_t sendto(int fd, const void *data, size_t length, int flags, __CONST_SOCKADDR_ARG to,
               socklen_t size)
{
    const struct sockaddr *address = to.__sockaddr__;
#else
ssize_t sendto(int fd, const void *data, size_t length, int flags, const struct sockaddr *address,
               socklen_t size)
{
#endif
    struct {
        struct nlmsghdr header;
        struct inet_diag_req_v2 body;
    } request;

    if (address && address->sa_family == AF_NETLINK && length == sizeof request) {
        if (requests_left-- <= 0) {
            errno = EOPNOTSUPP;
            return -1;
        }
        if (tcp_table_is_missing) {
            memcpy(&request, data, sizeof request);
            request.body.sdiag_protocol = IPPROTO_EGP;
            data = &request;
        }
    }
    return syscall(SYS_sendto, fd, data, length, flags, address, size);
}

/* The same for questions about routes, which go by send: asked of no family, the kernel says that
 * it does not know the question, as others do. */
static bool routes_are_unknown;

ssize_t send(int fd, const void *data, size_t length, int flags)
{
    struct {
        struct nlmsghdr header;
        struct rtmsg body;
        char rest[64];
    } request;

    if (routes_are_unknown && length >= NLMSG_LENGTH(sizeof request.body) &&
        length <= sizeof request) {
        memcpy(&request, data, length);
        if (request.header.nlmsg_type == RTM_GETROUTE) {
            request.body.rtm_family = AF_UNSPEC;
            data = &request;
        }
    }
    return syscall(SYS_sendto, fd, data, length, flags, NULL, 0);
}

/* The ways in which the tables are read: the kernel's own, and /proc/net where that is refused. */
static void no_netlink(void)
{
    refuse_sockets(AF_NETLINK, EPERM);
}

static void no_netlink_family(void)
{
    refuse_sockets(AF_NETLINK, EPROTONOSUPPORT);
}

static void no_tcp_table(void)
{
    tcp_table_is_missing = true;
}

/* The table of IPv4 sockets is read, that of IPv6 ones is not. */
static void no_second_request(void)
{
    requests_left = 1;
}

/* ---- who reaches whom ---------------------------------------------------------------------- */

static bool reaches(const char *host, uint16_t port)
{
    pm_address address = address_of(host);
    bool listening = false;
    assert_status(pm_listeners_reach(&address, port, &listening), PM_OK);
    return listening;
}

static bool is_listed(uint16_t port)
{
    pm_port_set wanted = {0};
    pm_listeners list;
    pm_port_set_add(&wanted, port);
    assert_status(pm_listeners_list(&wanted, &list), PM_OK);
    bool found = list.count > 0;
    for (size_t i = 0; i < list.count; i++) {
        assert_int_equal(list.items[i].port, port);
    }
    pm_listeners_free(&list);
    return found;
}

static void check_row_at(const occupied_row *row, uint16_t port)
{
    bool v4 = row->flags & V4, v6 = row->flags & V6;
    bool elsewhere = row->occupy == by_alias || row->occupy == by_interface;
    bool any = row->occupy == by_any || row->occupy == by_dual || row->occupy == by_mapped_any;

    assert_int_equal(reaches("127.0.0.1", port), v4);
    assert_int_equal(reaches("0.0.0.0", port), v4); /* stands for 127.0.0.1 */
    assert_int_equal(reaches("::1", port), v6);
    assert_int_equal(reaches("::", port), v6); /* stands for ::1 */
    if (!(row->flags & HIDDEN)) {
        assert_int_equal(reaches("127.0.20.4", port), any || row->occupy == by_alias);
    }
    assert_int_equal(is_listed(port), v4 || v6 || elsewhere);
}

static void check_row(void *argument)
{
    const occupied_row *row = argument;
    uint16_t port = row->occupy();
    check_row_at(row, port);
    check_row_at(row, port); /* looking changes nothing */
}

/* The same from /proc/net. It does not tell IPv6-only sockets from dual-stack ones. */
static void check_row_by_proc(const occupied_row *row, void (*way)(void))
{
    occupied_row seen = *row;
    uint16_t port = row->occupy();
    way();
    seen.flags |= row->flags & HIDDEN ? V4 : 0;
    check_row_at(&seen, port);
}

static void check_row_without_netlink(void *argument)
{
    check_row_by_proc(argument, no_netlink);
}

static void check_row_without_tcp_table(void *argument)
{
    check_row_by_proc(argument, no_tcp_table);
}

static void test_row(void **state)
{
    in_child(check_row, *state);
}

static void test_row_without_netlink(void **state)
{
    in_child(check_row_without_netlink, *state);
}

static void test_row_without_tcp_table(void **state)
{
    in_child(check_row_without_tcp_table, *state);
}

/* Does pm_listeners_bound see those that are bound and do not listen, and them alone? */
static void check_bound(void *argument)
{
    const occupied_row *row = argument;
    bool expected = row->occupy == by_bound || row->occupy == by_reusing_bound ||
                    row->occupy == by_reusing_bound6 || row->occupy == by_sharing_bound;
    bool bound = !expected;

    if (!kernel_is_at_least(6, 8)) {
        expected = false;
    }
    assert_status(pm_listeners_bound(row->occupy(), &bound), PM_OK);
    assert_int_equal(bound, expected);
}

static void test_bound(void **state)
{
    in_child(check_bound, *state);
}

/* ---- addresses ----------------------------------------------------------------------------- */

static void check_mapped_addresses(void *unused)
{
    (void)unused;
    need_ipv6();
    uint16_t loopback = by_loopback(), alias = by_alias();
    uint16_t any = by_any(), dual = by_dual(), one6 = by_loopback6();
    uint16_t mapped = by_mapped(), v6only = by_v6only();

    assert_true(reaches("::ffff:127.0.0.1", loopback));
    assert_true(reaches("::ffff:127.0.0.1", mapped));
    assert_true(reaches("::ffff:127.0.0.1", any));
    assert_true(reaches("::ffff:127.0.0.1", dual));
    assert_true(reaches("::ffff:127.0.20.4", alias));
    assert_false(reaches("::ffff:127.0.0.1", alias));
    assert_false(reaches("::ffff:127.0.0.1", one6));
    assert_false(reaches("::ffff:127.0.0.1", v6only));
}

static void test_mapped_addresses_are_their_ipv4_addresses(void **state)
{
    (void)state;
    in_child(check_mapped_addresses, NULL);
}

static void check_foreign_addresses(void *unused)
{
    uint16_t any = by_any(), dual = has_ipv6() ? by_dual() : any;
    (void)unused;

    /* A connection to another machine does not come here. */
    assert_false(reaches("192.0.2.77", any));
    assert_false(reaches("192.0.2.77", dual));
    if (has_ipv6()) {
        assert_false(reaches("2001:db8::77", dual));
    }
}

static void test_another_machines_address_reaches_nobody_here(void **state)
{
    (void)state;
    in_child(check_foreign_addresses, NULL);
}

static void check_unknown_routes(void *unused)
{
    uint16_t port = by_interface(), any = by_any();
    (void)unused;

    routes_are_unknown = true;
    assert_true(reaches("192.0.2.1", port));
    assert_true(reaches("192.0.2.1", any));
    assert_true(reaches("127.0.0.1", any));
}

static void test_a_kernel_that_does_not_tell_routes(void **state)
{
    (void)state;
    in_child(check_unknown_routes, NULL);
}

static void check_loopback_alone(void *unused)
{
    uint16_t any = by_any(), loopback = by_loopback();
    (void)unused;

    /* Of the sockets that core opens those for routes alone have the protocol 0. */
    filter_call(SYS_socket, 2, UINT32_MAX, NETLINK_ROUTE, SECCOMP_RET_KILL_PROCESS);
    assert_true(reaches("127.0.0.1", any));
    assert_true(reaches("0.0.0.0", any));
    assert_true(reaches("127.0.20.4", any));
    assert_true(reaches("127.0.0.1", loopback));
    assert_false(reaches("::1", loopback));
}

static void test_loopback_is_this_machines_without_a_question(void **state)
{
    (void)state;
    in_child(check_loopback_alone, NULL);
}

static void check_link_local(void *unused)
{
    uint16_t port = 0;
    (void)unused;

    enter_new_network();
    need_ipv6();
    add_address6("fe80::1");
    int fd = hold("::", &port, LISTENING);
    assert_true(reaches("fe80::1%lo", port));
    close(fd);
    assert_false(reaches("fe80::1%lo", port));

    struct sockaddr_in6 address = {.sin6_family = AF_INET6,
                                   .sin6_addr = address_of("fe80::1%lo").v6.sin6_addr,
                                   .sin6_scope_id = if_nametoindex("lo")};
    fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(fd, 1), 0);
    port = port_of(fd);
    assert_true(reaches("fe80::1%lo", port));
    assert_true(reaches("[fe80::1%lo]", port));
    assert_false(reaches("::1", port));
    assert_false(reaches("127.0.0.1", port));
    assert_true(is_listed(port));
    refuse_sockets(AF_NETLINK, EPERM);
    assert_true(reaches("fe80::1%lo", port));
    assert_false(reaches("::1", port));
}

static void test_link_local_addresses(void **state)
{
    (void)state;
    in_child(check_link_local, NULL);
}

static void check_interface_address(void *refuse)
{
    uint16_t port = by_interface();
    uint16_t any = by_any();
    if (refuse) {
        no_netlink();
    }
    assert_true(reaches("192.0.2.1", port));
    assert_true(reaches("192.0.2.1", any));
    assert_false(reaches("127.0.0.1", port));
}

static void test_interface_addresses(void **state)
{
    (void)state;
    in_child(check_interface_address, NULL);
    in_child(check_interface_address, state);
}

static void check_missing_ipv6(void *refuse)
{
    uint16_t loopback = by_loopback(), free = free_ports(1);
    refuse_sockets(AF_INET6, EAFNOSUPPORT);
    if (refuse) {
        no_netlink();
    }
    assert_true(reaches("127.0.0.1", loopback));
    assert_false(reaches("::1", loopback));
    assert_false(reaches("127.0.0.1", free));
    assert_false(reaches("::1", free));
    assert_true(is_listed(loopback));
    assert_false(is_listed(free));
}

static void test_a_machine_without_ipv6(void **state)
{
    (void)state;
    in_child(check_missing_ipv6, NULL);
    in_child(check_missing_ipv6, state);
}

static void test_a_listener_is_seen_from_its_start_to_its_end(void **state)
{
    uint16_t port = 0;
    int fd = hold("127.0.0.1", &port, 0);
    (void)state;

    for (int i = 0; i < 100; i++) {
        assert_false(reaches("127.0.0.1", port));
        assert_int_equal(listen(fd, 1), 0);
        assert_true(reaches("127.0.0.1", port));
        close(fd);
        assert_false(reaches("127.0.0.1", port));
        fd = hold("127.0.0.1", &port, REUSE_ADDRESS);
    }
    close(fd);
}

/* ---- the list ------------------------------------------------------------------------------ */

static uint64_t inode_of(int fd)
{
    char path[64], target[64];
    uint64_t inode = 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, target, sizeof target - 1);
    assert_true(length > 0);
    target[length] = '\0';
    assert_int_equal(sscanf(target, "socket:[%" SCNu64 "]", &inode), 1);
    return inode;
}

static const pm_listener *find_inode(const pm_listeners *list, uint64_t inode)
{
    const pm_listener *found = NULL;
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i].inode == inode) {
            assert_null(found); /* each is listed once */
            found = &list->items[i];
        }
    }
    return found;
}

static void check_list_by(void (*way)(void))
{
    static const struct {
        const char *literal;
        unsigned options;
    } held[] = {
        {"127.0.0.1",  0      },
        {"0.0.0.0",    0      },
        {"127.0.20.4", 0      },
        {"::1",        0      },
        {"::",         0      },
        {"::",         ONLY_V6}
    };
    enum { SHARED = 3, MOST = 16 };
    int fds[MOST];
    size_t count = 0;
    pm_port_set wanted = {0};
    pm_listeners list;
    uint16_t shared = 0;

    for (size_t i = 0; i < (has_ipv6() ? COUNT(held) : 3); i++) {
        uint16_t port = 0;
        fds[count++] = hold(held[i].literal, &port, held[i].options | LISTENING);
        pm_port_set_add(&wanted, port);
    }
    for (int i = 0; i < SHARED; i++) {
        fds[count++] = hold("127.0.0.1", &shared, LISTENING | REUSE_PORT);
        pm_port_set_add(&wanted, shared);
    }
    /* Not listening, and not wanted. */
    pm_port_set_add(&wanted, by_bound());
    pm_port_set_add(&wanted, by_outgoing());
    pm_port_set_add(&wanted, by_closed());
    pm_port_set_add(&wanted, by_datagram());
    int other = hold("127.0.0.1", &(uint16_t){0}, LISTENING);

    if (way) {
        way();
    }
    memset(&list, 0xff, sizeof list);
    assert_status(pm_listeners_list(&wanted, &list), PM_OK);
    assert_int_equal(list.count, count);
    for (size_t i = 0; i < count; i++) {
        const pm_listener *found = find_inode(&list, inode_of(fds[i]));
        assert_non_null(found);
        assert_int_equal(found->port, port_of(fds[i]));
        assert_int_equal(found->pid, 0); /* not asked for yet */
    }
    assert_null(find_inode(&list, inode_of(other)));
    pm_listeners_find_pids(&list);
    assert_int_equal(list.count, count);
    for (size_t i = 0; i < count; i++) {
        const pm_listener *found = find_inode(&list, inode_of(fds[i]));
        assert_non_null(found);
        assert_int_equal(found->port, port_of(fds[i]));
        assert_int_equal(found->pid, getpid());
    }
    pm_listeners_free(&list);
    assert_null(list.items);
    pm_listeners_free(&list); /* once more does no harm */
}

static void check_list(void *unused)
{
    (void)unused;
    check_list_by(NULL);
}

static void test_the_list_has_the_wanted_listeners_and_their_process(void **state)
{
    (void)state;
    in_child(check_list, NULL);
}

static void check_list_without_netlink(void *unused)
{
    (void)unused;
    check_list_by(no_netlink);
}

static void test_the_list_where_netlink_is_refused(void **state)
{
    (void)state;
    in_child(check_list_without_netlink, NULL);
}

static void check_list_without_netlink_family(void *unused)
{
    (void)unused;
    check_list_by(no_netlink_family);
}

static void test_the_list_where_there_is_no_netlink(void **state)
{
    (void)state;
    in_child(check_list_without_netlink_family, NULL);
}

static void check_list_without_tcp_table(void *unused)
{
    (void)unused;
    check_list_by(no_tcp_table);
}

static void test_the_list_where_the_kernels_table_is_missing(void **state)
{
    (void)state;
    in_child(check_list_without_tcp_table, NULL);
}

static void check_list_half_way(void *unused)
{
    (void)unused;
    check_list_by(no_second_request);
}

static void test_the_list_where_the_kernel_gives_up_half_way(void **state)
{
    (void)state;
    in_child(check_list_half_way, NULL);
}

static void test_an_empty_list(void **state)
{
    pm_port_set none = {0};
    pm_listeners list;
    uint16_t port = 0;
    int fd = hold("127.0.0.1", &port, LISTENING);
    (void)state;

    memset(&list, 0xff, sizeof list);
    assert_status(pm_listeners_list(&none, &list), PM_OK);
    assert_int_equal(list.count, 0);
    pm_listeners_find_pids(&list);
    assert_int_equal(list.count, 0);
    pm_listeners_free(&list);
    close(fd);
}

static void check_thousand(void *refuse)
{
    enum { MANY = 1000 };
    static int fds[MANY];
    struct rlimit limit;
    pm_port_set wanted = {0};
    pm_listeners list;
    size_t own = 0;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    if (limit.rlim_max < MANY + 50 || setrlimit(RLIMIT_NOFILE, &limit) != 0) {
        skip_because("no thousand descriptors are permitted here");
    }
    for (int i = 0; i < MANY; i++) {
        uint16_t port = 0;
        fds[i] = hold("127.0.0.1", &port, LISTENING);
    }
    if (refuse) {
        no_netlink();
    }
    memset(&wanted, 0xff, sizeof wanted);
    assert_status(pm_listeners_list(&wanted, &list), PM_OK);
    pm_listeners_find_pids(&list);
    for (size_t i = 0; i < list.count; i++) {
        own += list.items[i].pid == getpid();
    }
    assert_int_equal(own, MANY);
    for (int i = 0; i < MANY; i++) {
        const pm_listener *found = find_inode(&list, inode_of(fds[i]));
        assert_non_null(found);
        assert_int_equal(found->port, port_of(fds[i]));
        assert_int_equal(found->pid, getpid());
    }
    pm_listeners_free(&list);
}

static void test_a_thousand_listeners(void **state)
{
    (void)state;
    in_child(check_thousand, NULL);
    in_child(check_thousand, state);
}

/* ---- pids ---------------------------------------------------------------------------------- */

static int32_t pid_of(uint16_t port)
{
    pm_port_set wanted = {0};
    pm_listeners list;
    pm_port_set_add(&wanted, port);
    assert_status(pm_listeners_list(&wanted, &list), PM_OK);
    assert_int_equal(list.count, 1);
    pm_listeners_find_pids(&list);
    int32_t pid = list.items[0].pid;
    pm_listeners_free(&list);
    return pid;
}

static void listen_and_tell(int answers)
{
    uint16_t port = 0;
    hold("127.0.0.1", &port, LISTENING);
    assert_int_equal(write(answers, &port, sizeof port), sizeof port);
}

static void test_another_processs_listener(void **state)
{
    companion child = companion_begin(listen_and_tell);
    uint16_t port;
    (void)state;

    assert_int_equal(read(child.from_child, &port, sizeof port), sizeof port);
    assert_int_equal(pid_of(port), child.pid);
    companion_end(&child);
    assert_false(is_listed(port));
}

static void inherit_and_tell(int answers)
{
    assert_int_equal(write(answers, "", 1), 1);
}

static void test_the_lowest_pid_of_several(void **state)
{
    enum { CHILDREN = 3 };
    companion children[CHILDREN];
    int32_t lowest = INT32_MAX;
    uint16_t port = 0;
    char byte;
    int fd = hold("127.0.0.1", &port, LISTENING);
    (void)state;

    for (int i = 0; i < CHILDREN; i++) {
        children[i] = companion_begin(inherit_and_tell);
        assert_int_equal(read(children[i].from_child, &byte, 1), 1);
        lowest = children[i].pid < lowest ? children[i].pid : lowest;
    }
    assert_int_equal(pid_of(port), getpid() < lowest ? getpid() : lowest);
    close(fd); /* the children have it still */
    assert_int_equal(pid_of(port), lowest);
    for (int i = 0; i < CHILDREN; i++) {
        companion_end(&children[i]);
    }
    assert_false(is_listed(port));
}

static void check_other_users_process(void *port)
{
    become_nobody();
    assert_int_equal(pid_of(*(uint16_t *)port), 0);
    assert_true(reaches("127.0.0.1", *(uint16_t *)port));
}

static void test_another_users_process_is_not_known(void **state)
{
    companion child = companion_begin(listen_and_tell);
    uint16_t port;
    (void)state;

    assert_int_equal(read(child.from_child, &port, sizeof port), sizeof port);
    if (geteuid() != 0) {
        companion_end(&child);
        skip_because("without root there is no other user to be");
    }
    in_child(check_other_users_process, &port);
    companion_end(&child);
}

static void check_hidden_processes(void *unused)
{
    pm_port_set wanted = {0};
    pm_listeners list;
    uint16_t port = by_loopback();
    (void)unused;

    pm_port_set_add(&wanted, port);
    assert_status(pm_listeners_list(&wanted, &list), PM_OK);
    refuse_files(EACCES);
    pm_listeners_find_pids(&list);
    assert_int_equal(list.count, 1);
    assert_int_equal(list.items[0].port, port);
    assert_int_equal(list.items[0].pid, 0);
    pm_listeners_free(&list);
}

static void test_who_may_not_look_into_processes_gets_no_pid(void **state)
{
    (void)state;
    in_child(check_hidden_processes, NULL);
}

/* ---- not known ----------------------------------------------------------------------------- */

static void check_both_refused(void *unused)
{
    pm_address address = address_of("127.0.0.1");
    uint16_t port = by_loopback();
    pm_port_set wanted = {0};
    pm_listeners list;
    bool answer;
    (void)unused;

    pm_port_set_add(&wanted, port);
    refuse_sockets(AF_NETLINK, EPERM);
    refuse_files(EACCES);
    errno = 0;
    assert_status(pm_listeners_reach(&address, port, &answer), PM_FAILED);
    assert_int_equal(errno, EACCES);
    memset(&list, 0xff, sizeof list);
    errno = 0;
    assert_status(pm_listeners_list(&wanted, &list), PM_FAILED);
    assert_int_equal(errno, EACCES);
    assert_int_equal(list.count, 0);
    pm_listeners_find_pids(&list);
    pm_listeners_free(&list);
}

static void test_where_all_is_refused_the_answer_is_not_known(void **state)
{
    (void)state;
    in_child(check_both_refused, NULL);
}

static void check_out_of_descriptors(void *unused)
{
    pm_address address = address_of("127.0.0.1");
    uint16_t port = by_loopback();
    pm_port_set wanted = {0};
    pm_listeners list;
    bool answer;
    (void)unused;

    pm_port_set_add(&wanted, port);
    for (int refused = 0; refused < 2; refused++) {
        limit_descriptors(0);
        errno = 0;
        pm_status reach = pm_listeners_reach(&address, port, &answer);
        int reach_error = errno;
        errno = 0;
        pm_status listed = pm_listeners_list(&wanted, &list);
        int list_error = errno;
        pm_listeners_free(&list);
        unlimit_descriptors();
        assert_status(reach, PM_EXHAUSTED);
        assert_int_equal(reach_error, EMFILE);
        assert_status(listed, PM_EXHAUSTED);
        assert_int_equal(list_error, EMFILE);
        assert_true(reaches("127.0.0.1", port));
        assert_true(is_listed(port));
        no_netlink(); /* the second time from /proc/net */
    }
}

static void test_out_of_descriptors_is_not_nobody(void **state)
{
    (void)state;
    in_child(check_out_of_descriptors, NULL);
}

static void check_bound_out_of_descriptors(void *unused)
{
    uint16_t port = by_reusing_bound();
    bool bound;
    (void)unused;

    limit_descriptors(0);
    errno = 0;
    pm_status status = pm_listeners_bound(port, &bound);
    int error = errno;
    unlimit_descriptors();
    assert_status(status, PM_EXHAUSTED);
    assert_int_equal(error, EMFILE);
    assert_status(pm_listeners_bound(port, &bound), PM_OK);
    assert_int_equal(bound, kernel_is_at_least(6, 8));
}

static void test_out_of_descriptors_is_not_unbound(void **state)
{
    (void)state;
    in_child(check_bound_out_of_descriptors, NULL);
}

/* ---- descriptors --------------------------------------------------------------------------- */

static void look_at_all(uint16_t port)
{
    pm_address v4 = address_of("127.0.0.1"), v6 = address_of("::1");
    pm_port_set wanted = {0};
    pm_listeners list;
    bool answer;

    pm_port_set_add(&wanted, port);
    pm_listeners_reach(&v4, port, &answer);
    pm_listeners_reach(&v6, port, &answer);
    pm_listeners_bound(port, &answer);
    pm_listeners_list(&wanted, &list);
    pm_listeners_find_pids(&list);
    pm_listeners_free(&list);
}

static void check_descriptors(void *unused)
{
    uint16_t ports[] = {by_nobody(), by_loopback(), by_bound()};
    (void)unused;

    forbid_inheritable_descriptors();
    size_t before = open_descriptors();
    for (int way = 0; way < 3; way++) {
        for (size_t i = 0; i < COUNT(ports); i++) {
            look_at_all(ports[i]);
            assert_int_equal(open_descriptors(), before);
        }
        tcp_table_is_missing = way == 0;
        if (way == 1) {
            no_netlink();
        }
    }
}

static void test_no_descriptor_stays_or_could_be_inherited(void **state)
{
    (void)state;
    in_child(check_descriptors, NULL);
}

static void check_nothing_is_bound_or_connected(void *unused)
{
    uint16_t ports[] = {by_nobody(), by_loopback(), by_bound(), by_dual()};
    (void)unused;

    filter_call(SYS_bind, 0, 0, 0, SECCOMP_RET_KILL_PROCESS);
    forbid_connections();
    filter_call(SYS_socket, 0, UINT32_MAX, AF_INET, SECCOMP_RET_KILL_PROCESS);
    filter_call(SYS_socket, 0, UINT32_MAX, AF_INET6, SECCOMP_RET_KILL_PROCESS);
    for (size_t i = 0; i < COUNT(ports); i++) {
        look_at_all(ports[i]);
    }
}

static void test_looking_binds_and_connects_nothing(void **state)
{
    (void)state;
    in_child(check_nothing_is_bound_or_connected, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mapped_addresses_are_their_ipv4_addresses),
        cmocka_unit_test(test_another_machines_address_reaches_nobody_here),
        cmocka_unit_test(test_a_kernel_that_does_not_tell_routes),
        cmocka_unit_test(test_loopback_is_this_machines_without_a_question),
        cmocka_unit_test(test_link_local_addresses),
        cmocka_unit_test(test_interface_addresses),
        cmocka_unit_test(test_a_machine_without_ipv6),
        cmocka_unit_test(test_a_listener_is_seen_from_its_start_to_its_end),
        cmocka_unit_test(test_the_list_has_the_wanted_listeners_and_their_process),
        cmocka_unit_test(test_the_list_where_netlink_is_refused),
        cmocka_unit_test(test_the_list_where_there_is_no_netlink),
        cmocka_unit_test(test_the_list_where_the_kernels_table_is_missing),
        cmocka_unit_test(test_the_list_where_the_kernel_gives_up_half_way),
        cmocka_unit_test(test_an_empty_list),
        cmocka_unit_test(test_a_thousand_listeners),
        cmocka_unit_test(test_another_processs_listener),
        cmocka_unit_test(test_the_lowest_pid_of_several),
        cmocka_unit_test(test_another_users_process_is_not_known),
        cmocka_unit_test(test_who_may_not_look_into_processes_gets_no_pid),
        cmocka_unit_test(test_where_all_is_refused_the_answer_is_not_known),
        cmocka_unit_test(test_out_of_descriptors_is_not_nobody),
        cmocka_unit_test(test_out_of_descriptors_is_not_unbound),
        cmocka_unit_test(test_no_descriptor_stays_or_could_be_inherited),
        cmocka_unit_test(test_looking_binds_and_connects_nothing),
    };
    struct CMUnitTest rows[4 * OCCUPIED_ROWS];

    add_row_tests(rows, "listeners", test_row);
    add_row_tests(rows + OCCUPIED_ROWS, "from /proc/net", test_row_without_netlink);
    add_row_tests(rows + 2 * OCCUPIED_ROWS, "without a TCP table", test_row_without_tcp_table);
    add_row_tests(rows + 3 * OCCUPIED_ROWS, "bound", test_bound);
    int failed = cmocka_run_group_tests_name("listeners: who reaches whom", rows, isolate, NULL);
    return failed + cmocka_run_group_tests_name("listeners", tests, isolate, NULL);
}
