/* Which ports may be handed out unasked, and in which order. */
#include "support.h"

#include "core/candidates.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { WELL_KNOWN_END = 1024 };

static const pm_wish any;

static bool is_ephemeral(const pm_port_policy *policy, uint32_t port)
{
    return port >= policy->ephemeral_first && port <= policy->ephemeral_last;
}

/* ---- bad ports ----------------------------------------------------------------------------- */

static void test_bad_ports_are_those_of_the_fetch_standard(void **state)
{
    static const uint16_t bad[] = {
        0,    1,    7,    9,    11,   13,   15,   17,   19,   20,   21,   22,   23,    25,
        37,   42,   43,   53,   69,   77,   79,   87,   95,   101,  102,  103,  104,   109,
        110,  111,  113,  115,  117,  119,  123,  135,  137,  139,  143,  161,  179,   389,
        427,  465,  512,  513,  514,  515,  526,  530,  531,  532,  540,  548,  554,   556,
        563,  587,  601,  636,  989,  990,  993,  995,  1719, 1720, 1723, 2049, 3659,  4045,
        4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
    };
    size_t next = 0;
    (void)state;

    for (uint32_t port = 0; port <= UINT16_MAX; port++) {
        bool expected = next < COUNT(bad) && bad[next] == port;
        next += expected;
        if (pm_port_is_blocked((uint16_t)port) != expected) {
            fail_msg("port %u", port);
        }
    }
    assert_int_equal(next, COUNT(bad));
}

/* ---- the policy ---------------------------------------------------------------------------- */

static void check_written_policy(void *unused)
{
    pm_port_policy policy;
    (void)unused;

    enter_new_network();
    write_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start", "80");
    write_setting("/proc/sys/net/ipv4/ip_local_port_range", "40000 40100");
    write_setting("/proc/sys/net/ipv4/ip_local_reserved_ports", "8080,9000-9010");
    memset(&policy, 0xff, sizeof policy);
    pm_port_policy_read(&policy);
    assert_int_equal(policy.unprivileged_start, 80);
    assert_int_equal(policy.ephemeral_first, 40000);
    assert_int_equal(policy.ephemeral_last, 40100);
    for (uint32_t port = 0; port <= UINT16_MAX; port++) {
        bool reserved = port == 8080 || (port >= 9000 && port <= 9010);
        assert_int_equal(pm_port_set_has(&policy.reserved, (uint16_t)port), reserved);
    }

    /* Not remembered: the next reading has what was written since. */
    write_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    write_setting("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535");
    write_setting("/proc/sys/net/ipv4/ip_local_reserved_ports", "65534-65535");
    pm_port_policy_read(&policy);
    assert_int_equal(policy.unprivileged_start, 0);
    assert_int_equal(policy.ephemeral_first, 1024);
    assert_int_equal(policy.ephemeral_last, 65535);
    for (uint32_t port = 0; port <= UINT16_MAX; port++) {
        assert_int_equal(pm_port_set_has(&policy.reserved, (uint16_t)port), port >= 65534);
    }

    write_setting("/proc/sys/net/ipv4/ip_local_reserved_ports", "\n");
    pm_port_policy_read(&policy);
    for (uint32_t port = 0; port <= UINT16_MAX; port++) {
        assert_false(pm_port_set_has(&policy.reserved, (uint16_t)port));
    }
}

static void test_the_policy_is_the_networks_at_this_moment(void **state)
{
    (void)state;
    in_child(check_written_policy, NULL);
}

/* Every second port: the longest list that there can be. */
static void check_many_reserved(void *unused)
{
    static const char path[] = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    pm_port_policy policy;
    (void)unused;

    enter_new_network();
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) {
        skip_because("settings of the network cannot be written here");
    }
    /* The kernel takes a page at a time, and adds what comes at another place than the start. */
    uint32_t port = 1;
    for (off_t at = 0; port <= UINT16_MAX; at++) {
        char text[2048];
        size_t length = 0;
        while (port <= UINT16_MAX && length < sizeof text - 8) {
            length += (size_t)snprintf(text + length, sizeof text - length, "%u,", port);
            port += 2;
        }
        text[length - 1] = '\n';
        assert_int_equal(pwrite(fd, text, length, at), length);
    }
    close(fd);
    pm_port_policy_read(&policy);
    for (port = 0; port <= UINT16_MAX; port++) {
        assert_int_equal(pm_port_set_has(&policy.reserved, (uint16_t)port), port % 2);
    }
}

