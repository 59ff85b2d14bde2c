/* Ports without a service: so many of them, in a row, or a name's own. */
#include "actors.h"
#include "sockets.h"

#include <stdatomic.h>

#include "core/reserve.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { MOST = 1100, WELL_KNOWN_END = 1024, PORTS_OF_A_WALK = UINT16_MAX + 1 - WELL_KNOWN_END };

typedef struct {
    pm_status status;
    uint32_t found, forbidden;
    uint16_t ports[MOST], wanted;
    bool borrowed, ephemeral;
} outcome;

static outcome run_in_pieces(const pm_reserve_request *request, uint32_t budget)
{
    static pm_reservation reservation;
    outcome out = {.status = PM_AGAIN};

    assert_in_range(request->count, 1, MOST);
    memset(&reservation, 0x5a, sizeof reservation); /* begin must set all that counts */
    pm_status begun = pm_reservation_begin(&reservation, request, out.ports);
    if (begun != PM_OK) {
        out.status = begun;
        return out;
    }
    for (uint32_t runs = 0; out.status == PM_AGAIN; runs++) {
        assert_in_range(runs, 0, 1000000);
        out.status = pm_reservation_run(&reservation, budget, true);
    }
    int error = errno;
    pm_reservation_end(&reservation);
    errno = error;
    out.found = reservation.found;
    out.forbidden = reservation.forbidden;
    out.wanted = reservation.wanted;
    out.borrowed = reservation.borrowed;
    out.ephemeral = reservation.ephemeral;
    return out;
}

static outcome reserve(const pm_reserve_request *request)
{
    return run_in_pieces(request, 1000000);
}

static outcome reserve_count(uint32_t count)
{
    pm_reserve_request request = {.holder = me, .count = count};
    return reserve(&request);
}

static outcome reserve_of_range(uint32_t count, uint16_t first, uint16_t last)
{
    pm_reserve_request request = {.holder = me, .count = count, .first = first, .last = last};
    return reserve(&request);
}

static outcome reserve_in_a_row(uint32_t count, uint16_t first, uint16_t last)
{
    pm_reserve_request request = {
        .holder = me, .count = count, .consecutive = true, .first = first, .last = last};
    return reserve(&request);
}

static outcome reserve_name(uint64_t key, uint16_t first, uint16_t last)
{
    pm_reserve_request request = {
        .holder = me,
        .count = 1,
        .name = {.key = key, .label = "name"},
        .first = first,
        .last = last
    };
    return reserve(&request);
}

static uint16_t the_port(const outcome *out)
{
    assert_status(out->status, PM_OK);
    assert_int_equal(out->found, 1);
    assert_int_equal(holder_of(out->ports[0]), me);
    return out->ports[0];
}

static void release_all(const outcome *out)
{
    for (uint32_t i = 0; i < out->found; i++) {
        pm_ledger_release(me, out->ports[i]);
    }
}

static uint16_t reserve_and_release(uint16_t first, uint16_t last)
{
    outcome out = reserve_of_range(1, first, last);
    uint16_t port = the_port(&out);
    pm_ledger_release(me, port);
    return port;
}

static void assert_nothing_is_held(uint16_t first, uint16_t last)
{
    pm_held_list list;
    assert_status(pm_ledger_check(), PM_OK);
    assert_status(pm_ledger_list(first, last, &list), PM_OK);
    assert_int_equal(list.count, 0);
    pm_held_list_free(&list);
}

/* A name whose walk over all ports begins at `port`, with this number among such names. */
static uint64_t key_that_begins_at(uint16_t port, uint64_t number)
{
    return (uint64_t)(port - WELL_KNOWN_END) + (number + 1) * PORTS_OF_A_WALK;
}

/* A scene whose ports nobody else takes; where that is not permitted it shares the machine's. */
static void (*body_of_scene)(void);

static void run_in_own_network(void)
{
    if (geteuid() != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0) {
        raise_loopback(); /* else isolate() did that */
    }
    body_of_scene();
}

static void network_scene(void (*body)(void))
{
    body_of_scene = body;
    scene(run_in_own_network);
}

/* ---- how many ------------------------------------------------------------------------------- */

