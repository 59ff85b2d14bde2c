/* The ledger between processes: who excludes whom, and what ends a hold. */
#include "support.h"

#include <ftw.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "core/ledger.h"

/* Nothing here touches a socket, so any number does. */
enum { PORT = 40000, ACTORS = 9, PATIENCE_MS = 20000 };

/* ---- a ledger for each test ---------------------------------------------------------------- */

static char folder[PATH_MAX], path[PATH_MAX + 16];

static int make_folder(void **state)
{
    char name[] = "/tmp/portmanager-processes-XXXXXX";
    (void)state;

    if (!mkdtemp(name) || !realpath(name, folder)) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/ledger", folder);
    return setenv("PORTMANAGER_LEDGER", path, 1);
}

static int remove_one(const char *name, const struct stat *status, int type, struct FTW *walk)
{
    (void)status, (void)type, (void)walk;
    return remove(name);
}

static int remove_folder(void **state)
{
    (void)state;
    return nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static size_t files_in_folder(void)
{
    DIR *directory = opendir(folder);
    size_t count = 0;

    assert_non_null(directory);
    for (const struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        count += entry->d_name[0] != '.';
    }
    closedir(directory);
    return count;
}

/* The file as it is, without taking part. */
static pm_ledger_map mapped(void)
{
    pm_ledger_map map;
    pm_trouble trouble;
    int fd;

    assert_status(pm_ledger_file_open(path, &map, &fd, &trouble), PM_OK);
    close(fd);
    return map;
}

static void create_with_slots(uint32_t slots)
{
    pm_trouble trouble;
    assert_status(pm_ledger_file_create(path, slots, &trouble), PM_OK);
}

/* ---- actors: processes that do what they are told ------------------------------------------- */

typedef struct {
    int status;
    uint64_t number;
    char text[256];
} actor_answer;

typedef struct actor_order actor_order;
struct actor_order {
    actor_answer (*what)(const actor_order *order); /* the same address in all, for they are forked */
    uint16_t port;
    uint64_t number;
};

typedef struct {
    pid_t pid;
    int orders[2], answers[2];
} actor;

static actor actors[ACTORS];
static pm_holder me; /* of this process */

static _Noreturn void act(unsigned self)
{
    actor_order order;

    is_child = true;
    alarm(CHILD_SECONDS);
    for (unsigned i = 0; i < ACTORS; i++) {
        close(actors[i].orders[1]); /* so that all end with the test */
    }
    me = pm_ledger_enroll();
    while (read(actors[self].orders[0], &order, sizeof order) == (ssize_t)sizeof order) {
        actor_answer answer = order.what(&order);
        if (write(actors[self].answers[1], &answer, sizeof answer) != (ssize_t)sizeof answer) {
            break;
        }
    }
    _exit(0);
}

static pid_t fork_actor(unsigned number)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        act(number);
    }
    return pid;
}

static void start(unsigned number)
{
    actors[number].pid = fork_actor(number);
    assert_true(actors[number].pid > 0);
}

static void tell(unsigned number, actor_answer (*what)(const actor_order *), uint16_t port, uint64_t argument)
{
    actor_order order = {.what = what, .port = port, .number = argument};
    assert_int_equal(write(actors[number].orders[1], &order, sizeof order), sizeof order);
}

static actor_answer heard(unsigned number)
{
    struct pollfd ready = {.fd = actors[number].answers[0], .events = POLLIN};
    actor_answer answer;

    if (poll(&ready, 1, PATIENCE_MS) != 1) {
        fail_msg("actor %u does not answer", number);
    }
    assert_int_equal(read(ready.fd, &answer, sizeof answer), sizeof answer);
    return answer;
}

static actor_answer ask(unsigned number, actor_answer (*what)(const actor_order *), uint16_t port, uint64_t argument)
{
    tell(number, what, port, argument);
    return heard(number);
}

static pm_status status_of(unsigned number, actor_answer (*what)(const actor_order *))
{
    return (pm_status)ask(number, what, PORT, 0).status;
}

/* Dead, and what it had is closed. */
static void kill_actor(unsigned number)
{
    int status;
    assert_int_equal(kill(actors[number].pid, SIGKILL), 0);
    assert_int_equal(waitpid(actors[number].pid, &status, 0), actors[number].pid);
    assert_true(WIFSIGNALED(status));
}

