/* Who holds which port. */
#include "support.h"

#include <time.h>

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
    assert_status(pm_ledger_list(PORT - 1, PORT + 1, &list), PM_OK);
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

static pm_held held_under(const char *label)
{
    pm_name name = {1, label};
    pm_holder me = enroll();
    pm_claim claim;

    assert_status(pm_ledger_check(), PM_OK);
    assert_status(pm_ledger_claim(me, PORT, &name, &claim), PM_OK);
    pm_held held = the_only_one();
    pm_ledger_release(me, PORT);
    return held;
}

static void test_a_list_is_of_its_range_and_in_order(void **state)
{
    static const uint16_t ports[] = {UINT16_MAX, 0, PORT, PORT + 1, 1};
    static const struct {
        uint16_t first, last;
        size_t count;
    } ranges[] = {
        {0,        UINT16_MAX, 5},
        {1,        PORT,       2},
        {PORT,     PORT,       1},
        {PORT + 2, 65534,      0},
        {PORT + 1, UINT16_MAX, 2},
        {PORT,     1,          0},
    };
    pm_holder me = enroll(), holder;
    pm_held_list list;
    (void)state;

    for (size_t i = 0; i < COUNT(ports); i++) {
        assert_status(claim_for(me, ports[i], &holder), PM_OK);
    }
    for (size_t i = 0; i < COUNT(ranges); i++) {
        assert_status(pm_ledger_list(ranges[i].first, ranges[i].last, &list), PM_OK);
        assert_int_equal(list.count, ranges[i].count);
        for (size_t k = 0; k < list.count; k++) {
            assert_in_range(list.items[k].port, ranges[i].first, ranges[i].last);
            assert_true(k == 0 || list.items[k].port > list.items[k - 1].port);
        }
        pm_held_list_free(&list);
        assert_int_equal(list.count, 0);
        pm_held_list_free(&list); /* twice is no harm */
    }
    for (size_t i = 0; i < COUNT(ports); i++) {
        pm_ledger_release(me, ports[i]);
    }
}

static void test_a_list_may_be_long(void **state)
{
    enum { MANY = 300 };
    pm_holder me = enroll(), holder;
    pm_held_list list;
    (void)state;

    for (uint16_t i = 0; i < MANY; i++) {
        assert_status(claim_for(me, (uint16_t)(PORT + i), &holder), PM_OK);
    }
    assert_status(pm_ledger_list(0, UINT16_MAX, &list), PM_OK);
    assert_int_equal(list.count, MANY);
    for (uint16_t i = 0; i < MANY; i++) {
        assert_int_equal(list.items[i].port, PORT + i);
        pm_ledger_release(me, (uint16_t)(PORT + i));
    }
    pm_held_list_free(&list);
}

/* The label has what fits of the whole characters, and an ellipsis if that is not all. */
static void check_label(const char *text)
{
    static const char ellipsis[] = "\xe2\x80\xa6";
    char expected[PM_LABEL_SIZE] = {0};
    size_t length = strlen(text);
    pm_held held = held_under(text);

    if (length < PM_LABEL_SIZE) {
        memcpy(expected, text, length);
    } else {
        length = PM_LABEL_SIZE - sizeof ellipsis;
        while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80) {
            length--;
        }
        snprintf(expected, sizeof expected, "%.*s%s", (int)length, text, ellipsis);
    }
    assert_string_equal(held.label, expected);
    assert_int_equal(held.has_label, true);
}

static void test_a_long_name_is_cut_behind_a_character(void **state)
{
    static const char *const characters[] = {"x", "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x90\x8d",
                                             "\x80"}; /* the last one is none at all */
    (void)state;

    check_label("");
    for (size_t kind = 0; kind < COUNT(characters); kind++) {
        for (size_t ascii = 0; ascii < PM_LABEL_SIZE + 2; ascii++) {
            char text[256] = {0};
            memset(text, 'x', ascii);
            while (strlen(text) < 2 * PM_LABEL_SIZE) {
                check_label(text);
                strcat(text, characters[kind]);
            }
        }
    }
}

static void test_the_longest_name_that_fits_is_not_cut(void **state)
{
    char text[PM_LABEL_SIZE + 1] = {0};
    (void)state;

    memset(text, 'x', PM_LABEL_SIZE - 1);
    assert_string_equal(held_under(text).label, text);
    text[PM_LABEL_SIZE - 1] = 'x';
    assert_null(strstr(held_under(text).label, text));
    assert_false(held_under(NULL).has_label); /* nothing is left of it */
}