static void reserve_some(void)
{
    static const uint32_t counts[] = {1, 2, 7, 100};
    pm_port_policy policy;

    me = pm_ledger_enroll();
    pm_port_policy_read(&policy);
    for (size_t i = 0; i < COUNT(counts); i++) {
        for (unsigned in_a_row = 0; in_a_row < 2; in_a_row++) {
            pm_port_set seen = {{0}};
            pm_reserve_request request = {
                .holder = me, .count = counts[i], .consecutive = in_a_row};
            outcome out = reserve(&request);
            assert_status(out.status, PM_OK);
            assert_int_equal(out.found, counts[i]);
            assert_false(out.ephemeral);
            assert_false(out.borrowed);
            for (uint32_t k = 0; k < counts[i]; k++) {
                uint16_t port = out.ports[k];
                assert_false(pm_port_set_has(&seen, port));
                pm_port_set_add(&seen, port);
                assert_int_equal(holder_of(port), me);
                assert_true(port >= WELL_KNOWN_END && port >= policy.unprivileged_start);
                assert_false(pm_port_is_blocked(port));
                assert_false(port >= policy.ephemeral_first && port <= policy.ephemeral_last);
                if (in_a_row) {
                    assert_int_equal(port, out.ports[0] + k);
                }
            }
            release_all(&out);
        }
    }
    assert_nothing_is_held(1, UINT16_MAX);
}

static void test_as_many_as_asked_for_are_held(void **state)
{
    (void)state;
    network_scene(reserve_some);
}

static void reserve_too_many(void)
{
    uint16_t first = free_ports(6), last = (uint16_t)(first + 5), busy = (uint16_t)(first + 2);
    pm_holder other = pm_ledger_enroll(), before;

    me = pm_ledger_enroll();
    int fd = hold("127.0.0.1", &busy, LISTENING);
    assert_status(claim_for(other, (uint16_t)(first + 4), &before), PM_OK);
    pm_ledger_release(other, (uint16_t)(first + 4));
    pm_port_past past = pm_ledger_past((uint16_t)(first + 4));
    assert_status(claim_for(other, last, &before), PM_OK);

    outcome out = reserve_of_range(6, first, last);
    assert_status(out.status, PM_BUSY);
    assert_int_equal(out.found, 4);
    assert_nothing_is_held(first, (uint16_t)(last - 1));
    assert_int_equal(holder_of(last), other);
    /* As if it had never been. */
    assert_int_equal(pm_ledger_past(first).changed_at, 0);
    assert_int_equal(pm_ledger_past((uint16_t)(first + 4)).changed_at, past.changed_at);

    out = reserve_of_range(4, first, last);
    assert_status(out.status, PM_OK);
    release_all(&out);
    out = reserve_of_range(MOST, first, last);
    assert_status(out.status, PM_BUSY);
    assert_int_equal(out.found, 4);
    close(fd);
    out = reserve_of_range(5, first, last);
    assert_status(out.status, PM_OK);
}

static void test_all_or_none(void **state)
{
    (void)state;
    network_scene(reserve_too_many);
}

static void reserve_row_in_range(void)
{
    uint16_t first = free_ports(8), last = (uint16_t)(first + 7), busy = (uint16_t)(first + 2);

    me = pm_ledger_enroll();
    int fd = hold("127.0.0.1", &busy, LISTENING);
    outcome out = reserve_in_a_row(6, first, last); /* there are two and five */
    assert_status(out.status, PM_BUSY);
    assert_int_equal(out.found, 5);
    assert_nothing_is_held(first, last);
    out = reserve_in_a_row(3, first, last);
    assert_status(out.status, PM_OK);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(out.ports[i], first + 3 + i);
    }
    outcome second = reserve_in_a_row(3, first, last);
    assert_status(second.status, PM_BUSY);
    assert_int_equal(second.found, 2);
    second = reserve_in_a_row(2, first, last);
    assert_status(second.status, PM_OK);
    assert_int_equal(second.ports[0], first);
    release_all(&second);
    close(fd);
    release_all(&out);
    out = reserve_in_a_row(8, first, last);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.ports[0], first);
    assert_int_equal(out.ports[7], last);
}

static void test_a_row_goes_round_what_is_taken(void **state)
{
    (void)state;
    network_scene(reserve_row_in_range);
}

