/* The ledger between processes: who excludes whom, and what ends a hold. */
#include "actors.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/file.h>

static actor_answer do_enroll(const actor_order *order)
{
    (void)order;
    return (actor_answer){.number = pm_ledger_enroll()};
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
    assert_status(status_at(1, do_claim, PORT + 1), PM_OK);
    assert_status(status_at(0, do_claim, PORT + 1), PM_HELD);

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

static void test_exec_frees(void **state)
{
    (void)state;
    scene(exec_holder);
}

/* ---- descriptors --------------------------------------------------------------------------- */

/* Closes everything but the standard ones and the pipes of this actor. */
static actor_answer do_close_all(const actor_order *order)
{
    const actor *self = &actors[my_number];
    int low = self->orders[0], high = self->answers[1];
    (void)order;

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
    assert_status(status_at(1, do_claim, PORT + 1), PM_OK);
    assert_status(status_of(0, do_claim), PM_OK);
    if (ask(0, do_close_all, 0, 0).status != 0) {
        skip_because("this kernel has no close_range");
    }
    assert_status(status_of(1, do_claim), PM_HELD);
    /* It goes on, and is not misled. */
    assert_status(status_at(0, do_claim_only, PORT + 1), PM_HELD);
    assert_status(status_at(0, do_claim, PORT + 1), PM_HELD);
    assert_status(status_at(0, do_claim, PORT + 2), PM_OK);
    assert_status(status_at(1, do_claim, PORT + 2), PM_HELD);
    ask(0, do_close_all, 0, 0);
    ask(0, do_release, PORT, 0); /* nor is a release, which has no check before it */
    assert_status(status_of(1, do_claim), PM_OK);
    assert_status(status_at(1, do_claim, PORT + 2), PM_HELD);
    kill_actor(0);
    assert_status(status_at(1, do_claim, PORT + 2), PM_OK);
}

static void test_holds_outlast_their_descriptors(void **state)
{
    (void)state;
    scene(close_all);
}

static int count_nameless_files(void)
{
    struct stat status;
    int count = 0;

    for (int fd = 0; fd < 64; fd++) {
        count += fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_nlink == 0;
    }
    return count;
}

/* Loses the file, and has a forked child take part in the next one: the child has our descriptor of
 * the lost one. The answer's: how many such it has then, and we. */
static actor_answer do_lose_the_file_and_fork(const actor_order *order)
{
    int status;

    unlink(path);
    pid_t pid = fork();
    if (pid == 0) {
        pm_holder holder;
        _exit(claim_for(pm_ledger_enroll(), order->port, &holder) == PM_OK ? count_nameless_files()
                                                                           : 100);
    }
    waitpid(pid, &status, 0);
    pm_ledger_check();
    return (actor_answer){.status = WEXITSTATUS(status),
                          .number = (uint64_t)count_nameless_files()};
}

static void leave_inherited_behind(void)
{
    start(0);
    assert_status(status_of(0, do_claim), PM_OK);
    actor_answer nameless = ask(0, do_lose_the_file_and_fork, PORT + 1, 0);
    assert_int_equal(nameless.status, 0);
    assert_int_equal(nameless.number, 0);
}

static void test_no_descriptor_of_a_lost_file_is_kept(void **state)
{
    (void)state;
    scene(leave_inherited_behind);
}

/* A daemon that closes everything, and then may not see the ledger's file any more. */
static actor_answer do_give_up_rights(const actor_order *order)
{
    (void)order;
    return (actor_answer){.status = setgid(65534) < 0 || setuid(65534) < 0};
}

static actor_answer do_change_root(const actor_order *order)
{
    (void)order;
    return (actor_answer){.status = chroot("/proc") < 0 || chdir("/") < 0};
}

static void go_out_of_sight(void)
{
    static const actor_action ways[] = {do_give_up_rights, do_change_root};

    if (geteuid() != 0) {
        skip_because("root alone has rights to give up");
    }
    for (unsigned closing = 0; closing < 2; closing++) {
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
            /* A new one: by whom it was held last, and whether that one lives, cannot be asked. */
            uint16_t another = (uint16_t)(PORT + 10 + 2 * closing + i);
            start(0);
            start(1);
            assert_status(status_at(1, do_claim, PORT + 1), PM_OK);
            assert_status(status_of(0, do_claim), PM_OK);
            assert_status(status_at(0, do_claim, PORT + 3), PM_OK);
            assert_int_equal(closing ? ask(0, do_close_all, 0, 0).status : 0, 0);
            assert_int_equal(ask(0, ways[i], 0, 0).status, 0);
            /* It goes on as before. */
            usleep(2000); /* until the file is asked for by its name again */
            assert_status(status_at(0, do_claim, PORT + 1), PM_HELD);
            assert_status(status_at(0, do_claim, another), PM_OK);
            assert_status(status_at(1, do_claim, another), PM_HELD);
            assert_status(status_of(1, do_claim), PM_HELD);
            ask(0, do_release, PORT, 0);
            assert_status(status_of(1, do_claim), PM_OK);
            assert_status(status_of(0, do_claim), PM_HELD);
            assert_says(0, "");
            kill_actor(0);
            assert_status(status_at(1, do_claim, another), PM_OK);
            assert_status(status_at(1, do_claim, PORT + 3), PM_OK);
            kill_actor(1);
        }
    }
}