static void test_a_long_list_of_reserved_ports_is_read_to_its_end(void **state)
{
    (void)state;
    in_child(check_many_reserved, NULL);
}

static void check_unreadable_policy(void *unused)
{
    pm_port_policy policy;
    (void)unused;

    refuse_files(EACCES);
    memset(&policy, 0xff, sizeof policy);
    pm_port_policy_read(&policy);
    assert_int_equal(policy.unprivileged_start, 1024);
    assert_int_equal(policy.ephemeral_first, 32768);
    assert_int_equal(policy.ephemeral_last, 60999);
    for (uint32_t port = 0; port <= UINT16_MAX; port++) {
        assert_false(pm_port_set_has(&policy.reserved, (uint16_t)port));
    }
}

static void test_what_cannot_be_read_has_the_documented_default(void **state)
{
    (void)state;
    in_child(check_unreadable_policy, NULL);
}

static void check_descriptors(void *unused)
{
    pm_port_policy policy;
    (void)unused;

    forbid_inheritable_descriptors();
    size_t before = open_descriptors();
    pm_port_policy_read(&policy);
    assert_int_equal(open_descriptors(), before);
}

static void test_no_descriptor_stays_or_could_be_inherited(void **state)
{
    (void)state;
    in_child(check_descriptors, NULL);
}

/* ---- the walk ------------------------------------------------------------------------------ */

static pm_port_policy policy_of(uint16_t unprivileged_start, uint16_t first, uint16_t last)
{
    return (pm_port_policy){
        .unprivileged_start = unprivileged_start, .ephemeral_first = first, .ephemeral_last = last};
}

/* Walks to the end and judges every candidate by the policy alone. */
static void check_walk(const pm_port_policy *policy)
{
    static uint8_t seen[UINT16_MAX + 1];
    pm_candidates candidates;
    uint16_t port, first[2] = {0}, before[2] = {0};
    bool ephemeral, last_round = false, wrapped[2] = {false};
    size_t rounds[2] = {0};

    memset(seen, 0, sizeof seen);
    pm_candidates_begin(&candidates, &any);
    candidates.policy = *policy;
    while (pm_candidates_next(&candidates, &port)) {
        ephemeral = candidates.ephemeral;
        assert_int_equal(seen[port]++, 0);
        assert_int_equal(ephemeral, is_ephemeral(policy, port));
        assert_true(ephemeral || !last_round); /* ephemeral ones only after all others */
        last_round = ephemeral;
        /* Ascending, but for one step from the end to the start. */
        if (rounds[ephemeral]++ == 0) {
            first[ephemeral] = port;
        } else if (port < before[ephemeral]) {
            assert_false(wrapped[ephemeral]);
            wrapped[ephemeral] = true;
        }
        assert_true(!wrapped[ephemeral] || port < first[ephemeral]);
        before[ephemeral] = port;
    }
    assert_false(pm_candidates_next(&candidates, &port));
    for (uint32_t at = 0; at <= UINT16_MAX; at++) {
        bool fit = at >= WELL_KNOWN_END && at >= policy->unprivileged_start &&
                   !pm_port_is_blocked((uint16_t)at) &&
                   !pm_port_set_has(&policy->reserved, (uint16_t)at);
        if (seen[at] != fit) {
            fail_msg("port %u came %d times", at, seen[at]);
        }
    }
}

static void test_each_fit_port_comes_once_and_ephemeral_ones_last(void **state)
{
    static const uint16_t reserved[] = {1024, 1025, 8080, 32767, 32768, 40000, 60999, 65535};
    pm_port_policy policies[] = {
        policy_of(1024, 32768, 60999),  policy_of(0, 32768, 60999),
        policy_of(80, 1024, 65535),     policy_of(1024, 1024, 65535),
        policy_of(1024, 1, 0),          policy_of(1024, 60999, 32768),
        policy_of(30000, 32768, 32768), policy_of(65535, 32768, 60999),
        policy_of(50000, 32768, 60999), policy_of(1024, 65535, 65535),
        policy_of(1024, 1, 1023),
    };
    (void)state;

    for (size_t i = 0; i < COUNT(policies); i++) {
        check_walk(&policies[i]);
        for (size_t r = 0; r < COUNT(reserved); r++) {
            pm_port_set_add(&policies[i].reserved, reserved[r]);
        }
        check_walk(&policies[i]);
    }
}

