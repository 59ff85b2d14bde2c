/* Can this port be bound? */
#include "support.h"

#include "occupied.h"

#include "core/candidates.h"
#include "core/listeners.h"
#include "core/probe.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static pm_status probe_host(const char *host, uint16_t port)
{
    pm_prober prober = PM_PROBER_CLOSED;
    pm_addresses addresses = addresses_of(host);
    pm_status status = pm_probe_host(&prober, &addresses, port);
    pm_prober_close(&prober);
    return status;
}

static pm_status probe_service(uint16_t port)
{
    pm_wildcard_prober prober = PM_WILDCARD_PROBER_CLOSED;
    pm_status status = pm_probe_service(&prober, port);
    pm_wildcard_prober_close(&prober);
    return status;
}

static pm_status probe_strict(uint16_t port)
{
    pm_wildcard_prober prober = PM_WILDCARD_PROBER_CLOSED;
    pm_status status = pm_probe_strict(&prober, port);
    pm_wildcard_prober_close(&prober);
    return status;
}

/* ---- who sees whom ------------------------------------------------------------------------- */

static void check_hosts(void *argument)
{
    const occupied_row *row = argument;
    uint16_t port = row->occupy();

    /* Twice: a probe must not change what the next one finds. */
    for (int i = 0; i < 2; i++) {
        assert_status(probe_host("127.0.0.1", port), row->on_127_0_0_1);
        assert_status(probe_host("0.0.0.0", port), row->on_0_0_0_0);
        if (has_ipv6()) {
            assert_status(probe_host("::1", port), row->on_1);
        }
    }
}

static void check_service(void *argument)
{
    const occupied_row *row = argument;
    if (row->flags & NEEDS_6_8 && !kernel_is_at_least(6, 8)) {
        skip_because("Linux before 6.8 does not tell sockets that are bound");
    }
    uint16_t port = row->occupy();
    assert_status(probe_service(port), row->service);
    assert_status(probe_service(port), row->service);
}

static void check_strict(void *argument)
{
    const occupied_row *row = argument;
    uint16_t port = row->occupy();
    assert_status(probe_strict(port), row->strict);
    assert_status(probe_strict(port), row->strict);
}

/* One prober for the rows' three questions, as a walk over many ports has it. */
static void check_kept_prober(void *argument)
{
    const occupied_row *row = argument;
    pm_wildcard_prober prober = PM_WILDCARD_PROBER_CLOSED;
    uint16_t port = row->occupy(), busy = by_any();

    for (int i = 0; i < 2; i++) {
        assert_status(pm_probe_service(&prober, busy), PM_BUSY);
        assert_status(pm_probe_strict(&prober, port), row->strict);
        assert_status(pm_probe_strict(&prober, busy), PM_BUSY);
        if (!(row->flags & NEEDS_6_8) || kernel_is_at_least(6, 8)) {
            assert_status(pm_probe_service(&prober, port), row->service);
        }
    }
    pm_wildcard_prober_close(&prober);
}

static void test_hosts(void **state)
{
    in_child(check_hosts, *state);
}

static void test_service(void **state)
{
    in_child(check_service, *state);
}

static void test_strict(void **state)
{
    in_child(check_strict, *state);
}

static void test_kept_prober(void **state)
{
    in_child(check_kept_prober, *state);
}

/* ---- hosts --------------------------------------------------------------------------------- */

static void test_only_the_address_asked_about_counts(void **state)
{
    uint16_t port = 0;
    int fd = hold("127.0.10.10", &port, LISTENING);
    (void)state;

    assert_status(probe_host("127.0.20.4", port), PM_OK);
    assert_status(probe_host("127.0.10.10", port), PM_BUSY);
    close(fd);
    assert_status(probe_host("127.0.10.10", port), PM_OK);
}

