/* Which port a service gets. */
#include "sockets.h"

#include "core/allocate.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* More than any walk here needs; few enough that a walk without end is noticed. */
enum { AMPLE = 200000 };

typedef struct {
    pm_status status;
    uint16_t port;
    bool from_default, from_any, ephemeral, default_forbidden;
    uint32_t busy, forbidden;
} outcome;

static outcome run_to_the_end(const pm_request *request, uint32_t budget)
{
    pm_allocation allocation;
    outcome out = {.status = PM_AGAIN};

    memset(&allocation, 0x5a, sizeof allocation); /* begin must set all that counts */
    pm_status begun = pm_allocation_begin(&allocation, request);
    if (begun != PM_OK) {
        out.status = begun;
        return out;
    }
    for (uint32_t runs = 0; out.status == PM_AGAIN; runs++) {
        assert_in_range(runs, 0, AMPLE);
        out.status = pm_allocation_run(&allocation, budget, true);
    }
    int error = errno;
    pm_allocation_end(&allocation);
    errno = error;
    out.port = allocation.port;
    out.from_default = allocation.from_default;
    out.from_any = allocation.from_any;
    out.ephemeral = allocation.ephemeral;
    out.default_forbidden = allocation.default_forbidden;
    out.busy = allocation.busy;
    out.forbidden = allocation.forbidden;
    return out;
}

static outcome allocate(const pm_request *request)
{
    return run_to_the_end(request, AMPLE);
}

static pm_request request_of(uint16_t port)
{
    return (pm_request){.holder = pm_ledger_enroll(), .default_port = port};
}

static pm_request request_of_range(uint16_t port, uint16_t first, uint16_t last)
{
    pm_request request = request_of(port);
    request.has_range = true;
    request.first = first;
    request.last = last;
    return request;
}

/* The ledger shows no other holder than `expected` in first..last. */
static void assert_holders(uint16_t first, unsigned count, const pm_holder *expected)
{
    for (unsigned i = 0; i < count; i++) {
        assert_int_equal(holder_of((uint16_t)(first + i)), expected ? expected[i] : PM_NOBODY);
    }
}

/* From here on the next walk over any ports begins. */
static void start_at(uint16_t port)
{
    assert_status(pm_ledger_check(), PM_OK);
    pm_ledger_set_next_port(port);
}

static void claim(pm_holder holder, uint16_t port)
{
    pm_holder before;
    assert_status(claim_for(holder, port, &before), PM_OK);
}

/* ---- default and range --------------------------------------------------------------------- */

static void test_default_port_comes_first(void **state)
{
    uint16_t first = free_ports(4);
    pm_request request = request_of_range((uint16_t)(first + 2), first, (uint16_t)(first + 3));
    outcome out = allocate(&request);
    (void)state;

    assert_status(out.status, PM_OK);
    assert_int_equal(out.port, first + 2);
    assert_true(out.from_default);
    assert_false(out.from_any);
    assert_int_equal(out.busy, 0);
    assert_int_equal(holder_of(out.port), request.holder);
    pm_ledger_release(request.holder, out.port);
}

static void test_range_is_walked_in_ascending_order(void **state)
{
    uint16_t first = free_ports(5), port = (uint16_t)(first + 1);
    pm_request request = request_of_range((uint16_t)(first + 4), first, (uint16_t)(first + 3));
    int default_held = hold("127.0.0.1", &request.default_port, LISTENING);
    int second_held = hold("127.0.0.1", &port, LISTENING);
    static const uint16_t expected[] = {0, 2, 3}; /* first + 1 is a listener's */
    (void)state;

    for (size_t i = 0; i < COUNT(expected); i++) {
        outcome out = allocate(&request);
        assert_status(out.status, PM_OK);
        assert_int_equal(out.port, first + expected[i]);
        assert_false(out.from_default);
        assert_false(out.from_any);
        /* The default, and what was passed over: the listener's and the holder's own. */
        assert_int_equal(out.busy, 1 + expected[i]);
        assert_int_equal(holder_of(out.port), request.holder);
    }
    outcome out = allocate(&request);
    assert_status(out.status, PM_BUSY);
    assert_int_equal(out.busy, 5);
    for (size_t i = 0; i < COUNT(expected); i++) {
        pm_ledger_release(request.holder, (uint16_t)(first + expected[i]));
    }
    assert_holders(first, 5, NULL);
    close(default_held);
    close(second_held);
}

static void test_default_port_within_the_range_is_looked_at_once(void **state)
{
    uint16_t first = free_ports(3);
    pm_request request = request_of_range(first, first, (uint16_t)(first + 2));
    uint16_t ports[3];
    int fds[3];
    (void)state;

    for (uint16_t i = 0; i < 3; i++) {
        ports[i] = (uint16_t)(first + i);
        fds[i] = hold("127.0.0.1", &ports[i], LISTENING);
    }
    outcome out = allocate(&request);
    assert_status(out.status, PM_BUSY);
    assert_int_equal(out.busy, 3);
    assert_holders(first, 3, NULL);
    for (int i = 0; i < 3; i++) {
        close(fds[i]);
    }
}