/* Runs a test's body where it may have actors. */
static void run_scene(void *body)
{
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (unsigned i = 0; i < ACTORS; i++) {
        assert_int_equal(pipe2(actors[i].orders, O_CLOEXEC), 0);
        assert_int_equal(pipe2(actors[i].answers, O_CLOEXEC), 0);
    }
    (*(void (**)(void))body)();
}

static void scene(void (*body)(void))
{
    in_child(run_scene, &body);
}

static actor_answer do_claim(const actor_order *order)
{
    pm_name name = {.key = order->number};
    pm_claim claim;
    pm_status status = pm_ledger_check();

    if (status == PM_OK) {
        status = pm_ledger_claim(me, order->port, &name, &claim);
        return (actor_answer){.status = (int)status, .number = claim.holder};
    }
    return (actor_answer){.status = (int)status};
}

/* Without a check, as whoever checked a moment ago does. */
static actor_answer do_claim_only(const actor_order *order)
{
    pm_name name = {.key = 0};
    pm_claim claim;
    pm_status status = pm_ledger_claim(me, order->port, &name, &claim);
    return (actor_answer){.status = (int)status, .number = claim.inherited};
}

static actor_answer do_release(const actor_order *order)
{
    pm_ledger_release(me, order->port);
    return (actor_answer){.status = PM_OK};
}

static actor_answer do_withdraw(const actor_order *order)
{
    pm_ledger_withdraw(me, order->port);
    return (actor_answer){.status = PM_OK};
}

static actor_answer do_look(const actor_order *order)
{
    pm_holder holder;
    pm_status status = pm_ledger_check();

    if (status == PM_OK) {
        status = pm_ledger_look(order->port, &holder);
        return (actor_answer){.status = (int)status, .number = holder};
    }
    return (actor_answer){.status = (int)status};
}

static actor_answer do_notice(const actor_order *order)
{
    pm_trouble trouble = {{0}};
    actor_answer answer = {.status = (int)pm_ledger_check()};

    (void)order;
    answer.number = pm_ledger_notice(&trouble);
    snprintf(answer.text, sizeof answer.text, "%.*s", (int)sizeof answer.text - 1, trouble.text);
    return answer;
}

static actor_answer do_enroll(const actor_order *order)
{
    (void)order;
    return (actor_answer){.number = pm_ledger_enroll()};
}

static actor_answer do_name_yourself(const actor_order *order)
{
    (void)order;
    return (actor_answer){.number = me};
}

/* An actor's child is another actor. */
static actor_answer do_spawn(const actor_order *order)
{
    return (actor_answer){.number = (uint64_t)fork_actor((unsigned)order->number)};
}

static void spawn(unsigned parent, unsigned child)
{
    actors[child].pid = (pid_t)ask(parent, do_spawn, 0, child).number;
    assert_true(actors[child].pid > 0);
}

/* ---- exclusion ----------------------------------------------------------------------------- */

static void exclude(void)
{
    start(0);
    start(1);
    assert_status(status_of(0, do_look), PM_OK);
    assert_status(status_of(0, do_claim), PM_OK);
    actor_answer other = ask(1, do_claim, PORT, 0);
    assert_status((pm_status)other.status, PM_HELD);
    assert_int_equal(other.number, PM_NOBODY); /* of that process */
    other = ask(1, do_look, PORT, 0);
    assert_status((pm_status)other.status, PM_HELD);
    assert_int_equal(other.number, PM_NOBODY);
    ask(1, do_release, PORT, 0); /* not its own */
    ask(1, do_withdraw, PORT, 0);
    assert_status(status_of(1, do_claim), PM_HELD);
    assert_status((pm_status)ask(1, do_claim, PORT + 1, 0).status, PM_OK);
    assert_status((pm_status)ask(0, do_claim, PORT + 1, 0).status, PM_HELD);

    ask(0, do_release, PORT, 0);
    assert_status(status_of(1, do_claim), PM_OK);
    assert_status(status_of(0, do_claim), PM_HELD);
    ask(1, do_withdraw, PORT, 0);
    assert_status(status_of(0, do_claim), PM_OK);
    assert_false(ask(0, do_notice, 0, 0).number);
    assert_false(ask(1, do_notice, 0, 0).number);
}