static void test_empty_host_is_free_if_both_families_are(void **state)
{
    uint16_t port = 0, port6 = 0;
    (void)state;

    need_ipv6();
    int fd = hold("127.0.0.1", &port, LISTENING);
    assert_status(probe_host("", port), PM_BUSY);
    close(fd);
    assert_status(probe_host("", port), PM_OK);
    fd = hold("::1", &port6, LISTENING);
    assert_status(probe_host("", port6), PM_BUSY);
    close(fd);
    assert_status(probe_host("", port6), PM_OK);
}

static void check_foreign_addresses(void *unused)
{
    pm_prober prober = PM_PROBER_CLOSED;
    uint16_t busy = by_loopback(), free = free_ports(1);
    pm_addresses none = {0}, foreign = {0}, mixed = {0};
    (void)unused;

    foreign.items[foreign.count++] = address_of("192.0.2.77");
    foreign.items[foreign.count++] = address_of("2001:db8::77");
    mixed = foreign;
    mixed.items[mixed.count++] = address_of("127.0.0.1");

    assert_status(pm_probe_host(&prober, &none, free), PM_NOT_LOCAL);
    assert_status(pm_probe_host(&prober, &foreign, free), PM_NOT_LOCAL);
    assert_status(pm_probe_host(&prober, &foreign, busy), PM_NOT_LOCAL);
    assert_status(pm_probe_host(&prober, &mixed, free), PM_OK);
    assert_status(pm_probe_host(&prober, &mixed, busy), PM_BUSY);
    pm_prober_close(&prober);
}

static void test_addresses_of_other_machines_do_not_count(void **state)
{
    (void)state;
    in_child(check_foreign_addresses, NULL);
}

static void check_each_own_address_counts(void *unused)
{
    pm_prober prober = PM_PROBER_CLOSED;
    uint16_t busy = by_alias(), free = free_ports(1);
    pm_addresses host = {.count = 2};
    (void)unused;

    host.items[0] = address_of("127.0.20.4");
    host.items[1] = address_of("127.0.0.1");
    assert_status(pm_probe_host(&prober, &host, busy), PM_BUSY);
    assert_status(pm_probe_host(&prober, &host, free), PM_OK);
    host.items[0] = address_of("127.0.0.1");
    host.items[1] = address_of("127.0.20.4");
    assert_status(pm_probe_host(&prober, &host, busy), PM_BUSY);
    assert_status(pm_probe_host(&prober, &host, free), PM_OK);
    pm_prober_close(&prober);
}

static void test_each_own_address_must_be_free(void **state)
{
    (void)state;
    in_child(check_each_own_address_counts, NULL);
}

static void check_scoped(void *unused)
{
    uint16_t port = free_ports(1);
    (void)unused;

    enter_new_network();
    need_ipv6();
    assert_status(probe_host("fe80::1%lo", port), PM_NOT_LOCAL);
    add_address6("fe80::1");
    assert_status(probe_host("fe80::1%lo", port), PM_OK);
    assert_status(probe_host("fe80::1%12345", port), PM_NOT_LOCAL);
    hold("::", &port, LISTENING);
    assert_status(probe_host("fe80::1%lo", port), PM_BUSY);
    assert_status(probe_host("[fe80::1%lo]", port), PM_BUSY);
}

static void test_link_local_addresses(void **state)
{
    (void)state;
    in_child(check_scoped, NULL);
}

static void check_mapped(void *unused)
{
    uint16_t free = free_ports(1);
    (void)unused;

    need_ipv6();
    uint16_t busy = by_loopback();
    assert_status(probe_host("::ffff:127.0.0.1", busy), PM_BUSY);
    assert_status(probe_host("::ffff:127.0.0.1", free), PM_OK);
    assert_status(probe_host("::ffff:127.0.20.4", busy), PM_OK);
}

static void test_mapped_addresses_are_their_ipv4_addresses(void **state)
{
    (void)state;
    in_child(check_mapped, NULL);
}

static void check_mapped_beside_ipv6_only(void *unused)
{
    enter_new_network();
    write_setting("/proc/sys/net/ipv6/bindv6only", "1");
    check_mapped(unused);
}

static void test_mapped_addresses_where_sockets_are_ipv6_only(void **state)
{
    (void)state;
    in_child(check_mapped_beside_ipv6_only, NULL);
}

