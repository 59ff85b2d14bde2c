/* Probing, listening, the machine's tables, addresses: what becomes of them when a call fails. */
#include "faults.h"
#include "sockets.h"

#include "core/candidates.h"
#include "core/listen.h"
#include "core/listeners.h"
#include "core/probe.h"
#include "core/process.h"

#define SOCKETS (BIT(CALL_SOCKET) | BIT(CALL_NETLINK))

/* What a scenario is about, set up by the subject's parent. */
static uint16_t port;
static uint64_t inode;
static pm_addresses host;

static uint16_t free_port(void)
{
    return free_ports(1);
}

/* ---- probes -------------------------------------------------------------------------------- */

/* A machine where this errno comes has no IPv6, or not this address: then the answer is about the
 * rest of it. */
static bool is_without_ipv6(void)
{
    pm_status status = pm_status_of_errno(plan->error);
    return plan->hit &&
           (status == PM_UNSUPPORTED || status == PM_NOT_LOCAL || plan->error == ENOPROTOOPT);
}

static pm_status probe_host(void)
{
    pm_prober prober = PM_PROBER_CLOSED;
    pm_status status = pm_probe_host(&prober, &host, port);
    pm_prober_close(&prober);
    return status;
}

static pm_status probe_service(void)
{
    pm_wildcard_prober prober = PM_WILDCARD_PROBER_CLOSED;
    pm_status status = pm_probe_service(&prober, port);
    pm_wildcard_prober_close(&prober);
    return status;
}

static pm_status probe_strict(void)
{
    pm_wildcard_prober prober = PM_WILDCARD_PROBER_CLOSED;
    pm_status status = pm_probe_strict(&prober, port);
    pm_wildcard_prober_close(&prober);
    return status;
}

static pm_status probe_service_by_ipv6(void)
{
    pm_status status = probe_service();
    return status == PM_OK && is_without_ipv6() ? PM_BUSY : status;
}

static pm_status probe_strict_by_ipv6(void)
{
    pm_status status = probe_strict();
    return status == PM_OK && is_without_ipv6() ? PM_BUSY : status;
}

static void find_free_port(void)
{
    host = addresses_of("127.0.0.1");
    port = free_port();
}

static void find_free_port_of_two(void)
{
    find_free_port();
    host.items[host.count++] = address_of("::1");
}

static void find_port_in_time_wait(void)
{
    port = leave_time_wait(REUSE_ADDRESS);
}

static void listen_on_ipv6(void)
{
    need_ipv6();
    hold("::1", &port, LISTENING);
}

/* ---- listening ----------------------------------------------------------------------------- */

static pm_status bind_and_listen(void)
{
    int fd = 0, listening = 0;
    socklen_t size = sizeof listening;
    pm_status status = pm_listen(&host, port, 8, &fd);

    if (status != PM_OK) {
        subject.descriptors = fd == -1 ? 0 : 1000;
        return fd == -1 ? status : PM_AGAIN; /* which is never right */
    }
    armed = false; /* the rest is the test's own */
    subject.wrong = getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) != 0 ||
                    !listening || fcntl(fd, F_GETFD, NULL) != FD_CLOEXEC || port_of(fd) != port;
    close(fd);
    return status;
}

static void find_free_port_everywhere(void)
{
    host = addresses_of("");
    port = free_port();
}

/* ---- who listens --------------------------------------------------------------------------- */

/* No table of IPv4: so the machine has no IPv4. */
static bool is_without_ipv4(void)
{
    return plan->hit && plan->fails.which == CALL_FOPEN && plan->error == ENOENT;
}

static pm_status reach(const char *literal, bool expected)
{
    pm_address address = address_of(literal);
    bool listening = !expected;
    pm_status status = pm_listeners_reach(&address, port, &listening);
    subject.wrong = listening != expected && !is_without_ipv4();
    return status;
}

static pm_status reach_listener(void)
{
    return reach("127.0.0.1", true);
}

static pm_status reach_nobody(void)
{
    return reach("127.0.0.1", false);
}

/* An address for documentation: the listener is on all addresses, but not on that one. */
static pm_status reach_foreign(void)
{
    return reach("192.0.2.1", false);
}

static pm_status ask_for_bound(void)
{
    bool bound = false;
    pm_status status = pm_listeners_bound(port, &bound);
    subject.wrong = !bound && kernel_is_at_least(6, 8);
    return status;
}