static void reserve_to_the_end(void)
{
    me = pm_ledger_enroll();
    outcome out = reserve_of_range(3, UINT16_MAX - 2, UINT16_MAX);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.ports[2], UINT16_MAX);
    release_all(&out);
    out = reserve_in_a_row(3, UINT16_MAX - 2, UINT16_MAX);
    assert_status(out.status, PM_OK);
    assert_status(pm_ledger_check(), PM_OK);
    pm_ledger_set_next_port(UINT16_MAX - 5);
    outcome round = reserve_count(10);
    assert_status(round.status, PM_OK); /* goes on at the start */
    assert_int_equal(round.ports[0], UINT16_MAX - 5);
    assert_int_equal(round.ports[3], WELL_KNOWN_END);
    assert_status(pm_ledger_check(), PM_OK);
    pm_ledger_set_next_port(UINT16_MAX - 5);
    round = reserve_in_a_row(8, 0, 0); /* a row does not go on there */
    assert_status(round.status, PM_OK);
    assert_in_range(round.ports[0], WELL_KNOWN_END, UINT16_MAX - 7);
}

static void test_the_last_port_is_one_too(void **state)
{
    (void)state;
    network_scene(reserve_to_the_end);
}

static void reserve_in_pieces(void)
{
    uint16_t first = free_ports(12), last = (uint16_t)(first + 11), busy = (uint16_t)(first + 3);

    me = pm_ledger_enroll();
    int fd = hold("127.0.0.1", &busy, LISTENING);
    for (uint32_t budget = 1; budget < 15; budget++) {
        for (unsigned in_a_row = 0; in_a_row < 2; in_a_row++) {
            pm_reserve_request request = {
                .holder = me, .count = 7, .consecutive = in_a_row, .first = first, .last = last};
            outcome out = run_in_pieces(&request, budget);
            assert_status(out.status, PM_OK);
            for (uint32_t i = 0; i < out.found; i++) {
                pm_ledger_withdraw(me, out.ports[i]);
                assert_int_equal(out.ports[i], in_a_row ? first + 4 + i : first + i + (i >= 3));
            }
            request.count = 12;
            out = run_in_pieces(&request, budget);
            assert_status(out.status, PM_BUSY);
            assert_int_equal(out.found, in_a_row ? 8 : 11);
            assert_nothing_is_held(first, last);
        }
    }
    close(fd);
}

static void test_pieces_give_the_same_answer_as_one_run(void **state)
{
    (void)state;
    network_scene(reserve_in_pieces);
}

static void reserve_without_descriptors(void)
{
    uint16_t first = free_ports(4), last = (uint16_t)(first + 3), busy = (uint16_t)(first + 1);
    pm_reserve_request request = {.count = 4, .first = first, .last = last};
    static pm_reservation reservation;
    uint16_t ports[4];

    request.holder = me = pm_ledger_enroll();
    int fd = hold("127.0.0.1", &busy, LISTENING);
    for (unsigned in_a_row = 0; in_a_row < 2; in_a_row++) {
        for (uint32_t looked = 0; looked < 2; looked++) {
            request.consecutive = in_a_row;
            assert_status(pm_reservation_begin(&reservation, &request, ports), PM_OK);
            if (looked) {
                assert_status(pm_reservation_run(&reservation, looked, false), PM_AGAIN);
                pm_wildcard_prober_close(&reservation.taker.prober);
            }
            limit_descriptors(0);
            assert_status(pm_reservation_run(&reservation, 100, false), PM_EXHAUSTED);
            assert_int_equal(errno, EMFILE);
            unlimit_descriptors();
            pm_reservation_end(&reservation);
            assert_nothing_is_held(first, last);
        }
    }
    close(fd);
}

static void test_out_of_descriptors_is_not_busy_and_holds_nothing(void **state)
{
    (void)state;
    network_scene(reserve_without_descriptors);
}

/* ---- in which order --------------------------------------------------------------------------- */

static void return_and_reserve(void)
{
    static const uint16_t returned[] = {3, 1, 4, 0, 2};
    uint16_t first = free_ports(7), last = (uint16_t)(first + 4);

    me = pm_ledger_enroll();
    for (uint16_t i = 0; i < 5; i++) {
        assert_int_equal(reserve_and_release(first, last), first + i); /* what rested */
    }
    assert_int_equal(reserve_and_release(first, (uint16_t)(last + 1)), last + 1);
    for (uint16_t i = 0; i < 5; i++) {
        assert_int_equal(reserve_and_release(first, last), first + i); /* the oldest */
    }
    outcome out = reserve_of_range(5, first, last);
    assert_status(out.status, PM_OK);
    for (size_t i = 0; i < COUNT(returned); i++) {
        pm_ledger_release(me, (uint16_t)(first + returned[i]));
    }
    out = reserve_of_range(5, first, last);
    assert_status(out.status, PM_OK);
    for (size_t i = 0; i < COUNT(returned); i++) {
        assert_int_equal(out.ports[i], first + returned[i]);
    }
    release_all(&out);
    out = reserve_of_range(1, first, (uint16_t)(last + 2));
    assert_int_equal(the_port(&out), last + 2);
}