static void test_range_of_the_default_port_alone_adds_nothing(void **state)
{
    uint16_t port = 0;
    int fd = hold("127.0.0.1", &port, LISTENING);
    pm_request request = request_of_range(port, port, port);
    outcome out = allocate(&request);
    (void)state;

    assert_status(out.status, PM_BUSY);
    assert_int_equal(out.busy, 1);
    close(fd);
}

static void test_without_a_range_there_is_the_default_alone(void **state)
{
    uint16_t first = free_ports(2);
    pm_request request = request_of(first);
    (void)state;

    request.first = request.last = (uint16_t)(first + 1); /* without has_range: does not count */
    int fd = hold("127.0.0.1", &first, LISTENING);
    outcome out = allocate(&request);
    assert_status(out.status, PM_BUSY);
    assert_int_equal(out.busy, 1);
    assert_holders(first, 2, NULL);
    close(fd);
    out = allocate(&request);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.port, first);
    pm_ledger_release(request.holder, first);
}

static void test_range_may_end_with_the_last_port(void **state)
{
    enum { FIRST = UINT16_MAX - 3 };
    pm_request request = request_of_range(0, FIRST, UINT16_MAX);
    uint16_t ports[4];
    int fds[4];
    (void)state;

    request.default_port = free_ports(1);
    int default_held = hold("127.0.0.1", &request.default_port, LISTENING);
    for (uint16_t i = 0; i < 4; i++) {
        ports[i] = (uint16_t)(FIRST + i);
        fds[i] = try_hold("127.0.0.1", &ports[i], LISTENING); /* else somebody's: as good */
    }
    outcome out = allocate(&request);
    assert_status(out.status, PM_BUSY);
    assert_int_equal(out.busy, 5);
    for (int i = 0; i < 4; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    close(default_held);
}

static void test_a_listener_on_any_address_makes_a_port_unfit(void **state)
{
    static const char *const literals[] = {"127.0.0.1", "127.0.20.4", "0.0.0.0", "::1", "::"};
    (void)state;

    for (size_t i = 0; i < (has_ipv6() ? COUNT(literals) : 3); i++) {
        uint16_t port = 0;
        int fd = hold(literals[i], &port, LISTENING | REUSE_ADDRESS);
        pm_request request = request_of(port);
        assert_status(allocate(&request).status, PM_BUSY);
        assert_int_equal(holder_of(port), PM_NOBODY);
        close(fd);
    }
}

static void test_a_restarted_server_gets_its_port_back(void **state)
{
    pm_request request = request_of(leave_time_wait(REUSE_ADDRESS));
    outcome out = allocate(&request);
    (void)state;

    assert_status(out.status, PM_OK);
    assert_int_equal(out.port, request.default_port);
    pm_ledger_release(request.holder, out.port);
}

static void check_blocked_ports(void *unused)
{
    enum { FIRST = 5058, LAST = 5063 };
    static const uint16_t order[] = {5058, 5059, 5062, 5063, 5060, 5061};
    (void)unused;

    enter_new_network(); /* where these are free */
    uint16_t port = 0;
    hold("127.0.0.1", &port, LISTENING);
    pm_request request = request_of_range(port, FIRST, LAST);
    for (size_t i = 0; i < COUNT(order); i++) {
        outcome out = allocate(&request);
        assert_status(out.status, PM_OK);
        assert_int_equal(out.port, order[i]);
        assert_false(out.from_default);
        assert_int_equal(out.busy, 1 + i);
    }
    assert_status(allocate(&request).status, PM_BUSY);
    assert_int_equal(allocate(&request).busy, 1 + COUNT(order));
}

static void test_ports_that_browsers_refuse_come_last(void **state)
{
    (void)state;
    in_child(check_blocked_ports, NULL);
}

static void check_blocked_default(void *unused)
{
    (void)unused;
    enter_new_network();
    pm_request request = request_of_range(5060, 5059, 5062);
    outcome out = allocate(&request);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.port, 5060);
    assert_true(out.from_default);
    out = allocate(&request);
    assert_int_equal(out.port, 5059);
    out = allocate(&request);
    assert_int_equal(out.port, 5062);
    out = allocate(&request);
    assert_int_equal(out.port, 5061);
    out = allocate(&request);
    assert_status(out.status, PM_BUSY);
    assert_int_equal(out.busy, 4);
}

static void test_a_default_port_that_browsers_refuse_is_given(void **state)
{
    (void)state;
    in_child(check_blocked_default, NULL);
}