static void test_any_port_and_the_last_port(void **state)
{
    uint16_t last = UINT16_MAX;
    (void)state;

    assert_status(probe_host("127.0.0.1", 0), PM_OK);
    assert_status(probe_service(0), PM_OK);
    assert_status(probe_strict(0), PM_OK);
    int fd = try_hold("127.0.0.1", &last, LISTENING);
    if (fd < 0) {
        skip_because("somebody has the last port");
    }
    assert_status(probe_host("127.0.0.1", UINT16_MAX), PM_BUSY);
    assert_status(probe_service(UINT16_MAX), PM_BUSY);
    assert_status(probe_strict(UINT16_MAX), PM_BUSY);
    close(fd);
}

/* ---- the prober ---------------------------------------------------------------------------- */

static void test_a_probe_leaves_the_port_free(void **state)
{
    pm_prober prober = PM_PROBER_CLOSED;
    pm_wildcard_prober wildcard = PM_WILDCARD_PROBER_CLOSED;
    pm_addresses host = addresses_of("127.0.0.1");
    uint16_t port = free_ports(1);
    (void)state;

    assert_status(pm_probe_host(&prober, &host, port), PM_OK);
    assert_status(pm_probe_service(&wildcard, port), PM_OK);
    assert_status(pm_probe_strict(&wildcard, port), PM_OK);
    /* Even before the probers are closed, and without SO_REUSEADDR. */
    int fd = hold(has_ipv6() ? "::" : "0.0.0.0", &port, LISTENING);
    int datagrams = hold(has_ipv6() ? "::" : "0.0.0.0", &port, DATAGRAM);
    close(fd);
    close(datagrams);
    pm_prober_close(&prober);
    pm_wildcard_prober_close(&wildcard);
}

static void check_settings_do_not_stick(void *unused)
{
    pm_prober prober = PM_PROBER_CLOSED;
    pm_address v4 = address_of("127.0.0.1"), any = address_of("0.0.0.0");
    uint16_t closed = by_reusing_closed(), busy = by_loopback();
    uint16_t datagrams = by_datagram();
    (void)unused;

    for (int i = 0; i < 3; i++) {
        assert_status(pm_prober_bind(&prober, &v4, closed, SOCK_STREAM, 0), PM_BUSY);
        assert_status(pm_prober_bind(&prober, &v4, closed, SOCK_STREAM, 1), PM_OK);
        assert_status(pm_prober_bind(&prober, &v4, busy, SOCK_STREAM, 1), PM_BUSY);
        assert_status(pm_prober_bind(&prober, &v4, closed, SOCK_STREAM, 0), PM_BUSY);
        assert_status(pm_prober_bind(&prober, &v4, datagrams, SOCK_DGRAM, 0), PM_BUSY);
        assert_status(pm_prober_bind(&prober, &v4, datagrams, SOCK_STREAM, 0), PM_OK);
        assert_status(pm_prober_bind(&prober, &any, busy, SOCK_STREAM, 0), PM_BUSY);
        if (has_ipv6()) {
            pm_address v6 = address_of("::1");
            assert_status(pm_prober_bind(&prober, &v6, busy, SOCK_STREAM, 0), PM_OK);
        }
    }
    pm_prober_close(&prober);
}

static void test_a_kept_socket_fits_each_next_question(void **state)
{
    (void)state;
    in_child(check_settings_do_not_stick, NULL);
}

static void test_a_busy_port_leaves_the_socket_for_the_next_probe(void **state)
{
    pm_prober prober = PM_PROBER_CLOSED;
    pm_address v4 = address_of("127.0.0.1");
    uint16_t port = 0;
    int fd = hold("127.0.0.1", &port, LISTENING);
    size_t before = open_descriptors();
    (void)state;

    assert_status(pm_prober_bind(&prober, &v4, port, SOCK_STREAM, 1), PM_BUSY);
    int kept = prober.fd;
    assert_true(kept >= 0);
    assert_true(fcntl(kept, F_GETFD) & FD_CLOEXEC);
    assert_status(pm_prober_bind(&prober, &v4, port, SOCK_STREAM, 1), PM_BUSY);
    assert_int_equal(prober.fd, kept);
    assert_int_equal(open_descriptors(), before + 1);
    pm_prober_close(&prober);
    assert_int_equal(prober.fd, -1);
    pm_prober_close(&prober); /* once more does no harm */
    assert_int_equal(open_descriptors(), before);
    close(fd);
}