static void test_a_walk_may_have_no_candidate(void **state)
{
    pm_port_policy policy = policy_of(1024, 32768, 60999);
    pm_candidates candidates;
    uint16_t port;
    (void)state;

    memset(&policy.reserved, 0xff, sizeof policy.reserved);
    check_walk(&policy);
    pm_candidates_begin(&candidates, &any);
    candidates.policy = policy;
    assert_false(pm_candidates_next(&candidates, &port));
}

static void test_a_walk_has_the_systems_policy(void **state)
{
    pm_candidates candidates;
    pm_port_policy policy;
    (void)state;

    memset(&candidates, 0xff, sizeof candidates);
    pm_candidates_begin(&candidates, &any);
    pm_port_policy_read(&policy);
    assert_int_equal(candidates.policy.unprivileged_start, policy.unprivileged_start);
    assert_int_equal(candidates.policy.ephemeral_first, policy.ephemeral_first);
    assert_int_equal(candidates.policy.ephemeral_last, policy.ephemeral_last);
    assert_memory_equal(&candidates.policy.reserved, &policy.reserved, sizeof policy.reserved);
    check_walk(&policy);
}

static uint16_t first_candidate(const pm_port_policy *policy)
{
    pm_candidates candidates;
    uint16_t port = 0;

    pm_candidates_begin(&candidates, &any);
    candidates.policy = *policy;
    assert_true(pm_candidates_next(&candidates, &port));
    return port;
}

static void take(uint16_t port)
{
    pm_candidates candidates;

    pm_candidates_begin(&candidates, &any);
    pm_candidates_taken(&candidates, port);
}

static void check_going_on(void *unused)
{
    static const struct {
        uint16_t taken, next;
    } cases[] = {
        {20000, 20001},
        {1024,  1025 },
        {65534, 65535},
        {65535, 1024 }, /* round the end */
        {5059,  5062 }, /* bad ports are left out */
        {32767, 61000}, /* so are ephemeral ones */
        {40000, 61000},
        {8079,  8081 }, /* and reserved ones */
    };
    pm_port_policy policy = policy_of(1024, 32768, 60999);
    (void)unused;

    pm_port_set_add(&policy.reserved, 8080);
    for (size_t i = 0; i < COUNT(cases); i++) {
        take(cases[i].taken);
        assert_int_equal(first_candidate(&policy), cases[i].next);
        assert_int_equal(first_candidate(&policy), cases[i].next); /* looking alone moves nothing */
    }
    take(20000);
    check_walk(&policy);
}

static void test_a_walk_begins_after_the_port_that_was_taken_last(void **state)
{
    (void)state;
    in_child(check_going_on, NULL);
}

static void report_first_candidate(int answers)
{
    pm_port_policy policy = policy_of(1024, 1, 0);
    uint16_t port = first_candidate(&policy);
    assert_int_equal(write(answers, &port, sizeof port), sizeof port);
}

static void test_processes_begin_at_different_places(void **state)
{
    enum { PROCESSES = 8 };
    uint16_t ports[PROCESSES];
    size_t same = 0;
    (void)state;

    for (size_t i = 0; i < PROCESSES; i++) {
        companion child = companion_begin(report_first_candidate);
        assert_int_equal(read(child.from_child, &ports[i], sizeof ports[i]), sizeof ports[i]);
        companion_end(&child);
        for (size_t k = 0; k < i; k++) {
            same += ports[k] == ports[i];
        }
    }
    /* Two of eight meet in one run of 2,300, and two pairs in one of 10 million. */
    assert_in_range(same, 0, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_ports_are_those_of_the_fetch_standard),
        cmocka_unit_test(test_the_policy_is_the_networks_at_this_moment),
        cmocka_unit_test(test_a_long_list_of_reserved_ports_is_read_to_its_end),
        cmocka_unit_test(test_what_cannot_be_read_has_the_documented_default),
        cmocka_unit_test(test_no_descriptor_stays_or_could_be_inherited),
        cmocka_unit_test(test_each_fit_port_comes_once_and_ephemeral_ones_last),
        cmocka_unit_test(test_a_walk_may_have_no_candidate),
        cmocka_unit_test(test_a_walk_has_the_systems_policy),
        cmocka_unit_test(test_a_walk_begins_after_the_port_that_was_taken_last),
        cmocka_unit_test(test_processes_begin_at_different_places),
    };
    return cmocka_run_group_tests_name("candidates", tests, isolate_with_ledger, remove_ledger);
}