/* ---- claims -------------------------------------------------------------------------------- */

static void test_own_port_is_busy(void **state)
{
    uint16_t port = free_ports(1);
    pm_request request = request_of(port);
    (void)state;

    for (int i = 0; i < 2; i++) {
        claim(request.holder, port);
        request.refuse_held = i;
        outcome out = allocate(&request);
        assert_status(out.status, PM_BUSY);
        assert_int_equal(out.busy, 1);
        assert_int_equal(holder_of(port), request.holder); /* and is not given back */
        pm_ledger_release(request.holder, port);
    }
}

static void test_another_holders_port_stops_the_walk(void **state)
{
    uint16_t first = free_ports(4), default_port = (uint16_t)(first + 3);
    pm_request request = request_of_range(default_port, first, (uint16_t)(first + 2));
    pm_holder other = pm_ledger_enroll();
    pm_allocation allocation;
    (void)state;

    claim(other, default_port);
    claim(other, first);
    assert_status(pm_allocation_begin(&allocation, &request), PM_OK);
    /* As often as it is asked, and it does not count as busy. */
    for (int i = 0; i < 3; i++) {
        assert_status(pm_allocation_run(&allocation, AMPLE, true), PM_HELD);
        assert_int_equal(allocation.busy, 0);
        assert_int_equal(holder_of(default_port), other);
    }
    allocation.request.refuse_held = true;
    assert_status(pm_allocation_run(&allocation, 1, true), PM_AGAIN);
    assert_int_equal(allocation.busy, 1);
    /* The same in the range. */
    allocation.request.refuse_held = false;
    for (int i = 0; i < 3; i++) {
        assert_status(pm_allocation_run(&allocation, AMPLE, true), PM_HELD);
        assert_int_equal(allocation.busy, 1);
    }
    allocation.request.refuse_held = true;
    assert_status(pm_allocation_run(&allocation, AMPLE, true), PM_OK);
    assert_int_equal(allocation.port, first + 1);
    assert_false(allocation.from_default);
    assert_int_equal(allocation.busy, 2);
    pm_allocation_end(&allocation);

    const pm_holder holders[] = {other, request.holder, PM_NOBODY, other};
    assert_holders(first, 4, holders);
    pm_ledger_release(other, default_port);
    pm_ledger_release(other, first);
    pm_ledger_release(request.holder, allocation.port);
}

/* Holds all candidates but the one at `at`, which another holder has: the walk stops there, and
 * gets that very port once it is given back. */
static void check_going_on_at(const uint16_t *ports, size_t count, size_t at, pm_request *request)
{
    pm_holder other = pm_ledger_enroll();
    pm_allocation allocation;

    for (size_t i = 0; i < count; i++) {
        claim(i == at ? other : request->holder, ports[i]);
    }
    assert_status(pm_allocation_begin(&allocation, request), PM_OK);
    assert_status(pm_allocation_run(&allocation, AMPLE, true), PM_HELD);
    pm_ledger_release(other, ports[at]);
    assert_status(pm_allocation_run(&allocation, AMPLE, true), PM_OK);
    assert_int_equal(allocation.port, ports[at]);
    assert_int_equal(allocation.from_default, ports[at] == request->default_port);
    assert_int_equal(allocation.busy, at);
    pm_allocation_end(&allocation);
    for (size_t i = 0; i < count; i++) {
        pm_ledger_release(request->holder, ports[i]);
        assert_int_equal(holder_of(ports[i]), PM_NOBODY);
    }
}

static void check_each_place(void *unused)
{
    /* The default, the range, and its ports that browsers refuse, in the order of the walk. */
    static const uint16_t ports[] = {5070, 5058, 5059, 5062, 5063, 5060, 5061};
    (void)unused;

    enter_new_network();
    for (size_t at = 0; at < COUNT(ports); at++) {
        pm_request request = request_of_range(5070, 5058, 5063);
        check_going_on_at(ports, COUNT(ports), at, &request);
    }
}

static void test_a_walk_goes_on_at_the_port_it_stopped_at(void **state)
{
    (void)state;
    in_child(check_each_place, NULL);
}

static void test_a_claim_that_fails_its_probe_is_given_back(void **state)
{
    uint16_t first = free_ports(3), ports[3];
    pm_request request = request_of_range(first, first, (uint16_t)(first + 2));
    pm_allocation allocation;
    int fds[3];
    (void)state;

    for (uint16_t i = 0; i < 3; i++) {
        ports[i] = (uint16_t)(first + i);
        fds[i] = hold("127.0.0.1", &ports[i], LISTENING);
    }
    assert_status(pm_allocation_begin(&allocation, &request), PM_OK);
    for (unsigned i = 0; i < 3; i++) {
        assert_status(pm_allocation_run(&allocation, 1, true), PM_AGAIN);
        assert_holders(first, 3, NULL);
    }
    assert_status(pm_allocation_run(&allocation, 1, true), PM_BUSY);
    pm_allocation_end(&allocation);
    assert_holders(first, 3, NULL);
    for (int i = 0; i < 3; i++) {
        close(fds[i]);
    }
}