static void test_two_processes_exclude_each_other(void **state)
{
    (void)state;
    scene(exclude);
}

static void stop_holder(void)
{
    int status;

    start(0);
    start(1);
    assert_status(status_of(0, do_claim), PM_OK);
    assert_int_equal(kill(actors[0].pid, SIGSTOP), 0);
    assert_int_equal(waitpid(actors[0].pid, &status, WUNTRACED), actors[0].pid);
    assert_true(WIFSTOPPED(status));
    assert_status(status_of(1, do_claim), PM_HELD);
    assert_int_equal(kill(actors[0].pid, SIGCONT), 0);
    assert_status(status_of(1, do_claim), PM_HELD);
}

static void test_a_stopped_process_holds(void **state)
{
    (void)state;
    scene(stop_holder);
}

/* ---- death --------------------------------------------------------------------------------- */

static void kill_holder(void)
{
    start(0);
    start(1);
    for (int i = 0; i < 20; i++) {
        assert_status(status_of(0, do_claim), PM_OK);
        assert_status(status_of(1, do_claim), PM_HELD);
        kill_actor(0);
        assert_status(status_of(1, do_look), PM_OK);
        actor_answer claimed = ask(1, do_claim_only, PORT, 0);
        assert_status((pm_status)claimed.status, PM_OK);
        assert_true(claimed.number); /* inherited */
        ask(1, do_release, PORT, 0);
        assert_false(ask(1, do_claim_only, PORT, 0).number); /* it was given back */
        ask(1, do_release, PORT, 0);
        start(0);
    }
}

static void test_a_killed_process_frees_at_once(void **state)
{
    (void)state;
    scene(kill_holder);
}

static void kill_parent(void)
{
    start(0);
    start(1);
    assert_status(status_of(0, do_claim), PM_OK);
    spawn(0, 2); /* does not ask the ledger for anything */
    kill_actor(0);
    assert_status(status_of(1, do_claim), PM_OK);
    ask(2, do_name_yourself, 0, 0); /* it lives */
    kill_actor(2);
}

/* The child has neither the lock's descriptor nor its mapping. */
static void test_a_killed_process_frees_though_its_child_lives(void **state)
{
    (void)state;
    scene(kill_parent);
}

static actor_answer do_exec(const actor_order *order)
{
    (void)order;
    execl("/bin/sleep", "sleep", "100", (char *)NULL);
    return (actor_answer){.status = -1};
}

static void exec_holder(void)
{
    pm_status status = PM_HELD;

    start(0);
    start(1);
    assert_status(status_of(0, do_claim), PM_OK);
    tell(0, do_exec, 0, 0);
    for (int tries = 0; status == PM_HELD && tries < PATIENCE_MS; tries++) {
        status = status_of(1, do_claim);
        usleep(1000);
    }
    assert_status(status, PM_OK);
    kill_actor(0); /* it lived */
}

static void test_exec_frees(void **state)
{
    (void)state;
    scene(exec_holder);
}

/* ---- descriptors --------------------------------------------------------------------------- */

/* Closes everything but the standard ones and the pipes of this actor. */
static actor_answer do_close_all(const actor_order *order)
{
    const actor *self = &actors[order->number];
    int low = self->orders[0], high = self->answers[1];

    if (low > high) {
        low = self->answers[1];
        high = self->orders[0];
    }
    int failed = low > 3 ? (int)syscall(SYS_close_range, 3, low - 1, 0) : 0;
    if (high > low + 1) {
        failed |= (int)syscall(SYS_close_range, low + 1, high - 1, 0);
    }
    failed |= (int)syscall(SYS_close_range, high + 1, ~0u, 0);
    return (actor_answer){.status = failed};
}

static void close_all(void)
{
    start(0);
    start(1);
    assert_status((pm_status)ask(1, do_claim, PORT + 1, 0).status, PM_OK);
    assert_status(status_of(0, do_claim), PM_OK);
    if (ask(0, do_close_all, 0, 0).status != 0) {
        skip_because("this kernel has no close_range");
    }
    assert_status(status_of(1, do_claim), PM_HELD);
    /* It goes on, and is not misled. */
    assert_status((pm_status)ask(0, do_claim_only, PORT + 1, 0).status, PM_HELD);
    assert_status((pm_status)ask(0, do_claim, PORT + 1, 0).status, PM_HELD);
    assert_status((pm_status)ask(0, do_claim, PORT + 2, 0).status, PM_OK);
    assert_status((pm_status)ask(1, do_claim, PORT + 2, 0).status, PM_HELD);
    ask(0, do_close_all, 0, 0);
    ask(0, do_release, PORT, 0); /* nor is a release, which has no check before it */
    assert_status(status_of(1, do_claim), PM_OK);
    assert_status((pm_status)ask(1, do_claim, PORT + 2, 0).status, PM_HELD);
    kill_actor(0);
    assert_status((pm_status)ask(1, do_claim, PORT + 2, 0).status, PM_OK);
}