static void test_what_was_given_back_lately_comes_last_and_the_oldest_first(void **state)
{
    (void)state;
    network_scene(return_and_reserve);
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* The clock jumps: what is in the future rested, and so did what was given back long ago. */
static void set_clock_back(void)
{
    const int64_t second = 1000000000;
    uint16_t first = free_ports(4), last = (uint16_t)(first + 3);

    me = pm_ledger_enroll();
    assert_status(pm_ledger_check(), PM_OK);
    pm_ledger_map map = mapped();
    atomic_store(&map.entries[first].changed_at, now() - 60 * second);
    atomic_store(&map.entries[first + 1].changed_at, now() - 121 * second);
    atomic_store(&map.entries[first + 2].changed_at, now() + 86400 * second);
    atomic_store(&map.entries[first + 3].changed_at, INT64_MIN);
    outcome out = reserve_of_range(4, first, last);
    assert_status(out.status, PM_OK);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(out.ports[i], i < 3 ? first + 1 + i : first);
    }
    pm_ledger_file_unmap(&map);
}

static void test_a_clock_that_jumps_keeps_no_port_back(void **state)
{
    (void)state;
    network_scene(set_clock_back);
}

static void use_any_again(void)
{
    pm_port_set seen = {{0}};

    me = pm_ledger_enroll();
    for (int i = 0; i < 200; i++) {
        outcome out = reserve_count(1);
        uint16_t port = the_port(&out);
        assert_false(pm_port_set_has(&seen, port));
        pm_port_set_add(&seen, port);
        pm_ledger_release(me, port);
    }
}

static void test_any_port_is_another_one_each_time(void **state)
{
    (void)state;
    network_scene(use_any_again);
}

/* The ledger, in which every port was given back a moment ago. */
static pm_ledger_map tired(void)
{
    pm_ledger_map map = mapped();
    int64_t moment = now() - 10000000000;

    for (uint32_t port = 0; port <= UINT16_MAX; port++) {
        atomic_store(&map.entries[port].changed_at, moment);
    }
    return map;
}

/* There are some all the same. */
static void tire_all(void)
{
    me = pm_ledger_enroll();
    assert_status(pm_ledger_check(), PM_OK);
    pm_ledger_map map = tired();
    for (int i = 0; i < 5; i++) {
        outcome out = reserve_count(100);
        assert_status(out.status, PM_OK);
        assert_false(out.ephemeral);
        outcome row = reserve_in_a_row(20, 0, 0);
        assert_status(row.status, PM_OK);
        release_all(&row);
        release_all(&out);
    }
    pm_ledger_file_unmap(&map);
}

static void test_where_no_port_rested_there_are_some_all_the_same(void **state)
{
    (void)state;
    network_scene(tire_all);
}

/* A walk that found none that rested is not repeated by the next ones; what rests meanwhile is
 * among those that they take. */
static void rest_meanwhile(void)
{
    enum { FIRST = WELL_KNOWN_END, END = 1100 };

    enter_new_network();
    write_setting("/proc/sys/net/ipv4/ip_local_port_range", "1100 65535");
    write_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start", "1024");
    me = pm_ledger_enroll();
    assert_status(pm_ledger_check(), PM_OK);
    pm_ledger_map map = tired();
    outcome out = reserve_count(END - FIRST);
    assert_status(out.status, PM_OK);
    assert_false(out.ephemeral);
    for (uint32_t i = 0; i < out.found; i++) {
        pm_ledger_withdraw(me, out.ports[i]);
    }
    for (uint32_t port = FIRST; port < FIRST + 20; port++) {
        atomic_store(&map.entries[port].changed_at, 0);
    }
    out = reserve_count(END - FIRST);
    assert_status(out.status, PM_OK);
    assert_false(out.ephemeral);
    pm_ledger_file_unmap(&map);
}

static void test_what_rests_meanwhile_is_not_forgotten(void **state)
{
    (void)state;
    network_scene(rest_meanwhile);
}