enum { LISTENERS = 17 }; /* more than a list has room for at first */

static uint16_t ports[LISTENERS];

static pm_status list_listeners(void)
{
    static pm_port_set wanted;
    pm_listeners list;

    for (size_t i = 0; i < LISTENERS; i++) {
        pm_port_set_add(&wanted, ports[i]);
    }
    pm_status status = pm_listeners_list(&wanted, &list);
    subject.wrong = list.count != LISTENERS && !is_without_ipv4();
    pm_listeners_free(&list);
    return status;
}

/* Who cannot be looked into stays unknown; nobody else is ever named. */
static pm_status find_pid(void)
{
    static pm_listener items[1];
    pm_listeners list = {.items = items, .count = 1, .capacity = 1};

    items[0] = (pm_listener){.port = port, .inode = inode};
    pm_listeners_find_pids(&list);
    bool unknown = items[0].pid == 0 && plan->hit;
    subject.wrong = !unknown && items[0].pid != getpid();
    return PM_OK;
}

static pm_status find_no_pid(void)
{
    pm_status status = find_pid();
    subject.wrong = false;
    return status;
}

static void start_listener(void)
{
    hold("127.0.0.1", &port, LISTENING);
}

static void start_listener_everywhere(void)
{
    hold("0.0.0.0", &port, LISTENING);
}

static void start_listeners(void)
{
    for (size_t i = 0; i < LISTENERS; i++) {
        hold("127.0.0.1", &ports[i], LISTENING);
    }
}

static void bind_only(void)
{
    hold("127.0.0.1", &port, REUSE_ADDRESS);
}

static void listen_for_itself(void)
{
    struct stat status;
    int fd = hold("127.0.0.1", &port, LISTENING);

    assert_int_equal(fstat(fd, &status), 0);
    inode = (uint64_t)status.st_ino;
}

/* ---- the policy, and chance ---------------------------------------------------------------- */

static pm_port_policy actual;

static void set_policy(void)
{
    enter_new_network();
    write_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start", "500");
    write_setting("/proc/sys/net/ipv4/ip_local_port_range", "40000 50000");
    write_setting("/proc/sys/net/ipv4/ip_local_reserved_ports", "20000-20001,30000");
    pm_port_policy_read(&actual);
    assert_int_equal(actual.unprivileged_start, 500);
    assert_true(pm_port_set_has(&actual.reserved, 30000));
}

/* What cannot be read has the documented default; a second try may have read it. */
static pm_status read_policy(void)
{
    static const pm_port_set none;
    pm_port_policy policy;

    pm_port_policy_read(&policy);
    bool is_cut = plan->hit && (plan->error == HALF || plan->error == NO_BYTES);
    subject.wrong =
        !is_cut && ((policy.unprivileged_start != 500 && policy.unprivileged_start != 1024) ||
                    !((policy.ephemeral_first == 40000 && policy.ephemeral_last == 50000) ||
                      (policy.ephemeral_first == 32768 && policy.ephemeral_last == 60999)) ||
                    (memcmp(&policy.reserved, &actual.reserved, sizeof none) != 0 &&
                     memcmp(&policy.reserved, &none, sizeof none) != 0) ||
                    (!plan->hit && memcmp(&policy, &actual, sizeof policy) != 0));
    return PM_OK;
}

static pm_status draw_numbers(void)
{
    uint32_t first = pm_entropy(), second = pm_entropy();
    subject.wrong = first == second && !plan->hit;
    return PM_OK;
}

/* ---- addresses ----------------------------------------------------------------------------- */

static pm_status resolve(const char *name, bool literally)
{
    pm_addresses addresses;
    pm_status status =
        literally ? pm_address_literal(name, &addresses) : pm_address_resolve(name, &addresses);
    subject.wrong = addresses.count == 0;
    return status;
}

static pm_status resolve_name(void)
{
    return resolve("localhost", false);
}

static pm_status resolve_scope(void)
{
    return resolve("fe80::1%lo", true);
}

/* ---- all of them --------------------------------------------------------------------------- */

