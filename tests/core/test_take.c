/* One candidate: what is claimed is verified, and kept or withdrawn; a port that was inherited from
 * a process that died a moment ago is waited for. */
#include "actors.h"
#include "sockets.h"

#include "core/take.h"

enum {
    SERVER,     /* has the port and its socket, and dies */
    LATE,       /* its child: has the socket too, and closes it late */
    FIRST_USED, /* other actors begin here */
};

static const pm_name nothing;
static uint16_t port; /* the one that is taken */
static int socket_of_server = -1;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static pm_status take(pm_taker *taker, pm_holder *holder)
{
    assert_status(pm_ledger_check(), PM_OK);
    return pm_take(taker, me, port, &nothing, pm_probe_service, holder);
}

/* Who of this process has the port? */
static pm_holder holder_here(void)
{
    pm_holder holder;
    assert_status(pm_ledger_check(), PM_OK);
    pm_ledger_look(port, &holder);
    return holder;
}

/* ---- a verifier that says what it is told ---------------------------------------------------- */

static pm_status verdicts[64];
static unsigned verdicts_left, verifications;

static pm_status say_verdict(pm_wildcard_prober *prober, uint16_t at)
{
    (void)prober;
    assert_int_equal(at, port);
    /* Whoever probes has the claim. */
    assert_int_equal(holder_here(), me);
    verifications++;
    return verdicts_left > 1 ? verdicts[--verdicts_left] : verdicts[0];
}

/* The last of them is said from then on. */
static void expect_verdict(pm_status status)
{
    verdicts[0] = status;
    verdicts_left = 1;
    verifications = 0;
}

static pm_status take_by_verdict(pm_taker *taker, pm_holder *holder)
{
    assert_status(pm_ledger_check(), PM_OK);
    return pm_take(taker, me, port, &nothing, say_verdict, holder);
}

/* ---- what is not inherited -------------------------------------------------------------------- */

static void take_free(void)
{
    pm_taker taker = PM_TAKER_IDLE;
    pm_holder holder, other = pm_ledger_enroll();

    me = pm_ledger_enroll();
    port = free_ports(1);
    taker.settles = taker.patient = true;
    assert_status(take(&taker, &holder), PM_OK);
    assert_int_equal(holder_here(), me);
    assert_status(take(&taker, &holder), PM_HELD);
    assert_int_equal(holder, me);
    pm_taker_end(&taker, me); /* what was taken stays */
    assert_int_equal(holder_here(), me);
    start(FIRST_USED);
    assert_status((pm_status)ask(FIRST_USED, do_claim, port, 0).status, PM_HELD);
    pm_ledger_release(me, port);

    assert_status((pm_status)ask(FIRST_USED, do_claim, port, 0).status, PM_OK);
    holder = other;
    assert_status(take(&taker, &holder), PM_HELD);
    assert_int_equal(holder, PM_NOBODY);
    pm_taker_end(&taker, me);
}

static void test_a_free_port_is_taken(void **state)
{
    (void)state;
    scene(take_free);
}

/* A port that a socket has, and that nobody held, is not waited for. */
static void take_busy(void)
{
    pm_taker taker = PM_TAKER_IDLE;
    pm_holder holder;

    me = pm_ledger_enroll();
    port = 0;
    int fd = hold("127.0.0.1", &port, LISTENING);
    for (int i = 0; i < 4; i++) {
        taker.settles = i & 1;
        taker.patient = i & 2;
        assert_status(take(&taker, &holder), PM_BUSY);
        assert_int_equal(taker.settling, 0);
        assert_int_equal(holder_here(), PM_NOBODY);
    }
    assert_int_equal(pm_ledger_past(port).changed_at, 0); /* as if it had never been */
    close(fd);
    assert_status(take(&taker, &holder), PM_OK);
    pm_taker_end(&taker, me);
}

static void test_a_busy_port_is_withdrawn(void **state)
{
    (void)state;
    scene(take_busy);
}

static void take_by_each_verdict(void)
{
    static const pm_status statuses[] = {PM_BUSY,        PM_FORBIDDEN, PM_NOT_LOCAL,
                                         PM_UNSUPPORTED, PM_EXHAUSTED, PM_FAILED};
    pm_taker taker = PM_TAKER_IDLE;
    pm_holder holder;

    me = pm_ledger_enroll();
    port = PORT;
    taker.settles = taker.patient = true;
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++) {
        expect_verdict(statuses[i]);
        assert_status(take_by_verdict(&taker, &holder), statuses[i]);
        assert_int_equal(verifications, 1);
        assert_int_equal(holder_here(), PM_NOBODY);
    }
    expect_verdict(PM_OK);
    assert_status(take_by_verdict(&taker, &holder), PM_OK);
    pm_taker_end(&taker, me);
}