static void want_remembered(void)
{
    uint16_t first = free_ports(4), last = (uint16_t)(first + 3);
    pm_holder before;

    me = pm_ledger_enroll();
    assert_status(claim_for(me, (uint16_t)(first + 1), &before), PM_OK);
    pm_ledger_remember(me, (uint16_t)(first + 1), 77);
    pm_ledger_release(me, (uint16_t)(first + 1));
    assert_int_equal(reserve_and_release(first, last), first);
    outcome out = reserve_of_range(4, first, last);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.ports[0], first + 2);
    assert_int_equal(out.ports[1], first + 3);
    assert_int_equal(out.ports[2], first);     /* given back lately, but nobody's */
    assert_int_equal(out.ports[3], first + 1); /* a name's */
    assert_int_equal(pm_ledger_past((uint16_t)(first + 1)).remembered, 77);
    release_all(&out);
    /* A row prefers others, and takes it if there are none. */
    out = reserve_in_a_row(2, first, last);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.ports[0], first + 2);
    release_all(&out);
    out = reserve_in_a_row(3, first, last);
    assert_status(out.status, PM_OK);
}

static void test_a_names_port_comes_behind_those_given_back_lately(void **state)
{
    (void)state;
    network_scene(want_remembered);
}

/* ---- names ------------------------------------------------------------------------------------ */

static void reserve_names(void)
{
    enum { NAMES = 50 };
    uint16_t ports[NAMES];

    me = pm_ledger_enroll();
    for (uint64_t i = 0; i < NAMES; i++) {
        char name[16];
        int length = snprintf(name, sizeof name, "name %d", (int)i);
        outcome out = reserve_name(pm_name_key(0, name, (size_t)length), 0, 0);
        ports[i] = the_port(&out);
        assert_int_equal(out.wanted, ports[i]);
        assert_false(out.ephemeral);
        assert_false(pm_port_is_blocked(ports[i]));
        assert_int_equal(pm_ledger_past(ports[i]).remembered, pm_name_key(0, name, (size_t)length));
        for (uint64_t k = 0; k < i; k++) {
            assert_int_not_equal(ports[k], ports[i]);
        }
        pm_ledger_release(me, ports[i]);
    }
    /* The same ones in another order, and in another ledger. */
    for (unsigned lost = 0; lost < 2; lost++) {
        for (uint64_t i = NAMES; i > 0; i--) {
            char name[16];
            int length = snprintf(name, sizeof name, "name %d", (int)i - 1);
            outcome out = reserve_name(pm_name_key(0, name, (size_t)length), 0, 0);
            assert_int_equal(the_port(&out), ports[i - 1]);
            pm_ledger_release(me, ports[i - 1]);
        }
        assert_int_equal(unlink(path), 0);
    }
}

static void test_a_name_has_the_same_port_each_time(void **state)
{
    (void)state;
    network_scene(reserve_names);
}

static void meet_another_name(void)
{
    enum { START = 20000 };
    uint64_t first = key_that_begins_at(START, 1), second = key_that_begins_at(START, 2);

    me = pm_ledger_enroll();
    outcome out = reserve_name(first, 0, 0);
    assert_int_equal(the_port(&out), START);
    pm_ledger_release(me, START);
    out = reserve_name(second, 0, 0); /* the port is free, but the first one's */
    uint16_t other = the_port(&out);
    assert_int_not_equal(other, START);
    assert_int_equal(out.wanted, other);
    pm_ledger_release(me, other);
    for (int i = 0; i < 3; i++) {
        out = reserve_name(first, 0, 0);
        assert_int_equal(the_port(&out), START);
        outcome again = reserve_name(second, 0, 0);
        assert_int_equal(the_port(&again), other);
        pm_ledger_release(me, START);
        pm_ledger_release(me, other);
    }
}

static void test_names_that_begin_at_one_port_have_two(void **state)
{
    (void)state;
    network_scene(meet_another_name);
}

static void take_names_port(void)
{
    enum { KEY = 77 };
    pm_holder other = pm_ledger_enroll(), before;

    me = pm_ledger_enroll();
    outcome out = reserve_name(KEY, 0, 0);
    uint16_t own = the_port(&out), busy = own, second;
    pm_ledger_release(me, own);
    for (unsigned by_socket = 0; by_socket < 2; by_socket++) {
        int fd = -1;
        if (by_socket) {
            fd = hold("127.0.0.1", &busy, LISTENING);
        } else {
            assert_status(claim_for(other, own, &before), PM_OK);
        }
        out = reserve_name(KEY, 0, 0);
        second = the_port(&out);
        assert_int_not_equal(second, own);
        assert_int_equal(out.wanted, own); /* so that it can be said */
        pm_ledger_release(me, second);
        assert_int_equal(pm_ledger_past(second).remembered, 0);
        outcome again = reserve_name(KEY, 0, 0);
        assert_int_equal(the_port(&again), second); /* the order is fixed */
        pm_ledger_release(me, second);
        pm_ledger_release(other, own);
        if (fd >= 0) {
            close(fd);
        }
        out = reserve_name(KEY, 0, 0);
        assert_int_equal(the_port(&out), own);
        pm_ledger_release(me, own);
    }
}

