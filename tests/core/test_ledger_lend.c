/* Lending: who gets a port that is held for the same service, and what is left when one goes. */
#include "support.h"

#include <ftw.h>
#include <poll.h>
#include <stdatomic.h>

#include "core/ledger.h"
#include "core/process.h"

/* Nothing here touches a socket, so any number does. */
enum { PORT = 40000, LAST = PORT + 9, PATIENCE_MS = 20000 };

/* The keys of the names of two services. */
enum { WEB = 11, DATABASE = 22 };

/* Who is whose child, as a rule. */
enum { OWNER, CHILD, GRANDCHILD, SIBLING, STRANGER, HELPER, ACTORS };

/* ---- a ledger for each test ---------------------------------------------------------------- */

static char folder[PATH_MAX], path[PATH_MAX + 16];

static int make_folder(void **state)
{
    char name[] = "/tmp/portmanager-lend-XXXXXX";
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

/* ---- actors: processes that do what they are told ------------------------------------------- */

typedef struct {
    int status;
    uint64_t number;
} actor_answer;

typedef struct actor_order actor_order;
struct actor_order {
    actor_answer (*what)(const actor_order *order); /* the same address in all: they are forked */
    uint16_t port, last;
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

static actor_answer ask_for(unsigned number, actor_answer (*what)(const actor_order *),
                            uint16_t port, uint16_t last, uint64_t argument)
{
    struct pollfd ready = {.fd = actors[number].answers[0], .events = POLLIN};
    actor_order order = {.what = what, .port = port, .last = last, .number = argument};
    actor_answer answer;

    assert_int_equal(write(actors[number].orders[1], &order, sizeof order), sizeof order);
    if (poll(&ready, 1, PATIENCE_MS) != 1) {
        fail_msg("actor %u does not answer", number);
    }
    assert_int_equal(read(ready.fd, &answer, sizeof answer), sizeof answer);
    return answer;
}

static actor_answer ask(unsigned number, actor_answer (*what)(const actor_order *),
                        uint64_t argument)
{
    return ask_for(number, what, PORT, PORT, argument);
}

static actor_answer do_spawn(const actor_order *order)
{
    return (actor_answer){.number = (uint64_t)fork_actor((unsigned)order->number)};
}

static void spawn(unsigned parent, unsigned child)
{
    actors[child].pid = (pid_t)ask(parent, do_spawn, child).number;
    assert_true(actors[child].pid > 0);
}

static actor_answer do_bury(const actor_order *order)
{
    int status;
    return (actor_answer){.number = (uint64_t)waitpid((pid_t)order->number, &status, 0)};
}

/* Kills a child of ours, or of another actor. Whose parent died is ours, too. */
static void kill_actor(unsigned number, int parent)
{
    pid_t pid = actors[number].pid;
    int status;

    assert_int_equal(kill(pid, SIGKILL), 0);
    if (parent < 0) {
        assert_int_equal(waitpid(pid, &status, 0), pid);
    } else {
        assert_int_equal(ask((unsigned)parent, do_bury, (uint64_t)pid).number, pid);
    }
}

enum { OURS = -1 };

/* Runs a test's body where it may have actors. This process takes no part, so it is no kin. */
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
    pm_name name = {.key = order->number, .label = "label"};
    pm_claim claim = {PM_NOBODY, false};
    pm_status status = pm_ledger_check();

    if (status == PM_OK) {
        status = pm_ledger_claim(me, order->port, &name, &claim);
    }
    return (actor_answer){.status = (int)status, .number = claim.holder};
}

static actor_answer do_lend(const actor_order *order)
{
    pm_name name = {.key = order->number};
    uint16_t port = 0;
    pm_status status = pm_ledger_check();

    if (status == PM_OK) {
        pm_ledger_has_kin();
        status = pm_ledger_lend(me, order->port, order->last, &name, &port);
    }
    return (actor_answer){.status = (int)status, .number = port};
}

static actor_answer do_has_kin(const actor_order *order)
{
    (void)order;
    return (actor_answer){.status = (int)pm_ledger_check(), .number = pm_ledger_has_kin()};
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
    pm_holder holder = PM_NOBODY;
    pm_status status = pm_ledger_check();

    if (status == PM_OK) {
        status = pm_ledger_look(order->port, &holder);
    }
    return (actor_answer){.status = (int)status, .number = holder};
}

static actor_answer do_name_yourself(const actor_order *order)
{
    (void)order;
    return (actor_answer){.number = me};
}

static actor_answer do_tell_start(const actor_order *order)
{
    (void)order;
    return (actor_answer){.number = pm_process_self().started};
}

/* The pid that is listed for a port. */
static actor_answer do_list(const actor_order *order)
{
    pm_held_list list;
    pm_status status = pm_ledger_check();

    if (status == PM_OK) {
        status = pm_ledger_list(order->port, order->port, &list);
        uint64_t pid = list.count ? list.items[0].pid : 0;
        pm_held_list_free(&list);
        return (actor_answer){.status = (int)status, .number = pid};
    }
    return (actor_answer){.status = (int)status};
}

static pm_status claimed(unsigned number, uint64_t key)
{
    return (pm_status)ask(number, do_claim, key).status;
}

static pm_status lent(unsigned number, uint64_t key)
{
    return (pm_status)ask(number, do_lend, key).status;
}

/* Whoever is no kin neither gets it nor borrows it. */
static void assert_refused(unsigned stranger)
{
    assert_status(claimed(stranger, WEB), PM_HELD);
    assert_status(lent(stranger, WEB), PM_HELD);
    assert_status((pm_status)ask(stranger, do_look, 0).status, PM_HELD);
}

static void assert_free_for(unsigned stranger)
{
    assert_status((pm_status)ask(stranger, do_look, 0).status, PM_OK);
    assert_status(claimed(stranger, DATABASE), PM_OK);
    ask(stranger, do_release, 0);
}

/* The owner has the port for WEB, and a child; nobody has borrowed it. */
static void set_scene(void)
{
    start(STRANGER);
    start(OWNER);
    assert_status(claimed(OWNER, WEB), PM_OK);
    spawn(OWNER, CHILD);
}

/* ---- to whom ------------------------------------------------------------------------------- */

static void lend_to_child(void)
{
    set_scene();
    assert_true(ask(CHILD, do_has_kin, 0).number);
    assert_false(ask(STRANGER, do_has_kin, 0).number);
    assert_false(ask(OWNER, do_has_kin, 0).number);
    assert_status(claimed(CHILD, WEB), PM_HELD); /* lending is something else */
    assert_refused(STRANGER);

    actor_answer got = ask_for(CHILD, do_lend, PORT - 5, PORT + 5, WEB);
    assert_status((pm_status)got.status, PM_OK);
    assert_int_equal(got.number, PORT);
    actor_answer seen = ask(CHILD, do_look, 0);
    assert_status((pm_status)seen.status, PM_HELD);
    assert_int_equal(seen.number, ask(CHILD, do_name_yourself, 0).number);
    assert_refused(STRANGER);
    assert_int_equal(ask(STRANGER, do_list, 0).number, actors[OWNER].pid);
    assert_int_equal(ask(CHILD, do_list, 0).number, actors[CHILD].pid);
}

static void test_a_child_borrows(void **state)
{
    (void)state;
    scene(lend_to_child);
}

static void lend_first_of_range(void)
{
    static const uint64_t names[] = {DATABASE, 0, WEB, WEB};

    start(OWNER);
    for (uint16_t i = 0; i < 4; i++) {
        uint16_t port = (uint16_t)(PORT + i);
        assert_status((pm_status)ask_for(OWNER, do_claim, port, port, names[i]).status, PM_OK);
    }
    spawn(OWNER, CHILD);
    assert_status((pm_status)ask_for(CHILD, do_lend, PORT, PORT + 1, WEB).status, PM_HELD);
    assert_status((pm_status)ask_for(CHILD, do_lend, PORT + 4, LAST, WEB).status, PM_HELD);
    assert_int_equal(ask_for(CHILD, do_lend, PORT, LAST, WEB).number, PORT + 2);
    assert_int_equal(ask_for(CHILD, do_lend, PORT, LAST, WEB).number, PORT + 3);
    assert_status((pm_status)ask_for(CHILD, do_lend, PORT, LAST, WEB).status, PM_HELD);
    assert_int_equal(ask_for(CHILD, do_lend, PORT, LAST, DATABASE).number, PORT);
}

static void test_the_first_port_of_the_name_is_lent(void **state)
{
    (void)state;
    scene(lend_first_of_range);
}

static void lend_to_grandchild(void)
{
    set_scene();
    spawn(OWNER, SIBLING);
    spawn(CHILD, GRANDCHILD);
    assert_status(lent(CHILD, WEB), PM_OK);
    assert_status(lent(SIBLING, WEB), PM_HELD);
    assert_status(lent(GRANDCHILD, WEB), PM_OK); /* a reloader's child, in its place */
    assert_status(lent(SIBLING, WEB), PM_HELD);
    assert_refused(STRANGER);

    ask(CHILD, do_release, 0); /* it has nothing any more */
    assert_status(lent(SIBLING, WEB), PM_HELD);
    assert_refused(STRANGER);
    kill_actor(CHILD, OWNER);
    assert_status(lent(SIBLING, WEB), PM_HELD);
    ask(GRANDCHILD, do_release, 0);
    assert_refused(STRANGER);
    assert_status(lent(SIBLING, WEB), PM_OK);
}

static void test_a_grandchild_takes_the_heirs_place(void **state)
{
    (void)state;
    scene(lend_to_grandchild);
}

static void lend_past_idle_child(void)
{
    set_scene();
    spawn(CHILD, GRANDCHILD);
    assert_status(lent(GRANDCHILD, WEB), PM_OK); /* the child in between takes no part */
    assert_status(lent(CHILD, WEB), PM_HELD);    /* its parent is not its descendant */
    assert_refused(STRANGER);
}

static void test_a_grandchild_borrows_from_the_owner(void **state)
{
    (void)state;
    scene(lend_past_idle_child);
}

static void lend_to_one(void)
{
    set_scene();
    spawn(OWNER, SIBLING);
    assert_status(lent(CHILD, WEB), PM_OK);
    assert_status(lent(SIBLING, WEB), PM_HELD);
    assert_status(lent(CHILD, WEB), PM_HELD); /* it has it */
    ask(CHILD, do_release, 0);
    assert_status(lent(SIBLING, WEB), PM_OK);
    assert_status(lent(CHILD, WEB), PM_HELD);
    ask(SIBLING, do_withdraw, 0);
    assert_refused(STRANGER);
    assert_status(lent(CHILD, WEB), PM_OK);
    kill_actor(CHILD, OWNER);
    assert_refused(STRANGER);
    assert_status(lent(SIBLING, WEB), PM_OK);
}

static void test_there_is_one_heir_at_a_time(void **state)
{
    (void)state;
    scene(lend_to_one);
}

static void appear_late(void)
{
    start(STRANGER);
    start(OWNER);
    spawn(OWNER, CHILD);
    assert_false(ask(CHILD, do_has_kin, 0).number);
    assert_status(lent(CHILD, WEB), PM_HELD);
    assert_status(claimed(OWNER, WEB), PM_OK);
    assert_true(ask(CHILD, do_has_kin, 0).number);
    assert_status(lent(CHILD, WEB), PM_OK);
}

static void test_an_ancestor_that_comes_later_is_known(void **state)
{
    (void)state;
    scene(appear_late);
}

static void hold_already(void)
{
    start(OWNER);
    spawn(OWNER, CHILD);
    assert_status(claimed(CHILD, WEB), PM_OK);
    assert_status(claimed(OWNER, WEB), PM_HELD);
    assert_status(lent(CHILD, WEB), PM_HELD);
    assert_status(lent(OWNER, WEB), PM_HELD); /* nor to a parent */
    ask(CHILD, do_release, 0);
    assert_status(claimed(OWNER, WEB), PM_OK);
    assert_status(lent(OWNER, WEB), PM_HELD);
    assert_status(lent(CHILD, WEB), PM_OK);
    uint64_t holder = ask(CHILD, do_look, 0).number;
    assert_status(lent(CHILD, WEB), PM_HELD);
    assert_int_equal(ask(CHILD, do_look, 0).number, holder);
}

static void test_a_holder_of_this_process_refuses(void **state)
{
    (void)state;
    scene(hold_already);
}

/* ---- for which name ------------------------------------------------------------------------ */

static void use_other_name(void)
{
    set_scene();
    assert_status(lent(CHILD, DATABASE), PM_HELD);
    assert_status(lent(CHILD, WEB), PM_OK);
    ask(CHILD, do_release, 0);

    ask(OWNER, do_release, 0); /* given back: there is nothing to be lent */
    assert_status(lent(CHILD, WEB), PM_HELD);
    assert_status((pm_status)ask(CHILD, do_look, 0).status, PM_OK);

    assert_status(claimed(OWNER, DATABASE), PM_OK);
    assert_status(lent(CHILD, WEB), PM_HELD);
    assert_status(lent(CHILD, DATABASE), PM_HELD); /* under one name for a process's life */
    spawn(OWNER, SIBLING);
    assert_status(lent(SIBLING, DATABASE), PM_OK);
    assert_refused(STRANGER);
}

static void test_another_name_borrows_nothing(void **state)
{
    (void)state;
    scene(use_other_name);
}

static void use_no_name(void)
{
    start(STRANGER);
    start(OWNER);
    assert_status(claimed(OWNER, 0), PM_OK);
    spawn(OWNER, CHILD);
    assert_true(ask(CHILD, do_has_kin, 0).number);
    assert_status(lent(CHILD, 0), PM_HELD);
    assert_status(lent(CHILD, WEB), PM_HELD);
    ask(OWNER, do_release, 0);
    assert_status(claimed(OWNER, WEB), PM_OK);
    assert_status(lent(CHILD, 0), PM_HELD);
    assert_status(lent(CHILD, WEB), PM_OK);
    ask(CHILD, do_release, 0);
    ask(OWNER, do_release, 0);
    assert_status(claimed(OWNER, 0), PM_OK); /* the old name went */
    spawn(OWNER, SIBLING);
    assert_status(lent(SIBLING, WEB), PM_HELD);
}

static void test_what_has_no_name_is_not_lent(void **state)
{
    (void)state;
    scene(use_no_name);
}

/* ---- who goes first ------------------------------------------------------------------------ */

static void kill_owner(void)
{
    set_scene();
    spawn(CHILD, GRANDCHILD);
    assert_status(lent(CHILD, WEB), PM_OK);
    kill_actor(OWNER, OURS);
    assert_refused(STRANGER);
    assert_int_equal(ask(STRANGER, do_list, 0).number, actors[CHILD].pid);
    assert_status(lent(GRANDCHILD, WEB), PM_OK); /* from the heir */
    assert_refused(STRANGER);
    kill_actor(CHILD, OURS);
    assert_refused(STRANGER);
    kill_actor(GRANDCHILD, OURS);
    assert_free_for(STRANGER);
}

static void test_the_heir_holds_when_the_owner_is_dead(void **state)
{
    (void)state;
    scene(kill_owner);
}

static void release_owner_first(void)
{
    set_scene();
    assert_status(lent(CHILD, WEB), PM_OK);
    ask(OWNER, do_release, 0);
    assert_refused(STRANGER);
    assert_status(claimed(OWNER, WEB), PM_HELD);
    assert_int_equal(ask(STRANGER, do_list, 0).number, actors[CHILD].pid);
    ask(CHILD, do_release, 0);
    assert_free_for(STRANGER);
}

static void test_the_owners_release_leaves_the_heirs_half(void **state)
{
    (void)state;
    scene(release_owner_first);
}

static void withdraw_owner_first(void)
{
    set_scene();
    assert_status(lent(CHILD, WEB), PM_OK);
    ask(OWNER, do_withdraw, 0);
    assert_refused(STRANGER);
    kill_actor(CHILD, OWNER);
    assert_free_for(STRANGER);
}

static void test_the_owners_withdrawal_leaves_the_heirs_half(void **state)
{
    (void)state;
    scene(withdraw_owner_first);
}

static void release_heir_first(void)
{
    set_scene();
    for (int i = 0; i < 3; i++) {
        assert_status(lent(CHILD, WEB), PM_OK);
        ask(CHILD, i % 2 ? do_withdraw : do_release, 0);
        assert_status((pm_status)ask(CHILD, do_look, 0).status, PM_HELD);
        assert_int_equal(ask(CHILD, do_look, 0).number, PM_NOBODY);
        assert_refused(STRANGER);
    }
    assert_int_equal(ask(OWNER, do_look, 0).number, ask(OWNER, do_name_yourself, 0).number);
    ask(OWNER, do_release, 0);
    assert_free_for(STRANGER);
}

static void test_the_heirs_release_leaves_the_owners_half(void **state)
{
    (void)state;
    scene(release_heir_first);
}

static void lose_owner(void)
{
    set_scene();
    assert_true(ask(CHILD, do_has_kin, 0).number);
    kill_actor(OWNER, OURS);
    assert_status(lent(CHILD, WEB), PM_HELD); /* what it knew of its kin is old */
    assert_status(claimed(STRANGER, WEB), PM_OK);
    assert_status(lent(CHILD, WEB), PM_HELD);
    assert_false(ask(CHILD, do_has_kin, 0).number && lent(CHILD, WEB) == PM_OK);
    assert_status(claimed(CHILD, WEB), PM_HELD);
    ask(STRANGER, do_release, 0);
    assert_status(claimed(CHILD, WEB), PM_OK); /* as everybody's */
}

static void test_a_dead_owner_lends_nothing(void **state)
{
    (void)state;
    scene(lose_owner);
}

/* ---- what may be read in between ------------------------------------------------------------ */

/* OWNER claims the port after its child HELPER died, who had it for WEB. Until the claim's own tag
 * is there, a child of HELPER's, who is kin of OWNER, too, reads HELPER's. */
static void read_old_tag(void)
{
    start(STRANGER);
    start(OWNER);
    assert_status((pm_status)ask_for(OWNER, do_claim, LAST, LAST, DATABASE).status, PM_OK);
    spawn(OWNER, HELPER);
    assert_status(claimed(HELPER, WEB), PM_OK);
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
    pm_ledger_map map = mapped();
    uint64_t old = atomic_load(&map.entries[PORT].tag);
    assert_int_not_equal(old, 0);
    kill_actor(HELPER, OWNER);
    spawn(OWNER, CHILD);

    assert_status(claimed(OWNER, DATABASE), PM_OK);
    uint64_t mine = atomic_exchange(&map.entries[PORT].tag, old);
    assert_int_not_equal(mine, old);
    assert_status(lent(CHILD, WEB), PM_HELD);
    assert_status(lent(CHILD, DATABASE), PM_HELD);
    atomic_store(&map.entries[PORT].tag, mine);
    assert_status(lent(CHILD, WEB), PM_HELD);
    assert_status(lent(CHILD, DATABASE), PM_OK);
    pm_ledger_file_unmap(&map);
}

static void test_a_dead_owners_tag_matches_nobody_elses(void **state)
{
    (void)state;
    scene(read_old_tag);
}

/* The owner's own last claim was for another name: its tag must be gone before the word is. */
static void claim_anew(void)
{
    set_scene();
    pm_ledger_map map = mapped();
    uint64_t web = atomic_load(&map.entries[PORT].tag);
    ask(OWNER, do_release, 0);
    assert_int_equal(atomic_load(&map.entries[PORT].tag), web); /* the heir's may need it */
    assert_status(claimed(OWNER, DATABASE), PM_OK);
    assert_int_not_equal(atomic_load(&map.entries[PORT].tag), web);
    assert_status(lent(CHILD, WEB), PM_HELD);
    ask(OWNER, do_release, 0);
    assert_status(claimed(OWNER, WEB), PM_OK);
    assert_int_equal(atomic_load(&map.entries[PORT].tag), web);
    assert_status(lent(CHILD, WEB), PM_OK);
    pm_ledger_file_unmap(&map);
}

static void test_a_claim_for_another_name_has_another_tag(void **state)
{
    (void)state;
    scene(claim_anew);
}

/* The record of a process that is dead says that it was an ancestor. */
static void dress_up_dead(void)
{
    start(HELPER);
    start(STRANGER);
    assert_status(claimed(HELPER, WEB), PM_OK);
    pm_ledger_map map = mapped();
    uint32_t slot = (uint32_t)(atomic_load(&map.entries[PORT].word) >> 52);
    assert_int_equal(atomic_load(&map.slots[slot].pid), actors[HELPER].pid);

    start(OWNER); /* takes no part */
    spawn(OWNER, CHILD);
    uint64_t started = ask(OWNER, do_tell_start, 0).number;
    kill_actor(HELPER, OURS);
    atomic_store(&map.slots[slot].pid, (uint32_t)actors[OWNER].pid);
    atomic_store(&map.slots[slot].started, started);
    assert_false(ask(CHILD, do_has_kin, 0).number);
    assert_status(lent(CHILD, WEB), PM_HELD);
    assert_status((pm_status)ask(CHILD, do_look, 0).status, PM_OK);

    /* With the lock it would be. */
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct flock lock = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)slot, .l_len = 1};
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
    spawn(OWNER, SIBLING);
    assert_true(ask(SIBLING, do_has_kin, 0).number);
    assert_status(lent(SIBLING, WEB), PM_OK);
    close(fd);
    pm_ledger_file_unmap(&map);
}