static void test_who_cannot_see_the_file_any_more_goes_on(void **state)
{
    (void)state;
    scene(go_out_of_sight);
}

/* And when the file is cut short meanwhile, it is not touched. */
static void cut_out_of_sight(void)
{
    if (geteuid() != 0) {
        skip_because("root alone has rights to give up");
    }
    start(0);
    assert_status(status_at(0, do_claim, 65500), PM_OK);
    assert_int_equal(ask(0, do_close_all, 0, 0).status, 0);
    assert_int_equal(ask(0, do_give_up_rights, 0, 0).status, 0);
    assert_int_equal(truncate(path, 4096), 0);
    ask(0, do_release, 65500, 0);
    assert_int_equal(unlink(path), 0);
    assert_status(status_at(0, do_claim, 65501), PM_OK); /* within the process */
    assert_says(0, "reserved within this process alone");
}

static void test_a_file_that_is_cut_out_of_sight_is_no_signal(void **state)
{
    (void)state;
    scene(cut_out_of_sight);
}

/* The traps of other kinds of locks: any of these would have dropped a record lock. */
static actor_answer do_use_file(const actor_order *order)
{
    struct flock whole = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    static const int modes[] = {O_RDWR, O_RDONLY, O_WRONLY};
    (void)order;

    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        int fd = open(path, modes[i] | O_CLOEXEC), copy = dup(fd);
        if (fd < 0 || copy < 0) {
            return (actor_answer){.status = -1};
        }
        whole.l_type = F_RDLCK;
        fcntl(fd, F_SETLK, &whole);
        whole.l_type = F_UNLCK;
        fcntl(fd, F_SETLK, &whole);
        flock(fd, LOCK_SH | LOCK_NB);
        close(fd);
        close(copy);
    }
    return (actor_answer){.status = 0};
}

static void use_file(void)
{
    start(0);
    start(1);
    assert_status(status_of(0, do_claim), PM_OK);
    for (unsigned user = 0; user < 2; user++) {
        assert_int_equal(ask(user, do_use_file, 0, 0).status, 0);
        assert_status(status_of(1, do_claim), PM_HELD);
    }
    spawn(0, 2); /* a child that did not take part does no harm either */
    assert_int_equal(ask(2, do_use_file, 0, 0).status, 0);
    assert_status(status_of(1, do_claim), PM_HELD);
}

static void test_holds_outlast_other_uses_of_the_file(void **state)
{
    (void)state;
    scene(use_file);
}