static void test_keys_differ_by_where_texts_begin(void **state)
{
    (void)state;
    assert_int_not_equal(pm_name_key(pm_name_key(0, "ab", 2), "c", 1),
                         pm_name_key(pm_name_key(0, "a", 1), "bc", 2));
    assert_int_not_equal(pm_name_key(0, "", 0), 0);
    assert_int_not_equal(pm_name_key(0, "", 0), pm_name_key(0, "\0", 1));
    assert_int_equal(pm_name_key(0, "web", 3), pm_name_key(0, "web", 3));
    assert_int_not_equal(pm_name_key(0, "web", 3), pm_name_key(0, "wea", 3));
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

static void test_a_claim_that_never_was_leaves_a_port_unused(void **state)
{
    static uint16_t next = PORT + 1000;
    const uint16_t unused = next++;
    pm_holder me = enroll(), holder;
    (void)state;

    assert_int_equal(pm_ledger_past(unused).changed_at, 0);
    assert_status(claim_for(me, unused, &holder), PM_OK);
    assert_true(pm_ledger_past(unused).changed_at > 0);
    pm_ledger_withdraw(me, unused);
    pm_ledger_withdraw(me, unused); /* nobody's now: nothing happens */
    pm_ledger_release(me, unused);
    assert_int_equal(pm_ledger_past(unused).changed_at, 0);
    assert_int_equal(pm_ledger_past(unused).remembered, 0);
}

static void test_who_does_not_hold_a_port_changes_nothing(void **state)
{
    pm_holder me = enroll(), other = enroll(), holder;
    (void)state;

    assert_status(claim_for(me, PORT, &holder), PM_OK);
    pm_port_past past = pm_ledger_past(PORT);
    pm_ledger_withdraw(other, PORT);
    pm_ledger_withdraw(PM_NOBODY, PORT);
    pm_ledger_remember(other, PORT, 77);
    assert_int_equal(holder_of(PORT), me);
    assert_int_equal(pm_ledger_past(PORT).changed_at, past.changed_at);
    assert_int_equal(pm_ledger_past(PORT).remembered, past.remembered);
    pm_ledger_release(me, PORT);
}

static void test_ports_that_rested_are_found(void **state)
{
    static uint16_t next = PORT + 2000; /* ports that nobody had */
    const uint16_t first = next, last = (uint16_t)(first + 9);
    pm_holder me = enroll(), holder;
    uint16_t found = first;
    int64_t oldest = INT64_MAX, ages[3];
    (void)state;

    next = (uint16_t)(next + 10);

    assert_status(pm_ledger_check(), PM_OK);
    assert_true(pm_ledger_find_rested(0, INT64_MAX, &found, last, &oldest)); /* never used */
    assert_int_equal(found, first);
    assert_int_equal(oldest, INT64_MAX);
    for (uint16_t i = 0; i < 3; i++) {
        assert_status(claim_for(me, (uint16_t)(first + i), &holder), PM_OK);
        pm_ledger_release(me, (uint16_t)(first + i));
        ages[i] = pm_ledger_past((uint16_t)(first + i)).changed_at;
    }
    assert_true(pm_ledger_find_rested(0, INT64_MAX, &found, last, &oldest));
    assert_int_equal(found, first + 3);
    assert_int_equal(oldest, ages[0]);
    found = first; /* changed at that time or before it */
    assert_true(pm_ledger_find_rested(ages[0], INT64_MAX, &found, last, &oldest));
    assert_int_equal(found, first);
    found = first; /* in the future */
    oldest = INT64_MAX;
    assert_true(pm_ledger_find_rested(0, ages[1], &found, last, &oldest));
    assert_int_equal(found, first + 2);
    assert_int_equal(oldest, ages[0]);
    found = (uint16_t)(first + 1);
    oldest = 5; /* of another walk */
    assert_false(pm_ledger_find_rested(0, INT64_MAX, &found, (uint16_t)(first + 2), &oldest));
    assert_int_equal(oldest, 5);

    /* What is kept for a name does not count, however long it rested. */
    assert_status(claim_for(me, (uint16_t)(first + 3), &holder), PM_OK);
    pm_ledger_remember(me, (uint16_t)(first + 3), 1077);
    pm_ledger_release(me, (uint16_t)(first + 3));
    found = (uint16_t)(first + 3);
    oldest = INT64_MAX;
    assert_true(pm_ledger_find_rested(INT64_MAX, INT64_MAX, &found, last, &oldest));
    assert_int_equal(found, first + 4);
    assert_int_equal(oldest, INT64_MAX);
    found = UINT16_MAX; /* comes to an end there */
    assert_true(pm_ledger_find_rested(INT64_MAX, INT64_MAX, &found, UINT16_MAX, &oldest));
    assert_int_equal(found, UINT16_MAX);
}

static void test_a_walk_goes_on_where_it_was_left(void **state)
{
    (void)state;
    assert_status(pm_ledger_check(), PM_OK);
    pm_ledger_set_next_port(12345);
    assert_int_equal(pm_ledger_next_port(), 12345);
    pm_ledger_set_next_port(UINT16_MAX);
    assert_int_equal(pm_ledger_next_port(), UINT16_MAX);
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
    found = PORT + 1;
    assert_false(pm_ledger_find_remembered(77, &found, UINT16_MAX));
    found = 0;
    assert_false(pm_ledger_find_remembered(77, &found, PORT - 1));
    pm_ledger_remember(me, PORT, 78); /* not held by it: nothing happens */
    assert_int_equal(pm_ledger_past(PORT).remembered, 77);
    assert_status(claim_for(me, PORT, &holder), PM_OK);
    pm_ledger_remember(me, PORT, 0);
    pm_ledger_release(me, PORT);
    assert_int_equal(pm_ledger_past(PORT).remembered, 0);
}

/* ---- alone ------------------------------------------------------------------------------------ */

static int stay_alone(void **state)
{
    (void)state;
    return setenv("PORTMANAGER_LEDGER", "process", 1);
}

static void test_there_is_no_ledger_beside_the_process(void **state)
{
    pm_holder me = enroll(), holder;
    pm_trouble trouble;
    (void)state;

    assert_status(claim_for(me, PORT, &holder), PM_OK);
    assert_false(pm_ledger_notice(&trouble));
    assert_false(pm_ledger_has_kin());
    assert_int_not_equal(access(ledger_folder, F_OK), 0);
    pm_ledger_release(me, PORT);
}

int main(void)
{
    const struct CMUnitTest shared[] = {
        cmocka_unit_test(test_a_forked_child_holds_nothing_of_its_parents),
        cmocka_unit_test(test_a_process_may_keep_to_itself),
    };
    /* In the file, and without one. */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_free_port_can_be_claimed),
        cmocka_unit_test(test_a_held_port_names_its_holder),
        cmocka_unit_test(test_a_wrong_releaser_is_ignored),
        cmocka_unit_test(test_a_late_release_does_not_harm_the_next_holder),
        cmocka_unit_test(test_ports_are_held_one_by_one),
        cmocka_unit_test(test_a_list_says_who_holds_what_since_when),
        cmocka_unit_test(test_a_list_is_of_its_range_and_in_order),
        cmocka_unit_test(test_a_list_may_be_long),
        cmocka_unit_test(test_a_long_name_is_cut_behind_a_character),
        cmocka_unit_test(test_the_longest_name_that_fits_is_not_cut),
        cmocka_unit_test(test_keys_differ_by_where_texts_begin),
        cmocka_unit_test(test_a_withdrawn_claim_never_was),
        cmocka_unit_test(test_a_claim_that_never_was_leaves_a_port_unused),
        cmocka_unit_test(test_who_does_not_hold_a_port_changes_nothing),
        cmocka_unit_test(test_ports_are_given_back_one_after_the_other),
        cmocka_unit_test(test_ports_that_rested_are_found),
        cmocka_unit_test(test_a_walk_goes_on_where_it_was_left),
        cmocka_unit_test(test_a_name_is_remembered_until_another_one),
    };
    const struct CMUnitTest alone[] = {
        cmocka_unit_test(test_there_is_no_ledger_beside_the_process),
    };
    int failed = cmocka_run_group_tests_name("ledger, shared", shared, isolate_with_ledger, NULL);
    failed += cmocka_run_group_tests_name("ledger", tests, NULL, remove_ledger);
    failed += cmocka_run_group_tests_name("ledger, alone", alone, stay_alone, NULL);
    failed += cmocka_run_group_tests_name("ledger of the process", tests, NULL, NULL);
    return failed;
}
