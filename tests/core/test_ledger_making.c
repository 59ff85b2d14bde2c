/* How the ledger's file comes to be: one for all who come at once, whole before it has its name, and
 * nothing beside it. */
#include "actors.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- with a file that has no name, or with a temporary name ------------------------------------ */

static bool can_make_unnamed_files(void)
{
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0;
}

static void need_unnamed_files(void)
{
    if (!can_make_unnamed_files()) {
        skip_because("this file system has no files without a name");
    }
}

static void refuse_unnamed_files(int error)
{
    enum { TMPFILE_ALONE = O_TMPFILE & ~O_DIRECTORY };
    filter_call(SYS_openat, 2, TMPFILE_ALONE, TMPFILE_ALONE, SECCOMP_RET_ERRNO | (uint32_t)error);
}

/* As where there is no /proc: an unnamed file cannot get its name. */
static void refuse_naming(void)
{
    filter_call(SYS_linkat, 4, AT_SYMLINK_FOLLOW, AT_SYMLINK_FOLLOW, SECCOMP_RET_ERRNO | ENOENT);
}

static void forbid_temporary_names(void)
{
    filter_call(SYS_openat, 2, O_EXCL, O_EXCL, SECCOMP_RET_KILL_PROCESS);
}

static void as_it_is(void)
{
}

static void without_unnamed_files(void)
{
    refuse_unnamed_files(EOPNOTSUPP); /* NFS, FAT */
}

static void with_an_old_kernel(void)
{
    refuse_unnamed_files(EISDIR); /* before Linux 3.11 */
}

static void without_proc(void)
{
    need_unnamed_files();
    refuse_naming();
}

/* Two ways to make a file, and why the second is gone. */
static void (*const circumstances[])(void) = {as_it_is, without_unnamed_files, with_an_old_kernel,
                                              without_proc};
static void (*circumstance)(void);

static void make_one(void)
{
    struct stat status;

    circumstance();
    umask(0777);
    start(0);
    start(1);
    assert_status(status_of(0, do_claim), PM_OK);
    assert_status(status_of(1, do_claim), PM_HELD);
    assert_says(0, "");
    assert_says(1, "");
    assert_int_equal(files_in(folder), 1);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode, S_IFREG | 0600);
    assert_int_equal(status.st_nlink, 1);
    assert_true(status.st_blocks * 512 >= status.st_size); /* no holes */
}

static void test_each_way_makes_one_file(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(circumstances); i++) {
        circumstance = circumstances[i];
        scene(make_one);
        assert_int_equal(unlink(path), 0);
    }
}

static void make_without_temporary_names(void)
{
    need_unnamed_files();
    forbid_temporary_names();
    start(0);
    assert_status(status_of(0, do_claim), PM_OK);
    assert_says(0, "");
    assert_int_equal(files_in(folder), 1);
}

static void test_no_temporary_name_where_there_is_a_better_way(void **state)
{
    (void)state;
    scene(make_without_temporary_names);
}