static void test_a_dead_slot_is_nobodys_kin(void **state)
{
    (void)state;
    scene(dress_up_dead);
}

/* The pid is an ancestor's, but it began at another time. */
static void reuse_pid(void)
{
    set_scene();
    pm_ledger_map map = mapped();
    uint32_t slot = (uint32_t)(atomic_load(&map.entries[PORT].word) >> 52);
    uint64_t started = atomic_fetch_add(&map.slots[slot].started, 1);
    assert_false(ask(CHILD, do_has_kin, 0).number);
    assert_status(lent(CHILD, WEB), PM_HELD);
    atomic_store(&map.slots[slot].started, started);
    spawn(OWNER, SIBLING);
    assert_status(lent(SIBLING, WEB), PM_OK);

    /* Known as kin before, but the slot has another holder since. */
    ask(SIBLING, do_release, 0);
    atomic_fetch_add(&map.slots[slot].started, 1);
    assert_status(lent(SIBLING, WEB), PM_HELD);
    pm_ledger_file_unmap(&map);
}

static void test_a_reused_pid_is_no_kin(void **state)
{
    (void)state;
    scene(reuse_pid);
}

/* ---- a ledger that is replaced -------------------------------------------------------------- */

/* Owner and heir put their halves back in either order. */
static void replace_ledger(unsigned first, unsigned second)
{
    set_scene();
    assert_status(lent(CHILD, WEB), PM_OK);
    assert_int_equal(unlink(path), 0);
    ask(first, do_look, 0);
    assert_refused(STRANGER);
    ask(second, do_look, 0);
    assert_refused(STRANGER);
    spawn(OWNER, SIBLING);
    assert_status(lent(SIBLING, WEB), PM_HELD);
    ask(OWNER, do_release, 0);
    assert_refused(STRANGER);
    ask(CHILD, do_release, 0);
    assert_free_for(STRANGER);
}