static const scenario scenarios[] = {
    {"probe a host", probe_host, .set_up = find_free_port, .told = SOCKETS,
     .also = BIT(PM_NOT_LOCAL)},
    {"probe a host of two addresses", probe_host, .set_up = find_free_port_of_two, .told = SOCKETS},
    {"probe for a service", probe_service, .set_up = find_free_port, .told = SOCKETS},
    {"probe for a service, TIME_WAIT", probe_service, .set_up = find_port_in_time_wait,
     .told = SOCKETS},
    {"probe for a service, in use", probe_service, .set_up = start_listener, .told = SOCKETS},
    {"probe for a service, bound", probe_service, .set_up = bind_only, .told = SOCKETS,
     .also = BIT(PM_OK)},
    {"probe for a service, in use by IPv6", probe_service_by_ipv6, .set_up = listen_on_ipv6,
     .told = SOCKETS},
    {"probe strictly", probe_strict, .set_up = find_free_port, .told = SOCKETS},
    {"probe strictly, in use by IPv6", probe_strict_by_ipv6, .set_up = listen_on_ipv6,
     .told = SOCKETS},
    {"listen", bind_and_listen, .set_up = find_free_port, .told = SOCKETS},
    {"listen everywhere", bind_and_listen, .set_up = find_free_port_everywhere, .told = SOCKETS},
    {"listen, in vain", bind_and_listen, .set_up = find_free_port, .refused = CALL_LISTEN,
     .refusal = EADDRINUSE},
    {"reach a listener", reach_listener, .set_up = start_listener, .told = SOCKETS},
    {"reach nobody", reach_nobody, .set_up = find_free_port, .told = SOCKETS},
    {"reach a foreign address", reach_foreign, .set_up = start_listener_everywhere,
     .flags = MAY_MISANSWER},
    {"reach a listener without netlink", reach_listener, .set_up = start_listener,
     .told = BIT(CALL_FOPEN), .refused = CALL_NETLINK, .refusal = EPROTONOSUPPORT},
    {"ask for a bound socket", ask_for_bound, .set_up = bind_only, .told = SOCKETS},
    {"list the listeners", list_listeners, .set_up = start_listeners,
     .told = SOCKETS | BIT(CALL_REALLOC)},
    {"list the listeners without netlink", list_listeners, .set_up = start_listeners,
     .told = BIT(CALL_FOPEN) | BIT(CALL_REALLOC), .refused = CALL_NETLINK,
     .refusal = EPROTONOSUPPORT},
    {"find a listener's process", find_pid, .prepare = listen_for_itself},
    {"find a listener's process, in vain", find_no_pid, .prepare = listen_for_itself,
     .refused = CALL_FDOPENDIR, .refusal = ENOMEM},
    {"read the policy", read_policy, .set_up = set_policy},
    {"draw numbers", draw_numbers, .flags = 0},
    {"draw numbers without a source", draw_numbers, .flags = TIME_PASSES, .refused = CALL_GETRANDOM,
     .refusal = ENOSYS},
    {"resolve a name", resolve_name, .told = BIT(CALL_GETADDRINFO), .also = BIT(PM_UNRESOLVED)},
    {"resolve a name that is unknown", resolve_name, .told = BIT(CALL_SOCKET),
     .refused = CALL_GETADDRINFO, .refusal = EAI_NONAME},
    {"resolve a scope", resolve_scope, .told = BIT(CALL_GETADDRINFO), .also = BIT(PM_UNRESOLVED)},
};

static void test_all_calls_fail(void **state)
{
    static const call expected[] = {
        CALL_SOCKET,  CALL_NETLINK,   CALL_SETSOCKOPT, CALL_BIND,        CALL_LISTEN,
        CALL_SEND,    CALL_SENDTO,    CALL_RECV,       CALL_GETADDRINFO, CALL_OPEN_PROC,
        CALL_OPENAT,  CALL_CLOSE,     CALL_READ,       CALL_MALLOC,      CALL_REALLOC,
        CALL_CLOCK,   CALL_GETRANDOM, CALL_FOPEN,      CALL_FGETS,       CALL_FCLOSE,
        CALL_OPENDIR, CALL_FDOPENDIR, CALL_READDIR,    CALL_READLINKAT,  CALL_CLOSEDIR};
    (void)state;
    check_all_fail(expected, COUNT(expected));
}

int main(void)
{
    FAULT_TESTS(scenarios, test_all_calls_fail);
    return cmocka_run_group_tests_name("faults", tests, begin_faults, end_faults);
}