/* A service that starts on its port must not meet a probe: where there is no room for a socket,
 * a probe would say so. */
static void check_no_probe(void *unused)
{
    uint16_t port = free_ports(1);
    pm_request request = request_of(port);
    pm_holder other = pm_ledger_enroll();
    (void)unused;

    claim(other, port);
    limit_descriptors(0);
    pm_status stopped = allocate(&request).status;
    request.refuse_held = true;
    pm_status refused = allocate(&request).status;
    request.holder = other;
    pm_status own = allocate(&request).status;
    unlimit_descriptors();
    assert_status(stopped, PM_HELD);
    assert_status(refused, PM_BUSY);
    assert_status(own, PM_BUSY);
}

static void test_a_held_port_is_never_probed(void **state)
{
    (void)state;
    in_child(check_no_probe, NULL);
}

static void test_ending_a_walk_closes_all_and_keeps_the_port_claimed(void **state)
{
    pm_request request = request_of(0);
    pm_allocation allocation;
    size_t before = open_descriptors();
    (void)state;

    int fd = hold("127.0.0.1", &request.default_port, LISTENING);
    request.has_range = true;
    request.first = request.last = free_ports(1);
    assert_status(pm_allocation_begin(&allocation, &request), PM_OK);
    assert_status(pm_allocation_run(&allocation, 1, true), PM_AGAIN);
    assert_status(pm_allocation_run(&allocation, 1, true), PM_OK);
    pm_allocation_end(&allocation);
    pm_allocation_end(&allocation);
    close(fd);
    assert_int_equal(open_descriptors(), before);
    assert_int_equal(allocation.port, request.first);
    assert_int_equal(holder_of(request.first), request.holder);
    pm_ledger_release(request.holder, request.first);
}

/* ---- budgets ------------------------------------------------------------------------------- */

static void assert_same(const outcome *left, const outcome *right)
{
    assert_status(left->status, right->status);
    assert_int_equal(left->port, right->port);
    assert_int_equal(left->from_default, right->from_default);
    assert_int_equal(left->from_any, right->from_any);
    assert_int_equal(left->busy, right->busy);
    assert_int_equal(left->forbidden, right->forbidden);
    assert_int_equal(left->default_forbidden, right->default_forbidden);
}

static void test_pieces_give_the_same_answer_as_one_run(void **state)
{
    enum { PORTS = 12 };
    static const uint32_t budgets[] = {1, 2, 3, 5, PORTS - 1, PORTS, PORTS + 1};
    uint16_t first = free_ports(PORTS);
    int fds[PORTS];
    (void)state;

    /* More and more of them are taken, up to all. */
    for (uint16_t taken = 0; taken <= PORTS; taken++) {
        pm_request request =
            request_of_range((uint16_t)(first + PORTS / 2), first, (uint16_t)(first + PORTS - 1));
        outcome whole = allocate(&request);
        assert_status(whole.status, taken < PORTS ? PM_OK : PM_BUSY);
        pm_ledger_release(request.holder, whole.port);
        for (size_t i = 0; i < COUNT(budgets); i++) {
            outcome pieces = run_to_the_end(&request, budgets[i]);
            pm_ledger_release(request.holder, pieces.port);
            assert_same(&pieces, &whole);
        }
        if (taken < PORTS) {
            fds[taken] = hold("127.0.0.1", &whole.port, LISTENING);
        }
    }
    for (int i = 0; i < PORTS; i++) {
        close(fds[i]);
    }
}

static void test_a_run_looks_at_no_more_than_its_budget(void **state)
{
    enum { PORTS = 4 };
    uint16_t first = free_ports(PORTS);
    pm_request request = request_of_range(first, first, (uint16_t)(first + PORTS - 1));
    pm_allocation allocation;
    (void)state;

    for (uint16_t i = 0; i < PORTS; i++) {
        claim(request.holder, (uint16_t)(first + i));
    }
    assert_status(pm_allocation_begin(&allocation, &request), PM_OK);
    assert_status(pm_allocation_run(&allocation, 0, true), PM_AGAIN);
    assert_int_equal(allocation.busy, 0);
    assert_status(pm_allocation_run(&allocation, 3, true), PM_AGAIN);
    assert_int_equal(allocation.busy, 3);
    assert_status(pm_allocation_run(&allocation, 1, true), PM_AGAIN);
    assert_int_equal(allocation.busy, 4);
    assert_status(pm_allocation_run(&allocation, 1, true), PM_BUSY);
    assert_status(pm_allocation_run(&allocation, 1, true), PM_BUSY); /* and stays so */
    assert_int_equal(allocation.busy, 4);
    pm_allocation_end(&allocation);
    for (uint16_t i = 0; i < PORTS; i++) {
        pm_ledger_release(request.holder, (uint16_t)(first + i));
    }
}

