/* Who holds which port. */
#include "support.h"

#include <pthread.h>
#include <stdatomic.h>

#include "core/ledger.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Nothing here touches a socket, so any numbers do; each test gives back what it claims. */
enum { PORT = 40000 };

static pm_holder enroll(void)
{
    pm_holder holder = pm_ledger_enroll();
    assert_int_not_equal(holder, PM_NOBODY);
    return holder;
}

static void test_a_free_port_can_be_claimed(void **state)
{
    pm_holder me = enroll(), holder;
    (void)state;

    assert_int_equal(holder_of(PORT), PM_NOBODY);
    assert_status(claim_for(me, PORT, &holder), PM_OK);
    assert_int_equal(holder_of(PORT), me);
    pm_ledger_release(me, PORT);
    assert_int_equal(holder_of(PORT), PM_NOBODY);
    assert_status(claim_for(me, PORT, &holder), PM_OK);
    pm_ledger_release(me, PORT);
}

static void test_a_held_port_names_its_holder(void **state)
{
    pm_holder me = enroll(), other = enroll(), holder = 12345;
    (void)state;

    assert_status(claim_for(me, PORT, &holder), PM_OK);
    holder = 12345;
    assert_status(claim_for(other, PORT, &holder), PM_HELD);
    assert_int_equal(holder, me);
    holder = 12345;
    assert_status(claim_for(me, PORT, &holder), PM_HELD);
    assert_int_equal(holder, me);
    assert_int_equal(holder_of(PORT), me);
    pm_ledger_release(me, PORT);
}

static void test_a_wrong_releaser_is_ignored(void **state)
{
    pm_holder me = enroll(), other = enroll(), holder;
    (void)state;

    assert_status(claim_for(me, PORT, &holder), PM_OK);
    pm_ledger_release(other, PORT);
    assert_int_equal(holder_of(PORT), me);
    pm_ledger_release(PM_NOBODY, PORT);
    assert_int_equal(holder_of(PORT), me);
    pm_ledger_release(me, PORT);
    pm_ledger_release(me, PORT); /* nobody's now: nothing happens */
    assert_int_equal(holder_of(PORT), PM_NOBODY);
}

static void test_a_late_release_does_not_harm_the_next_holder(void **state)
{
    pm_holder me = enroll(), other = enroll(), holder;
    (void)state;

    assert_status(claim_for(me, PORT, &holder), PM_OK);
    pm_ledger_release(me, PORT);
    assert_status(claim_for(other, PORT, &holder), PM_OK);
    pm_ledger_release(me, PORT);
    assert_int_equal(holder_of(PORT), other);
    pm_ledger_release(other, PORT);
}

static void test_ports_are_held_one_by_one(void **state)
{
    static const uint16_t ports[] = {0, 1, PORT, PORT + 1, UINT16_MAX - 1, UINT16_MAX};
    pm_holder me = enroll(), other = enroll(), holder;
    (void)state;

    for (size_t i = 0; i < COUNT(ports); i++) {
        assert_status(claim_for(i % 2 ? me : other, ports[i], &holder), PM_OK);
    }
    for (size_t i = 0; i < COUNT(ports); i++) {
        assert_int_equal(holder_of(ports[i]), i % 2 ? me : other);
    }
    size_t held = 0;
    for (uint32_t port = 0; port <= UINT16_MAX; port++) {
        held += holder_of((uint16_t)port) != PM_NOBODY;
    }
    assert_int_equal(held, COUNT(ports));
    for (size_t i = 0; i < COUNT(ports); i++) {
        pm_ledger_release(i % 2 ? me : other, ports[i]);
        assert_int_equal(holder_of(ports[i]), PM_NOBODY);
    }
}

static void check_child_starts_empty(void *holder_of_the_parent)
{
    pm_holder parent = *(pm_holder *)holder_of_the_parent, me = enroll(), holder;

    assert_int_not_equal(me, parent);
    assert_status(pm_ledger_look(PORT, &holder), PM_OK); /* before anything is asked */
    assert_status(claim_for(me, PORT, &holder), PM_HELD);
    assert_int_equal(holder, PM_NOBODY); /* of this process */
    pm_ledger_release(parent, PORT);
    pm_ledger_withdraw(parent, PORT);
    assert_status(pm_ledger_look(PORT, &holder), PM_HELD);
    assert_status(claim_for(me, PORT + 1, &holder), PM_OK);
}

static void test_a_forked_child_holds_nothing_of_its_parents(void **state)
{
    pm_holder me = enroll(), holder;
    (void)state;

    assert_status(claim_for(me, PORT, &holder), PM_OK);
    in_child(check_child_starts_empty, &me);
    assert_int_equal(holder_of(PORT), me);
    assert_int_equal(holder_of(PORT + 1), PM_NOBODY);
    pm_ledger_release(me, PORT);
}

static void check_alone(void *unused)
{
    pm_holder me = enroll(), other = enroll(), holder;
    (void)unused;

    assert_int_equal(setenv("PORTMANAGER_LEDGER", "process", 1), 0);
    assert_status(claim_for(me, PORT, &holder), PM_OK); /* the group's ledger has it held */
    assert_status(claim_for(other, PORT, &holder), PM_HELD);
    assert_int_equal(holder, me);
}