static void test_holds_outlast_their_descriptors(void **state)
{
    (void)state;
    scene(close_all);
}

/* Puts another file in the place of each descriptor of the ledger: how many were there? */
static unsigned replace_descriptors(int other)
{
    unsigned count = 0;

    for (int fd = 3; fd < 200; fd++) {
        char link[64], target[PATH_MAX];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, target, sizeof target - 1);
        if (length > 0) {
            target[length] = '\0';
            if (strcmp(target, path) == 0) {
                count += dup2(other, fd) == fd;
            }
        }
    }
    return count;
}

/* Claims with a descriptor that became another file's after the check. */
static actor_answer do_claim_misled(const actor_order *order)
{
    pm_name name = {.key = 0};
    pm_claim claim;
    char other[PATH_MAX + 32];
    struct stat status;
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (order->number) { /* a file of the ledger's size */
        snprintf(other, sizeof other, "%s/other", folder);
        close(fd);
        fd = open(other, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (stat(path, &status) < 0 || ftruncate(fd, status.st_size) < 0) {
            return (actor_answer){.status = -1};
        }
    }
    pm_ledger_check();
    unsigned replaced = replace_descriptors(fd);
    close(fd);
    return (actor_answer){.status = (int)pm_ledger_claim(me, order->port, &name, &claim),
                    .number = replaced};
}

static void reuse_descriptor(void)
{
    start(0);
    start(1);
    assert_status(status_of(0, do_claim), PM_OK);
    for (uint64_t as_large = 0; as_large < 2; as_large++) {
        actor_answer misled = ask(1, do_claim_misled, PORT, as_large);
        assert_int_equal(misled.number, 1);
        assert_status((pm_status)misled.status, PM_HELD);
        assert_status(status_of(1, do_claim), PM_HELD);
        assert_status(status_of(1, do_look), PM_HELD);
    }
    /* Those of the one who asked hold, too, and its releases count. */
    assert_status((pm_status)ask(1, do_claim, PORT + 1, 0).status, PM_OK);
    assert_status((pm_status)ask(1, do_claim_misled, PORT, 0).status, PM_HELD);
    assert_status((pm_status)ask(0, do_claim, PORT + 1, 0).status, PM_HELD);
    ask(1, do_release, PORT + 1, 0);
    assert_status((pm_status)ask(0, do_claim, PORT + 1, 0).status, PM_OK);
    assert_false(ask(1, do_notice, 0, 0).number);
}

static void test_a_reused_descriptor_does_not_hide_who_lives(void **state)
{
    (void)state;
    scene(reuse_descriptor);
}

/* ---- forked children ----------------------------------------------------------------------- */

static actor_answer do_look_only(const actor_order *order)
{
    pm_holder holder;
    pm_status status = pm_ledger_look(order->port, &holder);
    return (actor_answer){.status = (int)status, .number = holder};
}

static actor_answer do_give_back_of(const actor_order *order)
{
    pm_ledger_release(order->number, order->port);
    pm_ledger_withdraw(order->number, order->port);
    return (actor_answer){.status = PM_OK};
}

static void start_empty(void)
{
    start(0);
    uint64_t parent = ask(0, do_name_yourself, 0, 0).number;
    assert_status(status_of(0, do_claim), PM_OK);
    spawn(0, 1);
    assert_status(status_of(1, do_look_only), PM_OK); /* it knows of nothing yet */
    ask(1, do_give_back_of, PORT, parent);            /* also before its first check */
    actor_answer child = ask(1, do_claim, PORT, 0);
    assert_status((pm_status)child.status, PM_HELD);
    assert_int_equal(child.number, PM_NOBODY);
    ask(1, do_give_back_of, PORT, parent);
    ask(1, do_release, PORT, 0);
    assert_status(status_of(1, do_claim), PM_HELD);
    start(2);
    assert_status(status_of(2, do_claim), PM_HELD);
    /* Nor the other way round. */
    assert_status((pm_status)ask(1, do_claim, PORT + 1, 0).status, PM_OK);
    assert_status((pm_status)ask(0, do_claim, PORT + 1, 0).status, PM_HELD);
    actor_answer own = ask(0, do_look, PORT, 0);
    assert_status((pm_status)own.status, PM_HELD);
    assert_int_equal(own.number, parent);
}

static void test_a_forked_child_starts_empty(void **state)
{
    (void)state;
    scene(start_empty);
}

static void enroll_child(void)
{
    start(0);
    uint64_t inherited = ask(0, do_name_yourself, 0, 0).number;
    uint64_t second = ask(0, do_enroll, 0, 0).number;
    assert_int_not_equal(second, inherited);
    spawn(0, 1);
    for (int i = 0; i < 10; i++) {
        uint64_t given = i ? ask(1, do_enroll, 0, 0).number : ask(1, do_name_yourself, 0, 0).number;
        assert_int_not_equal(given, PM_NOBODY);
        assert_int_not_equal(given, inherited);
        assert_int_not_equal(given, second);
    }
}

static void test_a_child_does_not_give_its_parents_numbers_again(void **state)
{
    (void)state;
    scene(enroll_child);
}

/* ---- a fork while another thread attaches ---------------------------------------------------- */

static atomic_int go;

static void spin(long nanoseconds)
{
    struct timespec now, begin;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do {
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - begin.tv_sec) * 1000000000 + now.tv_nsec - begin.tv_nsec < nanoseconds);
}