/* ---- neither free nor busy ----------------------------------------------------------------- */

static uint16_t privileged_ports(uint16_t count)
{
    long start = read_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if (start <= count) {
        skip_because("no port is privileged here");
    }
    return (uint16_t)(start - count);
}

static void check_forbidden(void *unused)
{
    uint16_t first = privileged_ports(3), free = free_ports(1), busy = 0;
    pm_request alone = request_of(first);
    pm_request beside = request_of_range(first, (uint16_t)(first + 1), (uint16_t)(first + 2));
    (void)unused;

    hold("127.0.0.1", &busy, LISTENING);
    become_nobody();

    outcome out = allocate(&alone);
    assert_status(out.status, PM_FORBIDDEN);
    assert_true(out.default_forbidden);
    assert_int_equal(out.forbidden, 1);
    assert_int_equal(out.busy, 0);

    out = allocate(&beside);
    assert_status(out.status, PM_FORBIDDEN);
    assert_true(out.default_forbidden);
    assert_int_equal(out.forbidden, 3);
    assert_holders(first, 3, NULL);

    /* Something was busy: that may change. */
    beside.first = beside.last = busy;
    out = allocate(&beside);
    assert_status(out.status, PM_BUSY);
    assert_true(out.default_forbidden);
    assert_int_equal(out.forbidden, 1);
    assert_int_equal(out.busy, 1);

    beside.default_port = busy;
    beside.first = beside.last = first;
    out = allocate(&beside);
    assert_status(out.status, PM_BUSY);
    assert_false(out.default_forbidden);
    assert_int_equal(out.forbidden, 1);
    assert_int_equal(out.busy, 1);

    /* A forbidden default is passed over. */
    beside.default_port = first;
    beside.first = beside.last = free;
    out = allocate(&beside);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.port, free);
    assert_true(out.default_forbidden);
    assert_false(out.from_default);
}

static void test_forbidden_is_the_answer_only_if_nothing_was_busy(void **state)
{
    (void)state;
    in_child(check_forbidden, NULL);
}

static void check_out_of_descriptors(void *unused)
{
    uint16_t first = free_ports(2), busy = 0;
    pm_request request = request_of_range(first, first, (uint16_t)(first + 1));
    pm_request any = request_of(0);
    pm_allocation allocation;
    (void)unused;

    limit_descriptors(0);
    outcome out = allocate(&request);
    int error = errno;
    unlimit_descriptors();
    assert_status(out.status, PM_EXHAUSTED);
    assert_int_equal(error, EMFILE);
    assert_holders(first, 2, NULL);

    assert_status(pm_allocation_begin(&allocation, &any), PM_OK);
    limit_descriptors(0);
    pm_status status = pm_allocation_run(&allocation, AMPLE, true);
    error = errno;
    unlimit_descriptors();
    pm_allocation_end(&allocation);
    assert_status(status, PM_EXHAUSTED);
    assert_int_equal(error, EMFILE);
    for (uint32_t port = 0; port <= UINT16_MAX; port++) {
        assert_int_equal(holder_of((uint16_t)port), PM_NOBODY);
    }

    /* The first socket says busy, the second one cannot be opened. */
    hold("127.0.0.1", &busy, LISTENING);
    pm_request second = request_of(busy);
    limit_descriptors(1);
    out = allocate(&second);
    error = errno;
    unlimit_descriptors();
    assert_status(out.status, PM_EXHAUSTED);
    assert_int_equal(error, EMFILE);
    assert_int_equal(holder_of(busy), PM_NOBODY);

    out = allocate(&request);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.port, first);
    assert_status(allocate(&any).status, PM_OK);
    assert_status(allocate(&second).status, PM_BUSY);
}

static void test_out_of_descriptors_is_not_busy_and_claims_nothing(void **state)
{
    (void)state;
    in_child(check_out_of_descriptors, NULL);
}

static void check_without_ipv6(void *unused)
{
    uint16_t first = free_ports(3), port = first;
    pm_request request = request_of_range(first, first, (uint16_t)(first + 2));
    (void)unused;

    hold("127.0.20.4", &port, LISTENING);
    refuse_sockets(AF_INET6, EAFNOSUPPORT);
    outcome out = allocate(&request);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.port, first + 1);
    assert_int_equal(out.busy, 1);
    pm_request any = request_of(0);
    assert_status(allocate(&any).status, PM_OK);
}

static void test_a_machine_without_ipv6(void **state)
{
    (void)state;
    in_child(check_without_ipv6, NULL);
}