static void test_a_name_comes_back_to_its_port(void **state)
{
    (void)state;
    network_scene(take_names_port);
}

static void reserve_names_of_range(void)
{
    uint16_t first = free_ports(3), last = (uint16_t)(first + 2), ports[3];

    me = pm_ledger_enroll();
    for (uint64_t i = 0; i < 3; i++) {
        outcome out = reserve_name(100 + i, first, last);
        ports[i] = the_port(&out);
        assert_in_range(ports[i], first, last);
        for (uint64_t k = 0; k < i; k++) {
            assert_int_not_equal(ports[i], ports[k]);
        }
        pm_ledger_release(me, ports[i]);
    }
    /* Only others' are left: it takes one, that stays theirs. */
    outcome out = reserve_name(103, first, last);
    uint16_t borrowed = the_port(&out);
    outcome all = reserve_of_range(2, first, last);
    assert_status(all.status, PM_OK);
    outcome none = reserve_name(104, first, last);
    assert_status(none.status, PM_BUSY);
    assert_int_equal(none.found, 0);
    release_all(&all);
    pm_ledger_release(me, borrowed);
    for (uint64_t i = 0; i < 3; i++) {
        out = reserve_name(100 + i, first, last);
        if (ports[i] != borrowed) {
            assert_int_equal(the_port(&out), ports[i]);
        }
        pm_ledger_release(me, out.ports[0]);
    }
}

static void test_a_name_takes_anothers_port_when_nothing_else_is_left(void **state)
{
    (void)state;
    network_scene(reserve_names_of_range);
}

static actor_answer do_reserve_name(const actor_order *order)
{
    outcome out = reserve_name(order->number, 0, 0);
    return (actor_answer){.status = (int)out.status,
                          .number = (uint64_t)out.borrowed << 16 | out.ports[0]};
}

static void borrow_name(void)
{
    enum { KEY = 77, BORROWED = 1 << 16 };

    start(0);
    start(1);
    uint64_t port = ask(0, do_reserve_name, 0, KEY).number;
    assert_true(port < BORROWED);
    spawn(0, 2);
    assert_int_equal(ask(2, do_reserve_name, 0, KEY).number, BORROWED | port);
    uint64_t other = ask(1, do_reserve_name, 0, KEY).number; /* no kin */
    assert_int_not_equal(other, port);
    assert_true(other < BORROWED);
    assert_true(ask(2, do_reserve_name, 0, KEY + 1).number < BORROWED);
}

static void test_a_child_has_the_same_port_for_the_name(void **state)
{
    (void)state;
    network_scene(borrow_name);
}

/* ---- whose sockets count ---------------------------------------------------------------------- */

static void leave_connections(void)
{
    enum { KEY = 77 };

    me = pm_ledger_enroll();
    uint16_t port = leave_time_wait(REUSE_ADDRESS);
    for (int i = 0; i < 2; i++) { /* as its own, the second time */
        outcome out = reserve_name(KEY, port, port);
        assert_int_equal(the_port(&out), port);
        pm_ledger_release(me, port);
    }
    outcome out = reserve_of_range(1, port, port);
    assert_status(out.status, PM_BUSY);
    assert_int_equal(out.found, 0);
}

static void test_a_server_that_closed_moves_no_name(void **state)
{
    (void)state;
    network_scene(leave_connections);
}

static void use_datagrams(void)
{
    enum { KEY = 77 };
    uint16_t port = 0;

    me = pm_ledger_enroll();
    int fd = hold("127.0.0.1", &port, DATAGRAM);
    outcome out = reserve_of_range(1, port, port);
    assert_status(out.status, PM_BUSY);
    out = reserve_name(KEY, port, port);
    assert_int_equal(the_port(&out), port);
    pm_ledger_release(me, port);
    close(fd);
    out = reserve_of_range(1, port, port);
    assert_int_equal(the_port(&out), port);
}