static void test_closing_keeps_errno(void **state)
{
    pm_prober prober = PM_PROBER_CLOSED;
    pm_address v4 = address_of("127.0.0.1");
    uint16_t port = 0;
    int fd = hold("127.0.0.1", &port, LISTENING);
    (void)state;

    assert_status(pm_prober_bind(&prober, &v4, port, SOCK_STREAM, 1), PM_BUSY);
    close(prober.fd); /* so that the close to come fails and says EBADF */
    errno = EMFILE;
    pm_prober_close(&prober);
    assert_int_equal(errno, EMFILE);
    close(fd);
}

static void check_descriptors(void *unused)
{
    pm_status (*const probes[])(uint16_t) = {probe_service, probe_strict};
    uint16_t ports[] = {by_nobody(),   by_loopback(),      by_reusing_closed(),
                        by_datagram(), by_reusing_bound(), 0};
    const char *const hosts[] = {"", "127.0.0.1", "::1", "192.0.2.77", "2001:db8::77"};
    (void)unused;

    forbid_inheritable_descriptors();
    size_t before = open_descriptors();
    for (size_t p = 0; p < COUNT(ports); p++) {
        for (size_t i = 0; i < COUNT(probes); i++) {
            probes[i](ports[p]);
            assert_int_equal(open_descriptors(), before);
        }
        for (size_t i = 0; i < COUNT(hosts); i++) {
            probe_host(hosts[i], ports[p]);
            assert_int_equal(open_descriptors(), before);
        }
    }
}

static void test_no_descriptor_stays_or_could_be_inherited(void **state)
{
    (void)state;
    in_child(check_descriptors, NULL);
}

/* ---- neither free nor busy ----------------------------------------------------------------- */

static void test_only_address_in_use_means_busy(void **state)
{
    static const struct {
        int error;
        pm_status status;
    } cases[] = {
        {EADDRINUSE,      PM_BUSY       },
        {EACCES,          PM_FORBIDDEN  },
        {EPERM,           PM_FORBIDDEN  },
        {EADDRNOTAVAIL,   PM_NOT_LOCAL  },
        {ENODEV,          PM_NOT_LOCAL  },
        {EAFNOSUPPORT,    PM_UNSUPPORTED},
        {EPFNOSUPPORT,    PM_UNSUPPORTED},
        {EPROTONOSUPPORT, PM_UNSUPPORTED},
        {EMFILE,          PM_EXHAUSTED  },
        {ENFILE,          PM_EXHAUSTED  },
        {ENOBUFS,         PM_EXHAUSTED  },
        {ENOMEM,          PM_EXHAUSTED  },
        {EINVAL,          PM_NOT_LOCAL  },
        {EBADF,           PM_FAILED     },
        {EIO,             PM_FAILED     }
    };
    (void)state;

    for (size_t i = 0; i < COUNT(cases); i++) {
        assert_status(pm_status_of_errno(cases[i].error), cases[i].status);
    }
    for (int error = 1; error < 256; error++) {
        if (error != EADDRINUSE && pm_status_of_errno(error) == PM_BUSY) {
            fail_msg("errno %d means busy", error);
        }
        assert_int_not_equal(pm_status_of_errno(error), PM_OK);
    }
}

/* Runs a probe with room for so many descriptors. */
#define assert_exhausted(spare, call)                                                              \
    do {                                                                                           \
        limit_descriptors(spare);                                                                  \
        errno = 0;                                                                                 \
        pm_status its_status = (call);                                                             \
        int its_error = errno;                                                                     \
        unlimit_descriptors();                                                                     \
        assert_status(its_status, PM_EXHAUSTED);                                                   \
        assert_int_equal(its_error, EMFILE);                                                       \
    } while (0)