/* ---- any port ------------------------------------------------------------------------------ */

static void check_any_port(void *unused)
{
    enum { WALKS = 300 };
    static bool given[UINT16_MAX + 1];
    pm_port_policy policy;
    uint16_t before = 0;
    (void)unused;

    pm_port_policy_read(&policy);
    for (int i = 0; i < WALKS; i++) {
        pm_request request = request_of_range(0, 20000, 20001); /* a range means nothing here */
        outcome out = allocate(&request);
        assert_status(out.status, PM_OK);
        assert_true(out.from_any);
        assert_false(out.from_default);
        assert_false(out.ephemeral);
        assert_int_equal(holder_of(out.port), request.holder);
        assert_in_range(out.port, policy.unprivileged_start, UINT16_MAX);
        assert_in_range(out.port, 1024, UINT16_MAX);
        assert_not_in_range(out.port, policy.ephemeral_first, policy.ephemeral_last);
        assert_false(pm_port_set_has(&policy.reserved, out.port));
        assert_false(pm_port_is_blocked(out.port));
        assert_int_not_equal(out.port, before);
        /* What is given back comes last: none comes twice in so few walks. */
        assert_false(given[out.port]);
        given[out.port] = true;
        uint16_t port = out.port;
        close(hold(has_ipv6() ? "::" : "0.0.0.0", &port, 0));
        close(hold(has_ipv6() ? "::" : "0.0.0.0", &port, DATAGRAM));
        pm_ledger_release(request.holder, out.port);
        before = out.port;
    }
}

static void test_any_port_is_fit_and_another_one_each_time(void **state)
{
    (void)state;
    in_child(check_any_port, NULL);
}

static void check_any_passes_over(void *unused)
{
    enum { START = 20000 };
    uint16_t port = START;
    pm_holder other = pm_ledger_enroll();
    pm_request request = request_of(0);
    (void)unused;

    forget_the_past();
    enter_new_network();
    hold("127.0.20.4", &port, LISTENING);
    port = START + 1;
    hold("127.0.0.1", &port, DATAGRAM);
    port = START + 2;
    hold("127.0.0.1", &port, REUSE_ADDRESS);
    claim(request.holder, START + 3);
    claim(other, START + 4);

    /* What is held was changed lately, and comes after all that rested. */
    start_at(START);
    outcome out = allocate(&request);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.port, START + 5);
    assert_int_equal(out.busy, 3);
}

static void test_any_port_is_nobodys(void **state)
{
    (void)state;
    in_child(check_any_passes_over, NULL);
}

static void check_any_skips_time_wait(void *unused)
{
    (void)unused;
    forget_the_past();
    enter_new_network();
    write_setting("/proc/sys/net/ipv4/ip_local_port_range", "1024 1025");
    /* The server's port is a candidate; the client's comes from the range just written. */
    uint16_t port = 20000;
    char byte;
    int listener = hold("127.0.0.1", &port, LISTENING | REUSE_ADDRESS);
    int client = connected_to(port), accepted = accepted_from(listener);
    close(accepted);
    assert_int_equal(read(client, &byte, 1), 0);
    close(client);
    close(listener);

    start_at(port);
    pm_request request = request_of(0);
    outcome out = allocate(&request);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.port, port + 1);
}

static void test_any_port_serves_a_server_without_so_reuseaddr(void **state)
{
    (void)state;
    in_child(check_any_skips_time_wait, NULL);
}

static void check_last_resort(void *unused)
{
    enum { FIRST = 40000, LAST = 40002 };
    pm_request request = request_of(0);
    outcome out;
    (void)unused;

    enter_new_network();
    write_setting("/proc/sys/net/ipv4/ip_local_port_range", "40000 40002");
    write_setting("/proc/sys/net/ipv4/ip_local_reserved_ports", "1-19999,20001-39999,40003-65535");

    out = allocate(&request); /* 20000 is the only one outside the ephemeral range */
    assert_status(out.status, PM_OK);
    assert_int_equal(out.port, 20000);
    assert_false(out.ephemeral);
    for (uint16_t port = FIRST; port <= LAST; port++) {
        out = allocate(&request);
        assert_status(out.status, PM_OK);
        assert_true(out.ephemeral);
        assert_true(out.from_any);
        assert_in_range(out.port, FIRST, LAST);
    }
    out = allocate(&request);
    assert_status(out.status, PM_BUSY);
    assert_int_equal(out.busy, 4);
    pm_ledger_release(request.holder, 20000);
    out = allocate(&request);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.port, 20000);
    assert_false(out.ephemeral);
}

static void test_the_ephemeral_range_is_the_last_resort(void **state)
{
    (void)state;
    in_child(check_last_resort, NULL);
}