static void test_a_process_may_keep_to_itself(void **state)
{
    pm_holder me = enroll(), holder;
    (void)state;

    assert_status(claim_for(me, PORT, &holder), PM_OK);
    in_child(check_alone, NULL);
    pm_ledger_release(me, PORT);
}

/* ---- names --------------------------------------------------------------------------------- */

static pm_held the_only_one(void)
{
    pm_held_list list;
    assert_status(pm_ledger_list(1, UINT16_MAX, &list), PM_OK);
    assert_int_equal(list.count, 1);
    pm_held held = list.items[0];
    pm_held_list_free(&list);
    return held;
}

static void test_a_list_says_who_holds_what_since_when(void **state)
{
    pm_name web = {pm_name_key(0, "web", 3), "web"}, nameless = {0};
    pm_holder me = enroll();
    pm_claim claim;
    struct timespec now;
    (void)state;

    assert_status(pm_ledger_check(), PM_OK);
    clock_gettime(CLOCK_REALTIME, &now);
    assert_status(pm_ledger_claim(me, PORT, &web, &claim), PM_OK);
    pm_held held = the_only_one();
    assert_int_equal(held.port, PORT);
    assert_int_equal(held.pid, getpid());
    assert_true(held.has_label);
    assert_string_equal(held.label, "web");
    assert_in_range(held.since_ns / 1000000000, now.tv_sec - 1, now.tv_sec + 60);
    pm_ledger_release(me, PORT);

    assert_status(pm_ledger_claim(me, PORT, &nameless, &claim), PM_OK);
    assert_false(the_only_one().has_label);
    pm_ledger_release(me, PORT);
}

static void test_a_long_name_is_cut_behind_a_character(void **state)
{
    /* 59 bytes of ASCII, then characters of two bytes. */
    static const char text[] = "0123456789012345678901234567890123456789012345678901234567"
                               "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4";
    static const char expected[] = "0123456789012345678901234567890123456789012345678901234567"
                                   "\xe2\x80\xa6";
    pm_name name = {1, text};
    pm_holder me = enroll();
    pm_claim claim;
    (void)state;

    assert_status(pm_ledger_check(), PM_OK);
    assert_status(pm_ledger_claim(me, PORT, &name, &claim), PM_OK);
    pm_held held = the_only_one();
    assert_memory_equal(held.label, expected, 58);
    assert_non_null(strstr(held.label, "\xe2\x80\xa6"));
    assert_in_range(strlen(held.label), 59, PM_LABEL_SIZE - 1);
    pm_ledger_release(me, PORT);
}

static void test_keys_differ_by_where_texts_begin(void **state)
{
    (void)state;
    assert_int_not_equal(pm_name_key(pm_name_key(0, "ab", 2), "c", 1),
                         pm_name_key(pm_name_key(0, "a", 1), "bc", 2));
    assert_int_not_equal(pm_name_key(0, "", 0), 0);
}

/* ---- the past ------------------------------------------------------------------------------ */

static void test_a_withdrawn_claim_never_was(void **state)
{
    pm_holder me = enroll(), holder;
    (void)state;

    assert_status(claim_for(me, PORT + 2, &holder), PM_OK);
    pm_ledger_release(me, PORT + 2);
    pm_port_past past = pm_ledger_past(PORT + 2);
    assert_int_not_equal(past.changed_at, 0);
    assert_status(claim_for(me, PORT + 2, &holder), PM_OK);
    assert_true(pm_ledger_past(PORT + 2).changed_at > past.changed_at);
    pm_ledger_withdraw(me, PORT + 2);
    assert_int_equal(pm_ledger_past(PORT + 2).changed_at, past.changed_at);
}

static void test_ports_are_given_back_one_after_the_other(void **state)
{
    pm_holder me = enroll(), holder;
    (void)state;

    for (uint16_t i = 0; i < 10; i++) {
        assert_status(claim_for(me, (uint16_t)(PORT + i), &holder), PM_OK);
    }
    for (uint16_t i = 10; i > 0; i--) {
        pm_ledger_release(me, (uint16_t)(PORT + i - 1));
    }
    for (uint16_t i = 1; i < 10; i++) {
        assert_true(pm_ledger_past((uint16_t)(PORT + i)).changed_at <
                    pm_ledger_past((uint16_t)(PORT + i - 1)).changed_at);
    }
}

static void test_a_name_is_remembered_until_another_one(void **state)
{
    pm_holder me = enroll(), holder;
    uint16_t found = 0;
    (void)state;

    assert_status(claim_for(me, PORT, &holder), PM_OK);
    pm_ledger_remember(me, PORT, 77);
    pm_ledger_release(me, PORT);
    assert_int_equal(pm_ledger_past(PORT).remembered, 77);
    assert_true(pm_ledger_find_remembered(77, &found, UINT16_MAX));
    assert_int_equal(found, PORT);
    assert_false(pm_ledger_find_remembered(78, &found, UINT16_MAX));
    pm_ledger_remember(me, PORT, 78); /* not held by it: nothing happens */
    assert_int_equal(pm_ledger_past(PORT).remembered, 77);
    assert_status(claim_for(me, PORT, &holder), PM_OK);
    pm_ledger_remember(me, PORT, 0);
    pm_ledger_release(me, PORT);
    assert_int_equal(pm_ledger_past(PORT).remembered, 0);
}