/* Puts another file in the place of each descriptor of the ledger: how many were there? */
static unsigned replace_descriptors(int other)
{
    unsigned count = 0;

    for (int fd = 3; fd < 200; fd++) {
        if (is_descriptor_of(fd, path)) {
            count += dup2(other, fd) == fd;
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
    assert_status(status_at(1, do_claim, PORT + 1), PM_OK);
    assert_status((pm_status)ask(1, do_claim_misled, PORT, 0).status, PM_HELD);
    assert_status(status_at(0, do_claim, PORT + 1), PM_HELD);
    ask(1, do_release, PORT + 1, 0);
    assert_status(status_at(0, do_claim, PORT + 1), PM_OK);
    assert_false(ask(1, do_notice, 0, 0).number);
}

static void test_a_reused_descriptor_does_not_hide_who_lives(void **state)
{
    (void)state;
    scene(reuse_descriptor);
}

/* Goes on with another file in the place of the ledger's descriptor. The answer's: where that file
 * is read next. */
static actor_answer do_read_on(const actor_order *order)
{
    static const char text[] = "of another kind";
    char other[PATH_MAX + 32], byte;
    pm_holder holder;

    snprintf(other, sizeof other, "%s/other", folder);
    int fd = open(other, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (write(fd, text, sizeof text) != (ssize_t)sizeof text || lseek(fd, 0, SEEK_SET) != 0 ||
        read(fd, &byte, 1) != 1) {
        return (actor_answer){.status = -1};
    }
    if (order->number) {
        pm_ledger_check();
        replace_descriptors(fd);
        pm_ledger_look(order->port, &holder);
        pm_ledger_check();
    } else {
        replace_descriptors(fd);
        pm_ledger_release(me, order->port);
    }
    return (actor_answer){.number = (uint64_t)lseek(fd, 0, SEEK_CUR)};
}

static void read_other_file(void)
{
    start(0);
    for (int i = 0; i < 20; i++) {
        assert_status(status_of(0, do_claim), PM_OK);
        for (uint64_t checks = 0; checks < 2; checks++) {
            actor_answer at = ask(0, do_read_on, PORT, checks);
            assert_int_equal(at.status, 0);
            assert_int_equal(at.number, 1);
        }
        ask(0, do_release, PORT, 0);
    }
}

static void test_a_reused_descriptor_is_left_as_it_is(void **state)
{
    (void)state;
    scene(read_other_file);
}

/* From now on this actor gets no answer to who has a lock. */
static actor_answer do_ask_nobody(const actor_order *order)
{
    (void)order;
    filter_call(SYS_fcntl, 1, UINT32_MAX, F_OFD_GETLK, SECCOMP_RET_ERRNO | ENOLCK);
    return (actor_answer){.status = PM_OK};
}

/* Nor one by a new descriptor of the file, while it has none. The answer's: does it look held? */
static actor_answer do_claim_without_descriptors(const actor_order *order)
{
    actor_order closing = {.what = do_close_all};
    pm_holder holder;

    pm_ledger_check();
    do_close_all(&closing);
    limit_descriptors(0);
    actor_answer answer = do_claim_only(order);
    answer.number = pm_ledger_look(order->port, &holder) == PM_HELD;
    unlimit_descriptors();
    return answer;
}

static void ask_nobody(void)
{
    start(0);
    start(1);
    assert_status(status_of(0, do_claim), PM_OK);
    assert_status(status_of(1, do_claim), PM_HELD);
    actor_answer answer = ask(1, do_claim_without_descriptors, PORT, 0);
    assert_status((pm_status)answer.status, PM_HELD);
    assert_true(answer.number);
    ask(1, do_ask_nobody, 0, 0);
    assert_status(status_of(1, do_look), PM_HELD);
    assert_status(status_of(1, do_claim), PM_HELD);
    assert_status(status_at(1, do_claim, PORT + 1), PM_OK); /* nobody ever had it */
    assert_status(status_at(0, do_claim, PORT + 1), PM_HELD);
    assert_says(1, "");
}

static void test_who_gets_no_answer_takes_nothing_from_others(void **state)
{
    (void)state;
    scene(ask_nobody);
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
    assert_status(status_at(1, do_claim, PORT + 1), PM_OK);
    assert_status(status_at(0, do_claim, PORT + 1), PM_HELD);
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

/* The lock of a slot's next holder does not bring the last one's holds back. */
static void reuse_slot(void)
{
    create_with_slots(2);
    pm_ledger_map map = mapped();
    start(1);
    start(0);
    assert_status(status_of(1, do_look), PM_OK);
    assert_status(status_of(0, do_claim), PM_OK);
    for (uint32_t generation = 2; generation < 12; generation++) {
        kill_actor(0);
        start(0);
        assert_status(status_at(0, do_claim, PORT + 1), PM_OK);
        assert_int_equal(atomic_load(&map.slots[2].generation), generation);
        actor_answer claimed = ask(1, do_claim, PORT, 0);
        assert_status((pm_status)claimed.status, PM_OK);
        ask(1, do_release, PORT, 0);
        assert_status(status_at(1, do_claim, PORT + 1), PM_HELD);
        assert_status(status_of(0, do_claim), PM_OK);
    }
    pm_ledger_file_unmap(&map);
}

static void test_a_slots_next_holder_has_nothing_of_the_last(void **state)
{
    (void)state;
    scene(reuse_slot);
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
    assert_status(status_at(1, do_claim, PORT + 1), PM_OK);

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_WITH_FOLDER(test_two_processes_exclude_each_other),
        TEST_WITH_FOLDER(test_a_stopped_process_holds),
        TEST_WITH_FOLDER(test_a_killed_process_frees_at_once),
        TEST_WITH_FOLDER(test_a_killed_process_frees_though_its_child_lives),
        TEST_WITH_FOLDER(test_exec_frees),
        TEST_WITH_FOLDER(test_holds_outlast_their_descriptors),
        TEST_WITH_FOLDER(test_no_descriptor_of_a_lost_file_is_kept),
        TEST_WITH_FOLDER(test_who_cannot_see_the_file_any_more_goes_on),
        TEST_WITH_FOLDER(test_a_file_that_is_cut_out_of_sight_is_no_signal),
        TEST_WITH_FOLDER(test_holds_outlast_other_uses_of_the_file),
        TEST_WITH_FOLDER(test_a_reused_descriptor_does_not_hide_who_lives),
        TEST_WITH_FOLDER(test_a_reused_descriptor_is_left_as_it_is),
        TEST_WITH_FOLDER(test_who_gets_no_answer_takes_nothing_from_others),
        TEST_WITH_FOLDER(test_a_forked_child_starts_empty),
        TEST_WITH_FOLDER(test_a_child_does_not_give_its_parents_numbers_again),
        TEST_WITH_FOLDER(test_a_fork_while_a_slot_is_taken_keeps_no_lock),
        TEST_WITH_FOLDER(test_a_slot_is_retired_after_its_last_generation),
        TEST_WITH_FOLDER(test_a_slots_next_holder_has_nothing_of_the_last),
        TEST_WITH_FOLDER(test_who_finds_no_slot_is_alone_until_there_is_one),
    };
    return cmocka_run_group_tests_name("ledger, processes", tests, NULL, NULL);
}