static void check_no_candidate(void *unused)
{
    pm_request request = request_of(0);
    (void)unused;

    enter_new_network();
    write_setting("/proc/sys/net/ipv4/ip_local_reserved_ports", "1-65535");
    outcome out = allocate(&request);
    assert_status(out.status, PM_BUSY);
    assert_int_equal(out.busy, 0);
}

static void test_there_may_be_no_candidate(void **state)
{
    (void)state;
    in_child(check_no_candidate, NULL);
}

/* ---- find_available_port -------------------------------------------------------------------- */

static pm_search search_of(const char *host, uint32_t next, uint32_t last)
{
    return (pm_search){.host = addresses_of(host),
                       .next = next,
                       .last = last,
                       .holder = pm_ledger_enroll(),
                       .prober = PM_PROBER_CLOSED};
}

/* The answer of a search in pieces of a budget. */
static pm_status run_search(const pm_search *from, uint32_t budget, uint16_t *port)
{
    pm_search search = *from;
    pm_status status = PM_AGAIN;

    for (uint32_t runs = 0; status == PM_AGAIN; runs++) {
        assert_in_range(runs, 0, AMPLE);
        status = pm_search_run(&search, budget);
    }
    *port = search.port;
    pm_search_end(&search);
    return status;
}

static void test_a_search_finds_the_first_free_port_and_claims_nothing(void **state)
{
    enum { PORTS = 5 };
    static const uint32_t budgets[] = {1, 2, 3, PORTS, AMPLE};
    uint16_t first = free_ports(PORTS), found = 0;
    pm_search search = search_of("127.0.0.1", first, first + PORTS - 1);
    int fds[PORTS];
    size_t before = open_descriptors();
    (void)state;

    for (uint16_t taken = 0; taken <= PORTS; taken++) {
        for (size_t i = 0; i < COUNT(budgets); i++) {
            pm_status status = run_search(&search, budgets[i], &found);
            assert_status(status, taken < PORTS ? PM_OK : PM_BUSY);
            assert_true(status == PM_BUSY || found == first + taken);
            assert_holders(first, PORTS, NULL);
            assert_int_equal(open_descriptors(), before + taken);
        }
        if (taken < PORTS) {
            fds[taken] = hold("127.0.0.1", &found, LISTENING);
        }
    }
    for (int i = 0; i < PORTS; i++) {
        close(fds[i]);
    }
}

static void test_a_search_is_about_its_host_alone(void **state)
{
    uint16_t first = free_ports(2), found = 0;
    int fd = hold("127.0.10.10", &first, LISTENING);
    pm_search here = search_of("127.0.10.10", first, first + 1u);
    pm_search there = search_of("127.0.20.4", first, first + 1u);
    pm_search foreign = search_of("192.0.2.77", first, first + 1u);
    (void)state;

    assert_status(run_search(&here, AMPLE, &found), PM_OK);
    assert_int_equal(found, first + 1);
    assert_status(run_search(&there, AMPLE, &found), PM_OK);
    assert_int_equal(found, first);
    assert_status(run_search(&foreign, AMPLE, &found), PM_BUSY);
    close(fd);
}

static void test_a_search_passes_over_its_holders_own_ports(void **state)
{
    uint16_t first = free_ports(2), found = 0;
    pm_search search = search_of("127.0.0.1", first, first + 1u);
    (void)state;

    claim(search.holder, first);
    assert_status(run_search(&search, AMPLE, &found), PM_OK);
    assert_int_equal(found, first + 1);
    claim(search.holder, found);
    assert_status(run_search(&search, AMPLE, &found), PM_BUSY);
    pm_ledger_release(search.holder, first);
    pm_ledger_release(search.holder, (uint16_t)(first + 1));
}

static void test_a_search_stops_at_another_holders_port(void **state)
{
    uint16_t first = free_ports(3);
    pm_search search = search_of("127.0.0.1", first, first + 2u);
    pm_holder other = pm_ledger_enroll();
    (void)state;

    claim(other, first);
    claim(other, (uint16_t)(first + 1));
    for (int i = 0; i < 3; i++) {
        assert_status(pm_search_run(&search, AMPLE), PM_HELD);
    }
    pm_ledger_release(other, first); /* gone in the meantime: it goes on at the same port */
    assert_status(pm_search_run(&search, AMPLE), PM_OK);
    assert_int_equal(search.port, first);

    claim(other, first);
    search.next = first;
    assert_status(pm_search_run(&search, AMPLE), PM_HELD);
    search.refuse_held = true;
    assert_status(pm_search_run(&search, 1), PM_AGAIN);
    assert_status(pm_search_run(&search, 1), PM_AGAIN);
    assert_status(pm_search_run(&search, 1), PM_OK);
    assert_int_equal(search.port, first + 2);
    pm_search_end(&search);
    const pm_holder holders[] = {other, other, PM_NOBODY};
    assert_holders(first, 3, holders);
    pm_ledger_release(other, first);
    pm_ledger_release(other, (uint16_t)(first + 1));
}