static void test_a_port_with_datagrams_is_only_for_names(void **state)
{
    (void)state;
    network_scene(use_datagrams);
}

/* ---- the system's policy ---------------------------------------------------------------------- */

static void set_policy(const char *ephemeral, const char *reserved)
{
    enter_new_network();
    write_setting("/proc/sys/net/ipv4/ip_local_port_range", ephemeral);
    write_setting("/proc/sys/net/ipv4/ip_local_reserved_ports", reserved);
    write_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start", "1024");
    me = pm_ledger_enroll();
}

static void meet_ephemeral(void)
{
    enum { FIT = 2000 - WELL_KNOWN_END - 3 }; /* browsers refuse 1719, 1720, 1723 */
    outcome out;

    set_policy("2000 65535", "\n");
    out = reserve_count(FIT);
    assert_status(out.status, PM_OK);
    assert_false(out.ephemeral);
    outcome more = reserve_count(1);
    assert_in_range(the_port(&more), 2000, UINT16_MAX);
    assert_true(more.ephemeral);
    more = reserve_name(77, 0, 0);
    assert_in_range(the_port(&more), 2000, UINT16_MAX);
    assert_true(more.ephemeral);
    more = reserve_of_range(1, 3000, 3010); /* somebody asked for it */
    assert_int_equal(the_port(&more), 3000);
    assert_false(more.ephemeral);
    release_all(&out);

    out = reserve_count(FIT + 1); /* some are */
    assert_status(out.status, PM_OK);
    assert_true(out.ephemeral);
    release_all(&out);
    out = reserve_in_a_row(200, 0, 0);
    assert_status(out.status, PM_OK);
    assert_true(out.ports[199] < 2000);
    assert_false(out.ephemeral);
    release_all(&out);
    out = reserve_in_a_row(FIT, 0, 0); /* the bad ones are in between */
    assert_status(out.status, PM_OK);
    assert_true(out.ephemeral);
}

static void test_the_ephemeral_range_is_the_last_resort_and_told(void **state)
{
    (void)state;
    network_scene(meet_ephemeral);
}

static void meet_reserved(void)
{
    outcome out;

    set_policy("1100 65535", "1030-1039,1050");
    out = reserve_count(76 - 11);
    assert_status(out.status, PM_OK);
    assert_false(out.ephemeral);
    for (uint32_t i = 0; i < out.found; i++) {
        assert_false(out.ports[i] >= 1030 && out.ports[i] <= 1039);
        assert_int_not_equal(out.ports[i], 1050);
    }
    release_all(&out);
    out = reserve_in_a_row(45, 0, 0);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.ports[0], 1051);
    assert_false(out.ephemeral);
    release_all(&out);
    out = reserve_name(key_that_begins_at(1035, 0), 0, 0);
    assert_int_equal(the_port(&out), 1040);
    out = reserve_of_range(1, 1035, 1035); /* asked for by number */
    assert_int_equal(the_port(&out), 1035);
}

static void test_what_the_administrator_set_aside_is_left_alone(void **state)
{
    (void)state;
    network_scene(meet_reserved);
}

static void meet_bad_ports(void)
{
    outcome out;

    set_policy("32768 60999", "\n");
    out = reserve_of_range(3, 5060, 5063);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.ports[0], 5062);
    assert_int_equal(out.ports[1], 5063);
    assert_int_equal(out.ports[2], 5060);
    release_all(&out);
    out = reserve_in_a_row(2, 5060, 5063);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.ports[0], 5062);
    release_all(&out);
    out = reserve_name(77, 5060, 5061);
    assert_in_range(the_port(&out), 5060, 5061);
    pm_ledger_release(me, out.ports[0]);
    out = reserve_name(78, 5060, 5062);
    assert_int_equal(the_port(&out), 5062);
}

static void test_ports_that_browsers_refuse_come_last_in_a_range(void **state)
{
    (void)state;
    network_scene(meet_bad_ports);
}

static void meet_privileged(void)
{
    outcome out;

    set_policy("32768 60999", "\n");
    become_nobody();
    assert_int_equal(setenv("PORTMANAGER_LEDGER", "process", 1), 0); /* the folder is another's */
    out = reserve_of_range(3, 80, 85);
    assert_status(out.status, PM_BUSY);
    assert_int_equal(out.found, 0);
    assert_int_equal(out.forbidden, 6);
    assert_nothing_is_held(80, 85);
    out = reserve_of_range(3, 1020, 1026);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.ports[0], 1024);
    out = reserve_in_a_row(3, 1020, 1029);
    assert_status(out.status, PM_OK);
    assert_int_equal(out.ports[0], 1027);
}