static void replace_owner_first(void)
{
    replace_ledger(OWNER, CHILD);
}

static void replace_heir_first(void)
{
    replace_ledger(CHILD, OWNER);
}

static void test_both_halves_come_back_the_owners_first(void **state)
{
    (void)state;
    scene(replace_owner_first);
}

static void test_both_halves_come_back_the_heirs_first(void **state)
{
    (void)state;
    scene(replace_heir_first);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_child_borrows),
        TEST(test_the_first_port_of_the_name_is_lent),
        TEST(test_a_grandchild_takes_the_heirs_place),
        TEST(test_a_grandchild_borrows_from_the_owner),
        TEST(test_there_is_one_heir_at_a_time),
        TEST(test_an_ancestor_that_comes_later_is_known),
        TEST(test_a_holder_of_this_process_refuses),
        TEST(test_another_name_borrows_nothing),
        TEST(test_what_has_no_name_is_not_lent),
        TEST(test_the_heir_holds_when_the_owner_is_dead),
        TEST(test_the_owners_release_leaves_the_heirs_half),
        TEST(test_the_owners_withdrawal_leaves_the_heirs_half),
        TEST(test_the_heirs_release_leaves_the_owners_half),
        TEST(test_a_dead_owner_lends_nothing),
        TEST(test_a_dead_owners_tag_matches_nobody_elses),
        TEST(test_a_claim_for_another_name_has_another_tag),
        TEST(test_a_dead_slot_is_nobodys_kin),
        TEST(test_a_reused_pid_is_no_kin),
        TEST(test_both_halves_come_back_the_owners_first),
        TEST(test_both_halves_come_back_the_heirs_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
