/* Tests of the ledger between processes: a folder for each test, and actors, which are processes
 * that do what they are told. */
#ifndef PM_TEST_ACTORS_H
#define PM_TEST_ACTORS_H

#include "support.h"

#include <ftw.h>
#include <poll.h>
#include <sys/stat.h>
#include <time.h>

#include "core/ledger.h"

/* Nothing but the ledger knows the ports here, so any number does. */
enum { PORT = 40000, ACTORS = 12, PATIENCE_MS = 20000 };

/* ---- a ledger for each test ---------------------------------------------------------------- */

static char folder[PATH_MAX], path[PATH_MAX + 16];

static inline int make_folder(void **state)
{
    char name[] = "/tmp/portmanager-actors-XXXXXX";
    (void)state;

    if (!mkdtemp(name) || !realpath(name, folder)) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/ledger", folder);
    return setenv("PORTMANAGER_LEDGER", path, 1);
}

static inline int remove_one(const char *name, const struct stat *status, int type,
                             struct FTW *walk)
{
    (void)status, (void)type, (void)walk;
    return remove(name);
}

static inline int remove_folder(void **state)
{
    (void)state;
    return nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

#define TEST_WITH_FOLDER(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

/* How many files a folder has, hidden ones included. */
static inline size_t files_in(const char *name)
{
    DIR *directory = opendir(name);
    size_t count = 0;

    assert_non_null(directory);
    for (const struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    }
    closedir(directory);
    return count;
}

/* The file as it is, without taking part. */
static inline pm_ledger_map mapped(void)
{
    pm_ledger_map map;
    pm_trouble trouble;
    int fd;

    assert_status(pm_ledger_file_open(path, &map, &fd, &trouble), PM_OK);
    close(fd);
    return map;
}

static inline void create_with_slots(uint32_t slots)
{
    pm_trouble trouble;
    assert_status(pm_ledger_file_create(path, slots, &trouble), PM_OK);
}

/* ---- actors -------------------------------------------------------------------------------- */

typedef struct {
    int status;
    uint64_t number;
    char text[256];
} actor_answer;

typedef struct actor_order actor_order;
typedef actor_answer (*actor_action)(const actor_order *order);
struct actor_order {
    actor_action what; /* the same address in all, for they are forked */
    uint16_t port;
    uint64_t number;
};

typedef struct {
    pid_t pid;
    int parent; /* an actor, or NO_ACTOR: the scene's process */
    int orders[2], answers[2];
} actor;

enum { NO_ACTOR = -1 };

static actor actors[ACTORS];
static unsigned my_number; /* which actor this process is */
static pm_holder me;       /* its holder */

static inline _Noreturn void act(unsigned self)
{
    actor_order order;

    is_child = true;
    alarm(CHILD_SECONDS);
    for (unsigned i = 0; i < ACTORS; i++) {
        close(actors[i].orders[1]); /* so that all end with the test */
    }
    my_number = self;
    me = pm_ledger_enroll();
    while (read(actors[self].orders[0], &order, sizeof order) == (ssize_t)sizeof order) {
        actor_answer answer = order.what(&order);
        if (write(actors[self].answers[1], &answer, sizeof answer) != (ssize_t)sizeof answer) {
            break;
        }
    }
    _exit(0);
}

static inline pid_t fork_actor(unsigned number)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        act(number);
    }
    return pid;
}

static inline void start(unsigned number)
{
    actors[number].pid = fork_actor(number);
    actors[number].parent = NO_ACTOR;
    assert_true(actors[number].pid > 0);
}

static inline void tell(unsigned number, actor_action what, uint16_t port, uint64_t argument)
{
    actor_order order = {.what = what, .port = port, .number = argument};
    assert_int_equal(write(actors[number].orders[1], &order, sizeof order), sizeof order);
}

static inline actor_answer heard(unsigned number)
{
    struct pollfd ready = {.fd = actors[number].answers[0], .events = POLLIN};
    actor_answer answer;

    if (poll(&ready, 1, PATIENCE_MS) != 1) {
        fail_msg("actor %u does not answer", number);
    }
    assert_int_equal(read(ready.fd, &answer, sizeof answer), sizeof answer);
    return answer;
}

static inline actor_answer ask(unsigned number, actor_action what, uint16_t port, uint64_t argument)
{
    tell(number, what, port, argument);
    return heard(number);
}

static inline pm_status status_at(unsigned number, actor_action what, uint16_t port)
{
    return (pm_status)ask(number, what, port, 0).status;
}

static inline pm_status status_of(unsigned number, actor_action what)
{
    return status_at(number, what, PORT);
}