static void test_what_needs_a_privilege_is_passed_over_and_counted(void **state)
{
    (void)state;
    network_scene(meet_privileged);
}

/* ---- at once ----------------------------------------------------------------------------------- */

enum { EACH = 8 };

static actor_answer do_reserve_of_range(const actor_order *order)
{
    outcome out = reserve_of_range(EACH, order->port, (uint16_t)order->number);
    actor_answer answer = {.status = (int)out.status};
    memcpy(answer.text, out.ports, EACH * sizeof *out.ports);
    return answer;
}

static void reserve_at_once(void)
{
    enum { USERS = 7 };
    uint16_t first = free_ports(USERS * EACH), last = (uint16_t)(first + USERS * EACH - 1);
    pm_port_set seen = {{0}};

    for (unsigned i = 0; i < USERS; i++) {
        start(i);
        assert_status(status_of(i, do_look), PM_OK);
    }
    for (unsigned i = 0; i < USERS; i++) {
        tell(i, do_reserve_of_range, first, last);
    }
    for (unsigned i = 0; i < USERS; i++) {
        uint16_t ports[EACH];
        actor_answer answer = heard(i);
        assert_status((pm_status)answer.status, PM_OK);
        memcpy(ports, answer.text, sizeof ports);
        for (unsigned k = 0; k < EACH; k++) {
            assert_in_range(ports[k], first, last);
            assert_false(pm_port_set_has(&seen, ports[k]));
            pm_port_set_add(&seen, ports[k]);
        }
    }
    start(USERS);
    assert_status((pm_status)ask(USERS, do_reserve_of_range, first, last).status, PM_BUSY);
    kill_actor(3);
    assert_status((pm_status)ask(USERS, do_reserve_of_range, first, last).status, PM_OK);
}

static void test_many_processes_have_all_they_need(void **state)
{
    (void)state;
    network_scene(reserve_at_once);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_WITH_FOLDER(test_as_many_as_asked_for_are_held),
        TEST_WITH_FOLDER(test_all_or_none),
        TEST_WITH_FOLDER(test_a_row_goes_round_what_is_taken),
        TEST_WITH_FOLDER(test_the_last_port_is_one_too),
        TEST_WITH_FOLDER(test_pieces_give_the_same_answer_as_one_run),
        TEST_WITH_FOLDER(test_out_of_descriptors_is_not_busy_and_holds_nothing),
        TEST_WITH_FOLDER(test_what_was_given_back_lately_comes_last_and_the_oldest_first),
        TEST_WITH_FOLDER(test_a_clock_that_jumps_keeps_no_port_back),
        TEST_WITH_FOLDER(test_any_port_is_another_one_each_time),
        TEST_WITH_FOLDER(test_where_no_port_rested_there_are_some_all_the_same),
        TEST_WITH_FOLDER(test_what_rests_meanwhile_is_not_forgotten),
        TEST_WITH_FOLDER(test_a_names_port_comes_behind_those_given_back_lately),
        TEST_WITH_FOLDER(test_a_name_has_the_same_port_each_time),
        TEST_WITH_FOLDER(test_names_that_begin_at_one_port_have_two),
        TEST_WITH_FOLDER(test_a_name_comes_back_to_its_port),
        TEST_WITH_FOLDER(test_a_name_takes_anothers_port_when_nothing_else_is_left),
        TEST_WITH_FOLDER(test_a_child_has_the_same_port_for_the_name),
        TEST_WITH_FOLDER(test_a_server_that_closed_moves_no_name),
        TEST_WITH_FOLDER(test_a_port_with_datagrams_is_only_for_names),
        TEST_WITH_FOLDER(test_the_ephemeral_range_is_the_last_resort_and_told),
        TEST_WITH_FOLDER(test_what_the_administrator_set_aside_is_left_alone),
        TEST_WITH_FOLDER(test_ports_that_browsers_refuse_come_last_in_a_range),
        TEST_WITH_FOLDER(test_what_needs_a_privilege_is_passed_over_and_counted),
        TEST_WITH_FOLDER(test_many_processes_have_all_they_need),
    };
    return cmocka_run_group_tests_name("reserving", tests, isolate, NULL);
}
