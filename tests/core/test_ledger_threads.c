/* The ledger between the threads of a process. The threads are those of children, whose parent does
 * not take part: it would hold a mutex at the fork, and the thread sanitizer does not see that the
 * child finds it open. */
#include "actors.h"

#include <pthread.h>
#include <stdatomic.h>

enum { THREADS = 8, PORTS = 16, ROUNDS = 15000 };

static pthread_barrier_t together; /* so that all run at the same time */
static atomic_bool end;

typedef void *(*thread_body)(void *);

static void begin_threads(pthread_t threads[THREADS], thread_body body)
{
    atomic_store(&end, false);
    assert_int_equal(pthread_barrier_init(&together, NULL, THREADS), 0);
    for (uintptr_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, body, (void *)i), 0);
    }
}

static void end_threads(pthread_t threads[THREADS])
{
    for (size_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    pthread_barrier_destroy(&together);
}

static void run_threads(thread_body body)
{
    pthread_t threads[THREADS];
    begin_threads(threads, body);
    end_threads(threads);
}

/* ---- numbers -------------------------------------------------------------------------------- */

enum { ENROLMENTS = 100000 };

static pm_holder enrolled[THREADS * ENROLMENTS];

static void *enroll_often(void *number)
{
    pm_holder *mine = enrolled + (uintptr_t)number * ENROLMENTS;

    pthread_barrier_wait(&together);
    for (size_t i = 0; i < ENROLMENTS; i++) {
        mine[i] = pm_ledger_enroll();
    }
    return NULL;
}

static int compare_holders(const void *left, const void *right)
{
    pm_holder a = *(const pm_holder *)left, b = *(const pm_holder *)right;
    return (a > b) - (a < b);
}

static void enroll_at_once(void)
{
    run_threads(enroll_often);
    qsort(enrolled, (size_t)THREADS * ENROLMENTS, sizeof *enrolled, compare_holders);
    assert_int_not_equal(enrolled[0], PM_NOBODY);
    for (size_t i = 1; i < (size_t)THREADS * ENROLMENTS; i++) {
        assert_int_not_equal(enrolled[i], enrolled[i - 1]);
    }
}

static void test_numbers_are_never_given_twice(void **state)
{
    (void)state;
    scene(enroll_at_once);
}

/* ---- ports ---------------------------------------------------------------------------------- */

/* The oracle: who believes to hold each port, noted between claim and giving back. */
static _Atomic(pm_holder) believed[PORTS];
static _Atomic(uint64_t) doubles, wrong_answers, claims;

static uint32_t noise_of(uint32_t *noise)
{
    *noise = *noise * 1664525 + 1013904223;
    return *noise >> 16;
}

/* Each answer about a port that this thread holds is known. */
static void check_own(pm_holder mine, uint16_t port)
{
    pm_holder holder;
    pm_held_list list;
    pm_claim claim;

    wrong_answers += pm_ledger_check() != PM_OK;
    wrong_answers += pm_ledger_look(port, &holder) != PM_HELD || holder != mine;
    wrong_answers +=
        pm_ledger_claim(mine, port, &(pm_name){0}, &claim) != PM_HELD || claim.holder != mine;
    wrong_answers += pm_ledger_list(port, port, &list) != PM_OK || list.count != 1;
    pm_held_list_free(&list);
    pm_ledger_remember(mine, port, mine);
    wrong_answers += pm_ledger_past(port).remembered != mine;
}

static void hammer_once(pm_holder mine, uint32_t *noise)
{
    uint16_t at = (uint16_t)(noise_of(noise) % PORTS), port = (uint16_t)(PORT + at);
    pm_name name = {.key = mine, .label = "name"};
    pm_claim claim;

    wrong_answers += pm_ledger_check() != PM_OK;
    pm_status status = pm_ledger_claim(mine, port, &name, &claim);
    if (status != PM_OK) {
        /* Whoever it was, it was somebody of this process, and not this thread. */
        wrong_answers += status != PM_HELD || claim.holder == PM_NOBODY || claim.holder == mine;
        pm_ledger_release(mine, port); /* somebody else's is left alone */
        pm_ledger_withdraw(mine, port);
        pm_ledger_remember(mine, port, 0);
        return;
    }
    claims++;
    wrong_answers += claim.inherited;
    doubles += atomic_exchange(&believed[at], mine) != PM_NOBODY;
    if (noise_of(noise) % 4 == 0) {
        check_own(mine, port);
    }
    doubles += atomic_exchange(&believed[at], PM_NOBODY) != mine;
    if (noise_of(noise) % 2) {
        pm_ledger_release(mine, port);
    } else {
        pm_ledger_withdraw(mine, port);
    }
}

static void *hammer(void *number)
{
    uint32_t noise = (uint32_t)(uintptr_t)number * 2654435761u;
    pm_holder mine = pm_ledger_enroll();

    pthread_barrier_wait(&together);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        hammer_once(mine, &noise);
    }
    return NULL;
}

static void assert_nothing_is_held(void)
{
    pm_held_list list;
    assert_status(pm_ledger_check(), PM_OK);
    assert_status(pm_ledger_list(0, UINT16_MAX, &list), PM_OK);
    assert_int_equal(list.count, 0);
    pm_held_list_free(&list);
}

static void assert_oracle_is_content(void)
{
    assert_int_equal(doubles, 0);
    assert_int_equal(wrong_answers, 0);
    assert_nothing_is_held();
}

static void hammer_shared(void)
{
    run_threads(hammer);
    assert_oracle_is_content();
    assert_in_range(claims, ROUNDS, (uintmax_t)THREADS * ROUNDS);
}