static void test_a_search_may_be_empty_and_may_end_with_the_last_port(void **state)
{
    pm_search empty = search_of("127.0.0.1", 20001, 20000);
    pm_search end = search_of("127.0.0.1", UINT16_MAX, UINT16_MAX);
    uint16_t found = 0;
    (void)state;

    assert_status(run_search(&empty, AMPLE, &found), PM_BUSY);
    claim(end.holder, UINT16_MAX);
    assert_status(run_search(&end, AMPLE, &found), PM_BUSY);
    pm_ledger_release(end.holder, UINT16_MAX);
}

static void check_search_without_descriptors(void *unused)
{
    uint16_t first = free_ports(2);
    pm_search search = search_of("127.0.0.1", first, first + 1u);
    (void)unused;

    limit_descriptors(0);
    pm_status status = pm_search_run(&search, AMPLE);
    int error = errno;
    unlimit_descriptors();
    assert_status(status, PM_EXHAUSTED);
    assert_int_equal(error, EMFILE);
    assert_status(pm_search_run(&search, AMPLE), PM_OK); /* the same search goes on */
    assert_int_equal(search.port, first);
    pm_search_end(&search);
}

static void test_a_search_out_of_descriptors_does_not_know(void **state)
{
    (void)state;
    in_child(check_search_without_descriptors, NULL);
}

static void check_forbidden_search(void *unused)
{
    uint16_t first = privileged_ports(2), found = 0;
    (void)unused;

    become_nobody();
    pm_search forbidden = search_of("127.0.0.1", first, first + 1u);
    assert_status(run_search(&forbidden, AMPLE, &found), PM_BUSY);
    pm_search beyond = search_of("127.0.0.1", first, first + 50u);
    assert_status(run_search(&beyond, AMPLE, &found), PM_OK);
    assert_in_range(found, first + 2, first + 50);
}

static void test_a_search_passes_over_forbidden_ports(void **state)
{
    (void)state;
    in_child(check_forbidden_search, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default_port_comes_first),
        cmocka_unit_test(test_range_is_walked_in_ascending_order),
        cmocka_unit_test(test_default_port_within_the_range_is_looked_at_once),
        cmocka_unit_test(test_range_of_the_default_port_alone_adds_nothing),
        cmocka_unit_test(test_without_a_range_there_is_the_default_alone),
        cmocka_unit_test(test_range_may_end_with_the_last_port),
        cmocka_unit_test(test_a_listener_on_any_address_makes_a_port_unfit),
        cmocka_unit_test(test_a_restarted_server_gets_its_port_back),
        cmocka_unit_test(test_ports_that_browsers_refuse_come_last),
        cmocka_unit_test(test_a_default_port_that_browsers_refuse_is_given),
        cmocka_unit_test(test_own_port_is_busy),
        cmocka_unit_test(test_another_holders_port_stops_the_walk),
        cmocka_unit_test(test_a_walk_goes_on_at_the_port_it_stopped_at),
        cmocka_unit_test(test_a_claim_that_fails_its_probe_is_given_back),
        cmocka_unit_test(test_a_held_port_is_never_probed),
        cmocka_unit_test(test_ending_a_walk_closes_all_and_keeps_the_port_claimed),
        cmocka_unit_test(test_pieces_give_the_same_answer_as_one_run),
        cmocka_unit_test(test_a_run_looks_at_no_more_than_its_budget),
        cmocka_unit_test(test_forbidden_is_the_answer_only_if_nothing_was_busy),
        cmocka_unit_test(test_out_of_descriptors_is_not_busy_and_claims_nothing),
        cmocka_unit_test(test_a_machine_without_ipv6),
        cmocka_unit_test(test_any_port_is_fit_and_another_one_each_time),
        cmocka_unit_test(test_any_port_is_nobodys),
        cmocka_unit_test(test_any_port_serves_a_server_without_so_reuseaddr),
        cmocka_unit_test(test_the_ephemeral_range_is_the_last_resort),
        cmocka_unit_test(test_there_may_be_no_candidate),
        cmocka_unit_test(test_a_search_finds_the_first_free_port_and_claims_nothing),
        cmocka_unit_test(test_a_search_is_about_its_host_alone),
        cmocka_unit_test(test_a_search_passes_over_its_holders_own_ports),
        cmocka_unit_test(test_a_search_stops_at_another_holders_port),
        cmocka_unit_test(test_a_search_may_be_empty_and_may_end_with_the_last_port),
        cmocka_unit_test(test_a_search_out_of_descriptors_does_not_know),
        cmocka_unit_test(test_a_search_passes_over_forbidden_ports),
    };
    return cmocka_run_group_tests_name("allocate", tests, isolate_with_ledger, remove_ledger);
}