static void die_before_naming(void)
{
    int status;

    need_unnamed_files();
    start(0);
    filter_call(SYS_linkat, 0, 0, 0, SECCOMP_RET_KILL_PROCESS);
    start(1);
    tell(1, do_claim, PORT, 0);
    assert_int_equal(waitpid(actors[1].pid, &status, 0), actors[1].pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(files_in(folder), 0);
    assert_status(status_of(0, do_claim), PM_OK); /* as if nothing had been */
    assert_says(0, "");
}

static void test_who_dies_while_making_leaves_nothing(void **state)
{
    (void)state;
    scene(die_before_naming);
}

/* A file in the way of the temporary one. */
static actor_answer do_plant_temporary(const actor_order *order)
{
    char name[PATH_MAX + 32];
    (void)order;

    snprintf(name, sizeof name, "%s.%d", path, (int)getpid());
    int fd = open(name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    return (actor_answer){.status = close(fd)};
}

static void find_leftover(void)
{
    without_unnamed_files();
    start(0);
    start(1);
    assert_int_equal(ask(0, do_plant_temporary, 0, 0).status, 0);
    assert_status(status_of(0, do_claim), PM_OK);
    assert_says(0, "");
    assert_status(status_of(1, do_claim), PM_HELD);
    assert_int_equal(files_in(folder), 1);
}

static void test_the_leftover_of_one_who_died_is_not_in_the_way(void **state)
{
    (void)state;
    scene(find_leftover);
}

/* ---- at once ----------------------------------------------------------------------------------- */

static void use_first_at_once(void)
{
    enum { USERS = 8 };
    unsigned winners = 0;

    circumstance();
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
    assert_int_equal(files_in(folder), 1);
    for (unsigned i = 0; i < USERS; i++) {
        assert_says(i, "");
        assert_status(status_at(i, do_claim, (uint16_t)(PORT + 1 + i)), PM_OK);
    }
    for (unsigned i = 0; i < USERS; i++) {
        for (unsigned other = 0; other < USERS; other++) {
            assert_status(status_at(i, do_look, (uint16_t)(PORT + 1 + other)), PM_HELD);
        }
    }
}

static void test_processes_that_come_first_make_one_file(void **state)
{
    (void)state;
    for (int round = 0; round < 5; round++) {
        for (size_t i = 0; i < COUNT(circumstances); i++) {
            circumstance = circumstances[i];
            scene(use_first_at_once);
            assert_int_equal(unlink(path), 0);
        }
    }
}

/* ---- where none can be made --------------------------------------------------------------------- */

/* Claims hold within the process, and why is said once. */
static void assert_alone(const char *text)
{
    for (unsigned i = 0; i < 2; i++) {
        assert_status(status_of(i, do_claim), PM_OK);
        assert_status(status_of(i, do_claim), PM_HELD);
        assert_says(i, text);
        assert_says(i, "");
        ask(i, do_release, PORT, 0);
        assert_status(status_of(i, do_look), PM_OK);
    }
}

static void exceed_file_size(void)
{
    struct rlimit limit = {.rlim_cur = 1 << 20, .rlim_max = 1 << 20};

    circumstance();
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    signal(SIGXFSZ, SIG_IGN); /* as Python has it; else it is the end of whoever writes */
    start(0);
    start(1);
    assert_alone("File too large");
    assert_int_equal(files_in(folder), 0);
}

static void test_a_limit_of_file_sizes_is_said(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        circumstance = circumstances[i];
        scene(exceed_file_size);
    }
}

static void want_a_readable_folder(void)
{
    if (geteuid() == 0) {
        assert_int_equal(chmod(folder, 0755), 0);
    }
}

static void make_in_others_folder(void)
{
    want_a_readable_folder();
    assert_int_equal(chmod(folder, 0555), 0);
    become_nobody();
    start(0);
    start(1);
    assert_alone("Permission denied");
    assert_int_equal(files_in(folder), 0);
}

static void open_others_file(void)
{
    want_a_readable_folder();
    create_with_slots(31);
    assert_int_equal(chmod(path, 0444), 0);
    become_nobody();
    start(0);
    start(1);
    assert_alone("Permission denied");
}

static void test_what_a_user_may_not_write_is_said(void **state)
{
    (void)state;
    scene(make_in_others_folder);
    assert_int_equal(chmod(folder, 0700), 0);
    scene(open_others_file);
}

/* Whose file it is does not matter where the administrator names it. */
static void share_others_file(void)
{
    if (geteuid() != 0) {
        skip_because("this user cannot be another one");
    }
    want_a_readable_folder();
    create_with_slots(31);
    assert_int_equal(chmod(path, 0666), 0);
    start(0);
    assert_status(status_of(0, do_claim), PM_OK);
    become_nobody();
    start(1);
    assert_status(status_of(1, do_claim), PM_HELD);
    assert_status(status_at(1, do_claim, PORT + 1), PM_OK);
    assert_status(status_at(0, do_claim, PORT + 1), PM_HELD);
    assert_says(0, "");
    assert_says(1, "");
}

static void test_two_users_may_share_a_file_that_is_named(void **state)
{
    (void)state;
    scene(share_others_file);
}

/* ---- without descriptors ------------------------------------------------------------------------ */

static actor_answer do_check_without_descriptors(const actor_order *order)
{
    pm_status first, second;

    limit_descriptors((unsigned)order->number);
    first = pm_ledger_check();
    second = pm_ledger_check();
    unlimit_descriptors();
    return (actor_answer){.status = (int)first, .number = (uint64_t)second};
}

/* Where it is told, the process is not alone for it: it is told again. */
static void check_without_descriptors(unsigned spare, pm_status expected)
{
    actor_answer answer = ask(0, do_check_without_descriptors, 0, spare);
    assert_status((pm_status)answer.status, expected);
    assert_status((pm_status)answer.number, expected);
}

static void make_without_descriptors(void)
{
    start(1);
    for (unsigned spare = 0; spare < 2; spare++) {
        start(0);
        check_without_descriptors(spare, PM_EXHAUSTED);
        assert_status(status_of(0, do_claim), PM_OK);
        assert_says(0, "");
        assert_status(status_of(1, do_claim), PM_HELD);
        kill_actor(0);
    }
}

static void lose_without_descriptors(void)
{
    start(0);
    start(1);
    for (unsigned spare = 0; spare < 2; spare++) {
        assert_status(status_at(0, do_claim, (uint16_t)(PORT + spare)), PM_OK);
        assert_int_equal(unlink(path), 0);
        /* It takes two, and the one of the lost file is given up. */
        check_without_descriptors(spare, spare == 0 ? PM_EXHAUSTED : PM_OK);
        assert_status(status_of(0, do_look), PM_HELD);
        assert_says(0, "");
        assert_status(status_of(1, do_claim), PM_HELD);
        assert_status(status_at(1, do_claim, (uint16_t)(PORT + spare)), PM_HELD);
    }
}

static void test_out_of_descriptors_is_told_each_time(void **state)
{
    (void)state;
    scene(make_without_descriptors);
}

static void test_out_of_descriptors_is_told_when_the_file_is_lost(void **state)
{
    (void)state;
    scene(lose_without_descriptors);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_WITH_FOLDER(test_each_way_makes_one_file),
        TEST_WITH_FOLDER(test_no_temporary_name_where_there_is_a_better_way),
        TEST_WITH_FOLDER(test_who_dies_while_making_leaves_nothing),
        TEST_WITH_FOLDER(test_the_leftover_of_one_who_died_is_not_in_the_way),
        TEST_WITH_FOLDER(test_processes_that_come_first_make_one_file),
        TEST_WITH_FOLDER(test_a_limit_of_file_sizes_is_said),
        TEST_WITH_FOLDER(test_what_a_user_may_not_write_is_said),
        TEST_WITH_FOLDER(test_two_users_may_share_a_file_that_is_named),
        TEST_WITH_FOLDER(test_out_of_descriptors_is_told_each_time),
        TEST_WITH_FOLDER(test_out_of_descriptors_is_told_when_the_file_is_lost),
    };
    return cmocka_run_group_tests_name("ledger, making", tests, NULL, NULL);
}