static void check_out_of_descriptors(void *unused)
{
    uint16_t busy = by_loopback(), closed = by_reusing_closed(), free = free_ports(1);
    (void)unused;

    assert_exhausted(0, probe_host("127.0.0.1", free));
    assert_exhausted(0, probe_host("127.0.0.1", busy));
    assert_exhausted(0, probe_host("", free));
    assert_exhausted(0, probe_service(free));
    assert_exhausted(0, probe_service(busy));
    assert_exhausted(0, probe_strict(free));
    assert_exhausted(0, probe_strict(busy));
    /* The first socket says busy, the second one cannot be opened. */
    assert_exhausted(1, probe_service(busy));
    assert_exhausted(1, probe_service(closed));

    assert_status(probe_host("127.0.0.1", free), PM_OK);
    assert_status(probe_host("127.0.0.1", busy), PM_BUSY);
    assert_status(probe_service(free), PM_OK);
    assert_status(probe_service(busy), PM_BUSY);
    assert_status(probe_service(closed), PM_OK);
    assert_status(probe_strict(free), PM_OK);
    assert_status(probe_strict(busy), PM_BUSY);
}

static void test_out_of_descriptors_is_not_busy(void **state)
{
    (void)state;
    in_child(check_out_of_descriptors, NULL);
}

static void check_kept_prober_out_of_descriptors(void *unused)
{
    pm_wildcard_prober prober = PM_WILDCARD_PROBER_CLOSED;
    uint16_t busy = by_loopback(), free = free_ports(1);
    (void)unused;

    assert_exhausted(0, pm_probe_service(&prober, free));
    assert_status(pm_probe_service(&prober, busy), PM_BUSY);
    assert_status(pm_probe_service(&prober, free), PM_OK);
    assert_exhausted(0, pm_probe_strict(&prober, free));
    assert_status(pm_probe_strict(&prober, free), PM_OK);
    pm_wildcard_prober_close(&prober);
}

static void test_a_prober_works_again_once_there_are_descriptors(void **state)
{
    (void)state;
    in_child(check_kept_prober_out_of_descriptors, NULL);
}

static void check_failing_sockets(void *unused)
{
    uint16_t port = free_ports(1);
    (void)unused;

    refuse_sockets(AF_INET, ENOBUFS);
    refuse_sockets(AF_INET6, ENOBUFS);
    assert_status(probe_host("127.0.0.1", port), PM_EXHAUSTED);
    assert_int_equal(errno, ENOBUFS);
    assert_status(probe_service(port), PM_EXHAUSTED);
    assert_int_equal(errno, ENOBUFS);
    assert_status(probe_strict(port), PM_EXHAUSTED);
    assert_int_equal(errno, ENOBUFS);
}

static void test_out_of_buffers_is_not_busy(void **state)
{
    (void)state;
    in_child(check_failing_sockets, NULL);
}

static void check_privileged_port(void *unused)
{
    long start = read_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    uint16_t free = free_ports(1);
    (void)unused;

    if (start < 2) {
        skip_because("no port is privileged here");
    }
    uint16_t port = (uint16_t)(start - 1);
    become_nobody();
    assert_status(probe_host("127.0.0.1", port), PM_FORBIDDEN);
    assert_status(probe_host("", port), PM_FORBIDDEN);
    assert_status(probe_service(port), PM_FORBIDDEN);
    assert_status(probe_strict(port), PM_FORBIDDEN);
    assert_status(probe_host("127.0.0.1", free), PM_OK);
    assert_status(probe_service(free), PM_OK);
    assert_status(probe_strict(free), PM_OK);
}

static void test_a_privileged_port_is_forbidden(void **state)
{
    (void)state;
    in_child(check_privileged_port, NULL);
}