static void hammer_alone(void)
{
    assert_int_equal(setenv("PORTMANAGER_LEDGER", "process", 1), 0);
    hammer_shared();
}

static void test_no_port_has_two_holders(void **state)
{
    (void)state;
    scene(hammer_shared);
    scene(hammer_alone);
}

/* ---- the first use -------------------------------------------------------------------------- */

static void *claim_first(void *unused)
{
    pm_holder mine = pm_ledger_enroll();
    pm_claim claim;
    (void)unused;

    pthread_barrier_wait(&together);
    wrong_answers += pm_ledger_check() != PM_OK;
    pm_status status = pm_ledger_claim(mine, PORT, &(pm_name){0}, &claim);
    claims += status == PM_OK;
    wrong_answers += status != PM_OK && (status != PM_HELD || claim.holder == PM_NOBODY);
    return NULL;
}

static void use_first_at_once(void)
{
    run_threads(claim_first);
    assert_int_equal(claims, 1);
    assert_int_equal(wrong_answers, 0);
    pm_ledger_map map = mapped();
    assert_int_equal(atomic_load(&map.header->takings), 1); /* one slot for all */
    pm_ledger_file_unmap(&map);
    assert_int_equal(files_in(folder), 1);
    start(0);
    assert_status(status_of(0, do_claim), PM_HELD);
}

static void test_threads_that_come_first_take_one_slot(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        scene(use_first_at_once);
        assert_int_equal(unlink(path), 0);
    }
}

static void *hear_notices(void *unused)
{
    pm_trouble trouble;
    (void)unused;

    pthread_barrier_wait(&together);
    for (int i = 0; i < 1000; i++) {
        wrong_answers += pm_ledger_check() != PM_OK;
        claims += pm_ledger_notice(&trouble);
    }
    return NULL;
}

static void say_at_once(void)
{
    assert_int_equal(mkdir(path, 0700), 0); /* no ledger can be there */
    run_threads(hear_notices);
    assert_int_equal(claims, 1);
    assert_int_equal(wrong_answers, 0);
}

static void test_a_trouble_is_said_to_one_thread(void **state)
{
    (void)state;
    scene(say_at_once);
}

/* ---- while the file is lost, and while the process forks --------------------------------------- */

static void *hammer_to_the_end(void *number)
{
    uint32_t noise = (uint32_t)(uintptr_t)number * 2654435761u;
    pm_holder mine = pm_ledger_enroll();

    pthread_barrier_wait(&together);
    while (!atomic_load(&end)) {
        hammer_once(mine, &noise);
    }
    return NULL;
}

/* What is held all the while is in every file that follows. */
static void lose_file_often(void)
{
    enum { LOSSES = 100, HELD = PORT + PORTS };
    pthread_t threads[THREADS];
    pm_holder before, holder;

    me = pm_ledger_enroll();
    assert_status(claim_for(me, HELD, &before), PM_OK);
    begin_threads(threads, hammer_to_the_end);
    for (int i = 0; i < LOSSES; i++) {
        unlink(path);
        if (i % 3 == 0) {
            assert_status(pm_ledger_check(), PM_OK);
        }
        assert_status(pm_ledger_look(HELD, &holder), PM_HELD);
        assert_int_equal(holder, me);
        usleep(1000);
    }
    atomic_store(&end, true);
    end_threads(threads);
    pm_ledger_release(me, PORT);
    assert_status(pm_ledger_check(), PM_OK);
    start(0);
    assert_status(status_at(0, do_claim, HELD), PM_HELD);
    for (uint16_t i = 0; i < PORTS; i++) {
        assert_status(status_at(0, do_claim, (uint16_t)(PORT + i)), PM_OK);
    }
    assert_says(0, "");
    kill_actor(0);
    pm_ledger_release(me, HELD);
    assert_oracle_is_content();
    assert_true(claims > LOSSES);
}

static void test_threads_go_on_while_the_file_is_lost(void **state)
{
    (void)state;
    scene(lose_file_often);
}

/* A child of a process whose threads are anywhere in the ledger has a ledger of its own making. */
static void fork_often(void)
{
    enum { FORKS = 100, HELD = PORT + PORTS };
    pthread_t threads[THREADS];
    pm_holder before;
    int status;

    me = pm_ledger_enroll();
    assert_status(claim_for(me, HELD, &before), PM_OK);
    begin_threads(threads, hammer_to_the_end);
    for (int i = 0; i < FORKS; i++) {
        fflush(NULL);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            pm_holder mine = pm_ledger_enroll(), holder;
            alarm(CHILD_SECONDS);
            bool good = mine != me && pm_ledger_look(HELD, &holder) == PM_OK &&
                        claim_for(mine, HELD, &holder) == PM_HELD && holder == PM_NOBODY &&
                        claim_for(mine, HELD + 1, &holder) == PM_OK;
            _exit(good ? 0 : 1);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
    }
    atomic_store(&end, true);
    end_threads(threads);
    pm_ledger_release(me, HELD);
    assert_oracle_is_content();
    assert_true(claims > FORKS);
}

static void test_children_of_threads_begin_anew(void **state)
{
    (void)state;
    scene(fork_often);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_WITH_FOLDER(test_numbers_are_never_given_twice),
        TEST_WITH_FOLDER(test_no_port_has_two_holders),
        TEST_WITH_FOLDER(test_threads_that_come_first_take_one_slot),
        TEST_WITH_FOLDER(test_a_trouble_is_said_to_one_thread),
        TEST_WITH_FOLDER(test_threads_go_on_while_the_file_is_lost),
        TEST_WITH_FOLDER(test_children_of_threads_begin_anew),
    };
    return cmocka_run_group_tests_name("ledger, threads", tests, NULL, NULL);
}