static void *attach_and_claim(void *argument)
{
    static const pm_name nothing;
    pm_claim claim;
    (void)argument;

    while (!atomic_load(&go)) {
    }
    if (pm_ledger_check() == PM_OK) {
        pm_ledger_claim(me, PORT, &nothing, &claim);
    }
    return NULL;
}

/* Number: how long after the other thread's start we fork. The answer's: the child. */
static actor_answer do_fork_while_attaching(const actor_order *order)
{
    pthread_t thread;
    pm_trouble trouble;

    pm_ledger_notice(&trouble); /* does not attach, but is the first call */
    atomic_store(&go, 0);
    if (pthread_create(&thread, NULL, attach_and_claim, NULL) != 0) {
        return (actor_answer){.status = -1};
    }
    usleep(100); /* so that it waits already */
    atomic_store(&go, 1);
    spin((long)order->number);
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    pthread_join(thread, NULL);
    return (actor_answer){.number = (uint64_t)child};
}

static void fork_while_attaching(void)
{
    enum { ROUNDS = 200, LONGEST_NS = 200000 };

    start(1);
    assert_status(status_of(1, do_look), PM_OK);
    for (long i = 0; i < ROUNDS; i++) {
        start(0);
        actor_answer done = ask(0, do_fork_while_attaching, 0, (uint64_t)(i * LONGEST_NS / ROUNDS));
        assert_int_equal(done.status, 0);
        assert_status(status_of(1, do_claim), PM_HELD);
        kill_actor(0);
        pm_status status = status_of(1, do_claim);
        kill((pid_t)done.number, SIGKILL);
        assert_int_equal(waitpid((pid_t)done.number, NULL, 0), done.number);
        assert_status(status, PM_OK);
        ask(1, do_release, PORT, 0);
    }
}

static void test_a_fork_while_a_slot_is_taken_keeps_no_lock(void **state)
{
    (void)state;
    scene(fork_while_attaching);
}

/* ---- slots --------------------------------------------------------------------------------- */