static void check_moved_privileges(void *unused)
{
    uint16_t port = free_ports(2);
    char text[16];
    (void)unused;

    enter_new_network();
    /* The kernel wants no ephemeral port to be privileged. */
    snprintf(text, sizeof text, "%d %d", port + 1, UINT16_MAX);
    write_setting("/proc/sys/net/ipv4/ip_local_port_range", text);
    snprintf(text, sizeof text, "%d", port + 1);
    write_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start", text);
    become_nobody();
    assert_status(probe_service(port), PM_FORBIDDEN);
    assert_status(probe_service((uint16_t)(port + 1)), PM_OK);
}

static void test_the_system_decides_what_is_privileged(void **state)
{
    (void)state;
    in_child(check_moved_privileges, NULL);
}

/* ---- machines without IPv6 ----------------------------------------------------------------- */

/* Whatever is missing: IPv4 works as on any other machine. */
static void check_ipv4_alone(void)
{
    uint16_t free = free_ports(1), loopback = by_loopback(), alias = by_alias();
    uint16_t any = by_any(), closed = by_reusing_closed(), datagrams = by_datagram();
    pm_wildcard_prober prober = PM_WILDCARD_PROBER_CLOSED;

    for (int i = 0; i < 2; i++) {
        assert_status(pm_probe_service(&prober, loopback), PM_BUSY);
        assert_status(pm_probe_service(&prober, alias), PM_BUSY);
        assert_status(pm_probe_service(&prober, any), PM_BUSY);
        assert_status(pm_probe_service(&prober, free), PM_OK);
        assert_status(pm_probe_service(&prober, closed), PM_OK);
        assert_status(pm_probe_service(&prober, datagrams), PM_OK);
        assert_status(pm_probe_strict(&prober, loopback), PM_BUSY);
        assert_status(pm_probe_strict(&prober, alias), PM_BUSY);
        assert_status(pm_probe_strict(&prober, free), PM_OK);
        assert_status(pm_probe_strict(&prober, closed), PM_BUSY);
        assert_status(pm_probe_strict(&prober, datagrams), PM_BUSY);
    }
    pm_wildcard_prober_close(&prober);
    assert_status(probe_host("127.0.0.1", free), PM_OK);
    assert_status(probe_host("127.0.0.1", loopback), PM_BUSY);
    assert_status(probe_host("", free), PM_OK);
    assert_status(probe_host("", loopback), PM_BUSY);
    assert_status(probe_host("::1", free), PM_NOT_LOCAL);

    /* localhost, where /etc/hosts names ::1 all the same */
    pm_prober one = PM_PROBER_CLOSED;
    pm_addresses localhost = {
        .count = 2, .items = {address_of("::1"), address_of("127.0.0.1")}
    };
    assert_status(pm_probe_host(&one, &localhost, free), PM_OK);
    assert_status(pm_probe_host(&one, &localhost, loopback), PM_BUSY);
    pm_prober_close(&one);
}