static void test_what_the_verifier_says_is_the_answer(void **state)
{
    (void)state;
    scene(take_by_each_verdict);
}

/* ---- what is inherited ------------------------------------------------------------------------ */

/* Holds a port of the kernel's choice, and listens there. The answer's: the port. */
static actor_answer do_serve(const actor_order *order)
{
    pm_claim claim;
    (void)order;

    uint16_t chosen = 0;
    int fd = hold("127.0.0.1", &chosen, LISTENING);
    /* Not where a pipe was: an actor's child closes those numbers once more. */
    socket_of_server = fcntl(fd, F_DUPFD_CLOEXEC, 100);
    close(fd);
    pm_status status = pm_ledger_check();
    if (status == PM_OK) {
        status = pm_ledger_claim(me, chosen, &nothing, &claim);
    }
    return (actor_answer){.status = (int)status, .number = chosen};
}

/* Answers at once, and closes the inherited socket after so many microseconds. */
static actor_answer do_close_late(const actor_order *order)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        usleep((useconds_t)order->number);
        _exit(0);
    }
    close(socket_of_server);
    return (actor_answer){.number = (uint64_t)pid};
}

static actor_answer do_close(const actor_order *order)
{
    (void)order;
    return (actor_answer){.status = close(socket_of_server)};
}

/* The port was a dead process's, and a child of it has the socket still. */
static void leave_socket(void)
{
    me = pm_ledger_enroll();
    assert_status(pm_ledger_check(), PM_OK);
    start(SERVER);
    actor_answer served = ask(SERVER, do_serve, 0, 0);
    assert_status((pm_status)served.status, PM_OK);
    port = (uint16_t)served.number;
    spawn(SERVER, LATE);
    ask(LATE, do_name_yourself, 0, 0); /* it is there */
    kill_actor(SERVER);
}

static void wait_patiently(void)
{
    pm_taker taker = PM_TAKER_IDLE;
    pm_holder holder;

    leave_socket();
    taker.settles = taker.patient = true;
    pid_t closer = (pid_t)ask(LATE, do_close_late, 0, 3000).number;
    int64_t began = now_ns();
    pm_status status = take(&taker, &holder);
    /* A machine that is busy may wake the closer too late. */
    for (int tries = 0; status == PM_BUSY && tries < 20; tries++) {
        kill_actor(LATE);
        waitpid(closer, NULL, 0);
        leave_socket();
        closer = (pid_t)ask(LATE, do_close_late, 0, 3000).number;
        began = now_ns();
        status = take(&taker, &holder);
    }
    assert_status(status, PM_OK);
    assert_in_range(now_ns() - began, 0, 1000000000);
    assert_int_equal(taker.settling, 0);
    assert_int_equal(holder_here(), me);
    pm_taker_end(&taker, me);
    assert_int_equal(holder_here(), me);
}

static void test_a_socket_that_closes_late_is_waited_for(void **state)
{
    (void)state;
    scene(wait_patiently);
}

static void ask_again(void)
{
    pm_taker taker = PM_TAKER_IDLE;
    pm_holder holder;

    leave_socket();
    taker.settles = true;
    int64_t began = now_ns();
    assert_status(take(&taker, &holder), PM_AGAIN);
    assert_in_range(now_ns() - began, 0, 1000000000);
    assert_int_equal(taker.settling, port);
    assert_int_equal(holder_here(), me); /* the claim is kept */
    assert_status(take(&taker, &holder), PM_AGAIN);
    assert_int_equal(holder_here(), me);
    start(FIRST_USED);
    assert_status((pm_status)ask(FIRST_USED, do_claim, port, 0).status, PM_HELD);

    ask(LATE, do_close, 0, 0);
    taker.patient = true;
    assert_status(take(&taker, &holder), PM_OK);
    assert_int_equal(taker.settling, 0);
    assert_int_equal(holder_here(), me);
    assert_status((pm_status)ask(FIRST_USED, do_claim, port, 0).status, PM_HELD);
    pm_taker_end(&taker, me);
    assert_int_equal(holder_here(), me);
}

static void test_who_may_not_wait_is_told_to_come_again(void **state)
{
    (void)state;
    scene(ask_again);
}

static void give_up(void)
{
    enum { LEAST_NS = 9000000 };
    pm_taker taker = PM_TAKER_IDLE;
    pm_holder holder;

    leave_socket();
    taker.settles = taker.patient = true;
    int64_t began = now_ns();
    assert_status(take(&taker, &holder), PM_BUSY);
    assert_in_range(now_ns() - began, LEAST_NS, 1000000000);
    assert_int_equal(taker.settling, 0);
    assert_int_equal(holder_here(), PM_NOBODY);
    start(FIRST_USED);
    assert_status((pm_status)ask(FIRST_USED, do_look, port, 0).status, PM_OK);

    /* It was given back, so the next one is not inherited, and not waited for. */
    began = now_ns();
    taker.patient = false;
    assert_status(take(&taker, &holder), PM_BUSY);
    pm_taker_end(&taker, me);
}