/* ---- threads ------------------------------------------------------------------------------- */

enum { THREADS = 4, ENROLMENTS = 1000000, ROUNDS = 1000000, HAMMERED = 3 };

static pthread_barrier_t start; /* so that all run at the same time */

static void run_threads(void *(*body)(void *), void *const arguments[THREADS])
{
    pthread_t threads[THREADS];

    assert_int_equal(pthread_barrier_init(&start, NULL, THREADS), 0);
    for (size_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, body, arguments[i]), 0);
    }
    for (size_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    pthread_barrier_destroy(&start);
}

static pm_holder enrolled[THREADS][ENROLMENTS];

static void *enroll_often(void *numbers)
{
    pthread_barrier_wait(&start);
    for (size_t i = 0; i < ENROLMENTS; i++) {
        ((pm_holder *)numbers)[i] = pm_ledger_enroll();
    }
    return NULL;
}

static int compare_holders(const void *left, const void *right)
{
    pm_holder a = *(const pm_holder *)left, b = *(const pm_holder *)right;
    return (a > b) - (a < b);
}

static void test_numbers_are_never_given_twice(void **state)
{
    void *const arguments[THREADS] = {enrolled[0], enrolled[1], enrolled[2], enrolled[3]};
    pm_holder *all = enrolled[0];
    (void)state;

    run_threads(enroll_often, arguments);
    qsort(all, (size_t)THREADS * ENROLMENTS, sizeof *all, compare_holders);
    assert_int_not_equal(all[0], PM_NOBODY);
    for (size_t i = 1; i < (size_t)THREADS * ENROLMENTS; i++) {
        assert_int_not_equal(all[i], all[i - 1]);
    }
}

/* The oracle: who believes to hold each port, noted between claim and release. */
static _Atomic(pm_holder) believed[HAMMERED];
static _Atomic(uint64_t) doubles, wrong_answers, claims;

static void *claim_and_release(void *unused)
{
    pm_holder me = pm_ledger_enroll(), holder;
    uint32_t noise = (uint32_t)me * 2654435761u;
    (void)unused;

    pthread_barrier_wait(&start);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        noise = noise * 1664525 + 1013904223;
        uint16_t at = (uint16_t)((noise >> 16) % HAMMERED), port = (uint16_t)(PORT + at);
        pm_status status = claim_for(me, port, &holder);
        if (status != PM_OK) {
            /* Whoever it was, it was somebody, and not this thread: it holds nothing. */
            wrong_answers += status != PM_HELD || holder == PM_NOBODY || holder == me;
            pm_ledger_release(me, port); /* somebody else's is left alone */
            continue;
        }
        claims++;
        doubles += atomic_exchange(&believed[at], me) != PM_NOBODY;
        wrong_answers += holder_of(port) != me;
        doubles += atomic_exchange(&believed[at], PM_NOBODY) != me;
        pm_ledger_release(me, port);
    }
    return NULL;
}

static void test_no_port_has_two_holders(void **state)
{
    static void *const none[THREADS];
    (void)state;

    doubles = wrong_answers = claims = 0;
    run_threads(claim_and_release, none);
    assert_int_equal(doubles, 0);
    assert_int_equal(wrong_answers, 0);
    assert_in_range(claims, ROUNDS, (uintmax_t)THREADS * ROUNDS);
    for (uint16_t i = 0; i < HAMMERED; i++) {
        assert_int_equal(holder_of((uint16_t)(PORT + i)), PM_NOBODY);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_free_port_can_be_claimed),
        cmocka_unit_test(test_a_held_port_names_its_holder),
        cmocka_unit_test(test_a_wrong_releaser_is_ignored),
        cmocka_unit_test(test_a_late_release_does_not_harm_the_next_holder),
        cmocka_unit_test(test_ports_are_held_one_by_one),
        cmocka_unit_test(test_a_forked_child_holds_nothing_of_its_parents),
        cmocka_unit_test(test_a_process_may_keep_to_itself),
        cmocka_unit_test(test_a_list_says_who_holds_what_since_when),
        cmocka_unit_test(test_a_long_name_is_cut_behind_a_character),
        cmocka_unit_test(test_keys_differ_by_where_texts_begin),
        cmocka_unit_test(test_a_withdrawn_claim_never_was),
        cmocka_unit_test(test_ports_are_given_back_one_after_the_other),
        cmocka_unit_test(test_a_name_is_remembered_until_another_one),
        cmocka_unit_test(test_numbers_are_never_given_twice),
        cmocka_unit_test(test_no_port_has_two_holders),
    };
    return cmocka_run_group_tests_name("ledger", tests, isolate_with_ledger, remove_ledger);
}