/* An actor's child is another actor. */
static inline actor_answer do_spawn(const actor_order *order)
{
    return (actor_answer){.number = (uint64_t)fork_actor((unsigned)order->number)};
}

static inline void spawn(unsigned parent, unsigned child)
{
    actors[child].pid = (pid_t)ask(parent, do_spawn, 0, child).number;
    actors[child].parent = (int)parent;
    assert_true(actors[child].pid > 0);
}

static inline actor_answer do_reap(const actor_order *order)
{
    int status = 0;
    pid_t pid = waitpid((pid_t)order->number, &status, 0);
    return (actor_answer){.status = status, .number = (uint64_t)pid};
}

/* Dead, and what it had is closed. */
static inline void kill_actor(unsigned number)
{
    actor_order reaping = {.number = (uint64_t)actors[number].pid};
    int parent = actors[number].parent;

    assert_int_equal(kill(actors[number].pid, SIGKILL), 0);
    actor_answer dead =
        parent == NO_ACTOR ? do_reap(&reaping) : ask((unsigned)parent, do_reap, 0, reaping.number);
    assert_int_equal(dead.number, actors[number].pid);
    assert_true(WIFSIGNALED(dead.status));
    for (unsigned i = 0; i < ACTORS; i++) {
        if (actors[i].parent == (int)number) {
            actors[i].parent = NO_ACTOR; /* for the scene's process is the subreaper */
        }
    }
}

/* Runs a test's body where it may have actors. */
static inline void run_scene(void *body)
{
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (unsigned i = 0; i < ACTORS; i++) {
        actors[i].parent = NO_ACTOR;
        assert_int_equal(pipe2(actors[i].orders, O_CLOEXEC), 0);
        assert_int_equal(pipe2(actors[i].answers, O_CLOEXEC), 0);
    }
    (*(void (**)(void))body)();
    for (unsigned i = 0; i < ACTORS; i++) {
        close(actors[i].orders[1]);
    }
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR) { /* all are gone before the next scene */
    }
}

static inline void scene(void (*body)(void))
{
    in_child(run_scene, &body);
}

/* ---- what all may be told ------------------------------------------------------------------- */

/* `number` is the key of the name. The answer's: who of the actor's process has it else. */
static inline actor_answer do_claim(const actor_order *order)
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

/* Without a check, as whoever checked a moment ago does. The answer's: inherited? */
static inline actor_answer do_claim_only(const actor_order *order)
{
    pm_name name = {.key = 0};
    pm_claim claim;
    pm_status status = pm_ledger_claim(me, order->port, &name, &claim);
    return (actor_answer){.status = (int)status, .number = claim.inherited};
}

static inline actor_answer do_release(const actor_order *order)
{
    pm_ledger_release(me, order->port);
    return (actor_answer){.status = PM_OK};
}

static inline actor_answer do_withdraw(const actor_order *order)
{
    pm_ledger_withdraw(me, order->port);
    return (actor_answer){.status = PM_OK};
}

static inline actor_answer do_look(const actor_order *order)
{
    pm_holder holder;
    pm_status status = pm_ledger_check();

    if (status == PM_OK) {
        status = pm_ledger_look(order->port, &holder);
        return (actor_answer){.status = (int)status, .number = holder};
    }
    return (actor_answer){.status = (int)status};
}

/* The answer's: is there one? and its text. */
static inline actor_answer do_notice(const actor_order *order)
{
    pm_trouble trouble = {{0}};
    actor_answer answer = {.status = (int)pm_ledger_check()};

    (void)order;
    answer.number = pm_ledger_notice(&trouble);
    snprintf(answer.text, sizeof answer.text, "%.*s", (int)sizeof answer.text - 1, trouble.text);
    return answer;
}

static inline actor_answer do_name_yourself(const actor_order *order)
{
    (void)order;
    return (actor_answer){.number = me};
}

static inline actor_answer do_exec(const actor_order *order)
{
    (void)order;
    execl("/bin/sleep", "sleep", "100", (char *)NULL);
    return (actor_answer){.status = -1};
}

/* A holder that becomes another program holds no more. */
static inline void exec_holder(void)
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

/* The actor says something that has `text` in it, and nothing more; "" stands for nothing. */
static inline void assert_says(unsigned number, const char *text)
{
    actor_answer said = ask(number, do_notice, 0, 0);

    assert_status((pm_status)said.status, PM_OK);
    if (!strstr(said.text, text) || (*text == '\0' && said.number)) {
        fail_msg("actor %u says \"%s\", expected \"%s\"", number, said.text, text);
    }
    assert_false(ask(number, do_notice, 0, 0).number);
}

#endif