static void test_a_socket_that_stays_is_busy(void **state)
{
    (void)state;
    scene(give_up);
}

/* The time of both calls counts. */
static void give_up_after_coming_again(void)
{
    pm_taker taker = PM_TAKER_IDLE;
    pm_holder holder;

    leave_socket();
    taker.settles = true;
    assert_status(take(&taker, &holder), PM_AGAIN);
    int64_t until = taker.settling_until;
    usleep(11000);
    taker.patient = true;
    assert_status(pm_ledger_check(), PM_OK);
    expect_verdict(PM_BUSY);
    assert_true(now_ns() > until);
    assert_status(take_by_verdict(&taker, &holder), PM_BUSY);
    assert_int_equal(verifications, 1); /* once, for it may have closed meanwhile */
    assert_int_equal(holder_here(), PM_NOBODY);
    assert_int_equal(taker.settling, 0);
    pm_taker_end(&taker, me);
}

static void test_the_wait_begins_with_the_first_call(void **state)
{
    (void)state;
    scene(give_up_after_coming_again);
}

static void want_another_port(void)
{
    pm_taker taker = PM_TAKER_IDLE;
    pm_holder holder;

    leave_socket();
    taker.patient = true; /* but it does not settle */
    expect_verdict(PM_BUSY);
    assert_status(take_by_verdict(&taker, &holder), PM_BUSY);
    assert_int_equal(verifications, 1);
    assert_int_equal(taker.settling, 0);
    assert_int_equal(holder_here(), PM_NOBODY);
    pm_taker_end(&taker, me);
}

static void test_a_port_that_is_not_wanted_so_much_is_not_waited_for(void **state)
{
    (void)state;
    scene(want_another_port);
}

static void fail_while_settling(void)
{
    pm_taker taker = PM_TAKER_IDLE;
    pm_status status = PM_BUSY;
    pm_holder holder;

    taker.settles = taker.patient = true;
    /* Again where the machine is so busy that the wait is over before the second answer. */
    for (int tries = 0; status == PM_BUSY && tries < 20; tries++) {
        leave_socket();
        expect_verdict(PM_EXHAUSTED);
        verdicts[1] = PM_BUSY;
        verdicts_left = 2;
        status = take_by_verdict(&taker, &holder);
        assert_int_equal(taker.settling, 0);
        assert_int_equal(holder_here(), PM_NOBODY);
        kill_actor(LATE);
    }
    assert_status(status, PM_EXHAUSTED);
    assert_int_equal(verifications, 2);
    pm_taker_end(&taker, me);
}

static void test_an_answer_that_is_not_known_ends_the_wait(void **state)
{
    (void)state;
    scene(fail_while_settling);
}

static void end_while_settling(void)
{
    pm_taker taker = PM_TAKER_IDLE;
    pm_holder holder;

    leave_socket();
    taker.settles = true;
    assert_status(take(&taker, &holder), PM_AGAIN);
    assert_int_equal(holder_here(), me);
    start(FIRST_USED);
    assert_status((pm_status)ask(FIRST_USED, do_look, port, 0).status, PM_HELD);
    size_t before = open_descriptors();
    pm_taker_end(&taker, me);
    assert_true(open_descriptors() < before); /* the prober's */
    assert_int_equal(taker.settling, 0);
    assert_int_equal(holder_here(), PM_NOBODY);
    assert_status((pm_status)ask(FIRST_USED, do_look, port, 0).status, PM_OK);
    pm_taker_end(&taker, me); /* nothing more */
    assert_status((pm_status)ask(FIRST_USED, do_claim, port, 0).status, PM_OK);
}

static void test_the_end_withdraws_a_claim_that_settles(void **state)
{
    (void)state;
    scene(end_while_settling);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_WITH_FOLDER(test_a_free_port_is_taken),
        TEST_WITH_FOLDER(test_a_busy_port_is_withdrawn),
        TEST_WITH_FOLDER(test_what_the_verifier_says_is_the_answer),
        TEST_WITH_FOLDER(test_a_socket_that_closes_late_is_waited_for),
        TEST_WITH_FOLDER(test_who_may_not_wait_is_told_to_come_again),
        TEST_WITH_FOLDER(test_a_socket_that_stays_is_busy),
        TEST_WITH_FOLDER(test_the_wait_begins_with_the_first_call),
        TEST_WITH_FOLDER(test_a_port_that_is_not_wanted_so_much_is_not_waited_for),
        TEST_WITH_FOLDER(test_an_answer_that_is_not_known_ends_the_wait),
        TEST_WITH_FOLDER(test_the_end_withdraws_a_claim_that_settles),
    };
    return cmocka_run_group_tests(tests, isolate, NULL);
}