static void use_last_generation(void)
{
    create_with_slots(2);
    pm_ledger_map map = mapped();
    atomic_store(&map.slots[1].generation, PM_GENERATION_MAX);
    atomic_store(&map.slots[2].generation, PM_GENERATION_MAX - 1);

    start(0);
    start(1);
    assert_status(status_of(0, do_claim), PM_OK); /* the last of the second slot */
    assert_false(ask(0, do_notice, 0, 0).number);
    assert_int_equal(atomic_load(&map.slots[1].generation), PM_GENERATION_MAX);
    assert_int_equal(atomic_load(&map.slots[2].generation), PM_GENERATION_MAX);
    assert_int_equal(atomic_load(&map.slots[2].pid), actors[0].pid);
    assert_non_null(strstr(ask(1, do_notice, 0, 0).text, "no slot left"));
    kill_actor(0);
    start(0);
    assert_non_null(strstr(ask(0, do_notice, 0, 0).text, "no slot left"));
    assert_int_equal(atomic_load(&map.slots[1].generation), PM_GENERATION_MAX);
    assert_int_equal(atomic_load(&map.slots[2].generation), PM_GENERATION_MAX);
    pm_ledger_file_unmap(&map);
}

static void test_a_slot_is_retired_after_its_last_generation(void **state)
{
    (void)state;
    scene(use_last_generation);
}

static void share_one_slot(void)
{
    create_with_slots(1);
    pm_ledger_map map = mapped();
    start(0);
    start(1);
    assert_status(status_of(0, do_claim), PM_OK);
    actor_answer said = ask(1, do_notice, 0, 0);
    assert_status((pm_status)said.status, PM_OK);
    assert_true(said.number);
    assert_non_null(strstr(said.text, "no slot left"));
    assert_false(ask(1, do_notice, 0, 0).number); /* once */
    assert_status(status_of(1, do_claim), PM_OK); /* alone */
    assert_status(status_of(1, do_claim), PM_HELD);
    assert_status(status_of(0, do_look), PM_HELD);
    ask(1, do_release, PORT, 0);
    assert_status((pm_status)ask(1, do_claim, PORT + 1, 0).status, PM_OK);

    /* The slot becomes free: the second takes part, with what it holds. */
    kill_actor(0);
    for (int tries = 0; atomic_load(&map.entries[PORT + 1].word) == 0; tries++) {
        assert_in_range(tries, 0, PATIENCE_MS / 20);
        usleep(20000);
        ask(1, do_look, PORT, 0);
    }
    pm_ledger_file_unmap(&map);
}

static void test_who_finds_no_slot_is_alone_until_there_is_one(void **state)
{
    (void)state;
    scene(share_one_slot);
}

/* ---- the first use ------------------------------------------------------------------------- */

static void use_first_at_once(void)
{
    enum { USERS = 8 };
    unsigned winners = 0;

    for (unsigned i = 0; i < USERS; i++) {
        start(i);
    }
    for (unsigned i = 0; i < USERS; i++) {
        tell(i, do_claim, PORT, 0);
    }
    for (unsigned i = 0; i < USERS; i++) {
        actor_answer claimed = heard(i);
        winners += claimed.status == PM_OK;
        assert_true(claimed.status == PM_OK || claimed.status == PM_HELD);
    }
    assert_int_equal(winners, 1);
    assert_int_equal(files_in_folder(), 1);
    for (unsigned i = 0; i < USERS; i++) {
        assert_string_equal(ask(i, do_notice, 0, 0).text, "");
        assert_status((pm_status)ask(i, do_claim, (uint16_t)(PORT + 1 + i), 0).status, PM_OK);
    }
    for (unsigned i = 0; i < USERS; i++) {
        for (unsigned other = 0; other < USERS; other++) {
            assert_status((pm_status)ask(i, do_look, (uint16_t)(PORT + 1 + other), 0).status,
                          PM_HELD);
        }
    }
}

static void test_processes_that_come_first_make_one_file(void **state)
{
    (void)state;
    for (int i = 0; i < 10; i++) {
        scene(use_first_at_once);
        assert_int_equal(unlink(path), 0);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_two_processes_exclude_each_other),
        TEST(test_a_stopped_process_holds),
        TEST(test_a_killed_process_frees_at_once),
        TEST(test_a_killed_process_frees_though_its_child_lives),
        TEST(test_exec_frees),
        TEST(test_holds_outlast_their_descriptors),
        TEST(test_a_reused_descriptor_does_not_hide_who_lives),
        TEST(test_a_forked_child_starts_empty),
        TEST(test_a_child_does_not_give_its_parents_numbers_again),
        TEST(test_a_fork_while_a_slot_is_taken_keeps_no_lock),
        TEST(test_a_slot_is_retired_after_its_last_generation),
        TEST(test_who_finds_no_slot_is_alone_until_there_is_one),
        TEST(test_processes_that_come_first_make_one_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