static void check_disabled_ipv6(void *unused)
{
    (void)unused;
    enter_new_network();
    if (access("/proc/sys/net/ipv6", F_OK) == 0) {
        write_setting("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
        write_setting("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1");
    }
    assert_false(has_ipv6());
    check_ipv4_alone();
}

static void test_a_machine_with_ipv6_disabled(void **state)
{
    (void)state;
    in_child(check_disabled_ipv6, NULL);
}

static void check_missing_ipv6(void *unused)
{
    (void)unused;
    refuse_sockets(AF_INET6, EAFNOSUPPORT);
    assert_false(has_ipv6());
    check_ipv4_alone();
}

static void test_a_machine_without_ipv6(void **state)
{
    (void)state;
    in_child(check_missing_ipv6, NULL);
}

static void check_sockets_of_ipv6_only(void *unused)
{
    (void)unused;
    enter_new_network();
    need_ipv6();
    write_setting("/proc/sys/net/ipv6/bindv6only", "1");
    uint16_t loopback = by_loopback(), free = free_ports(1);
    uint16_t datagrams = by_datagram(), closed = by_reusing_closed();
    assert_status(probe_service(loopback), PM_BUSY);
    assert_status(probe_strict(loopback), PM_BUSY);
    assert_status(probe_service(free), PM_OK);
    assert_status(probe_strict(free), PM_OK);
    assert_status(probe_strict(datagrams), PM_BUSY);
    assert_status(probe_service(closed), PM_OK);
}

static void test_a_machine_whose_sockets_are_ipv6_only(void **state)
{
    (void)state;
    in_child(check_sockets_of_ipv6_only, NULL);
}

/* ---- where the kernel does not tell -------------------------------------------------------- */

static void check_without_tables(void *unused)
{
    uint16_t closed = by_reusing_closed(), bound = by_reusing_bound();
    uint16_t listening = by_loopback(), free = free_ports(1);
    (void)unused;

    refuse_sockets(AF_NETLINK, EPERM);
    assert_status(probe_service(closed), PM_OK);
    assert_status(probe_service(bound), PM_OK); /* nothing tells it from TIME_WAIT */
    assert_status(probe_service(listening), PM_BUSY);
    assert_status(probe_service(free), PM_OK);
}

static void test_a_service_gets_its_port_where_netlink_is_refused(void **state)
{
    (void)state;
    in_child(check_without_tables, NULL);
}

static void check_exhausted_tables(void *unused)
{
    uint16_t closed = by_reusing_closed();
    (void)unused;

    refuse_sockets(AF_NETLINK, ENOBUFS);
    assert_status(probe_service(closed), PM_EXHAUSTED);
    assert_int_equal(errno, ENOBUFS);
}

static void test_a_service_is_not_told_what_is_not_known(void **state)
{
    (void)state;
    in_child(check_exhausted_tables, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_the_address_asked_about_counts),
        cmocka_unit_test(test_empty_host_is_free_if_both_families_are),
        cmocka_unit_test(test_addresses_of_other_machines_do_not_count),
        cmocka_unit_test(test_each_own_address_must_be_free),
        cmocka_unit_test(test_link_local_addresses),
        cmocka_unit_test(test_mapped_addresses_are_their_ipv4_addresses),
        cmocka_unit_test(test_mapped_addresses_where_sockets_are_ipv6_only),
        cmocka_unit_test(test_any_port_and_the_last_port),
        cmocka_unit_test(test_a_probe_leaves_the_port_free),
        cmocka_unit_test(test_a_kept_socket_fits_each_next_question),
        cmocka_unit_test(test_a_busy_port_leaves_the_socket_for_the_next_probe),
        cmocka_unit_test(test_closing_keeps_errno),
        cmocka_unit_test(test_no_descriptor_stays_or_could_be_inherited),
        cmocka_unit_test(test_only_address_in_use_means_busy),
        cmocka_unit_test(test_out_of_descriptors_is_not_busy),
        cmocka_unit_test(test_a_prober_works_again_once_there_are_descriptors),
        cmocka_unit_test(test_out_of_buffers_is_not_busy),
        cmocka_unit_test(test_a_privileged_port_is_forbidden),
        cmocka_unit_test(test_the_system_decides_what_is_privileged),
        cmocka_unit_test(test_a_machine_with_ipv6_disabled),
        cmocka_unit_test(test_a_machine_without_ipv6),
        cmocka_unit_test(test_a_machine_whose_sockets_are_ipv6_only),
        cmocka_unit_test(test_a_service_gets_its_port_where_netlink_is_refused),
        cmocka_unit_test(test_a_service_is_not_told_what_is_not_known),
    };
    struct CMUnitTest rows[4 * OCCUPIED_ROWS];

    add_row_tests(rows, "hosts", test_hosts);
    add_row_tests(rows + OCCUPIED_ROWS, "service", test_service);
    add_row_tests(rows + 2 * OCCUPIED_ROWS, "strict", test_strict);
    add_row_tests(rows + 3 * OCCUPIED_ROWS, "kept prober", test_kept_prober);
    int failed = cmocka_run_group_tests_name("probe: who sees whom", rows, isolate, NULL);
    return failed + cmocka_run_group_tests_name("probe", tests, isolate, NULL);
}
