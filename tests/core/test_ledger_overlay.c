/* The ledger on an overlay, as a container's /tmp often is: there a mapping does not keep the file's
 * description, so that the lock hangs on a descriptor. */
#include "actors.h"

#include <sys/mount.h>

/* Lays one over the test's folder, that this process and its children alone see. */
static void lay_over(void)
{
    static const char *const names[] = {"lower", "upper", "work", "merged"};
    char name[PATH_MAX + 16], options[3 * PATH_MAX + 64];

    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", folder, "tmpfs", 0, "mode=700,size=64m") != 0) {
        skip_because("no file system may be mounted here");
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(name, sizeof name, "%s/%s", folder, names[i]);
        assert_int_equal(mkdir(name, 0700), 0);
    }
    snprintf(options, sizeof options, "lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", folder,
             folder, folder);
    if (mount("overlay", name, "overlay", 0, options) != 0) {
        skip_because("no overlay may be mounted here");
    }
    snprintf(path, sizeof path, "%s/merged/ledger", folder);
    assert_int_equal(setenv("PORTMANAGER_LEDGER", path, 1), 0);
}

static void exclude(void)
{
    lay_over();
    start(0);
    start(1);
    assert_status(status_of(0, do_claim), PM_OK);
    assert_status(status_of(1, do_claim), PM_HELD);
    assert_says(0, ""); /* not alone */
    assert_says(1, "");
    ask(0, do_release, PORT, 0);
    assert_status(status_of(1, do_claim), PM_OK);
    assert_status(status_of(0, do_claim), PM_HELD);
    for (int i = 0; i < 10; i++) {
        kill_actor(1);
        assert_status(status_of(0, do_claim), PM_OK);
        ask(0, do_release, PORT, 0);
        start(1);
        assert_status(status_of(1, do_claim), PM_OK);
    }
}

static void test_processes_exclude_each_other_and_free_by_dying(void **state)
{
    (void)state;
    scene(exclude);
}

static void kill_parent(void)
{
    lay_over();
    start(0);
    start(1);
    assert_status(status_of(0, do_claim), PM_OK);
    spawn(0, 2); /* does not ask the ledger for anything */
    spawn(0, 3);
    ask(2, do_name_yourself, 0, 0); /* it runs: until then its copy of the descriptor is open */
    assert_status(status_of(3, do_claim), PM_HELD);
    assert_status(status_at(3, do_claim, PORT + 1), PM_OK);
    assert_status(status_of(1, do_claim), PM_HELD); /* their copies gone, it holds */
    kill_actor(3);
    assert_status(status_of(1, do_claim), PM_HELD);
    assert_status(status_at(1, do_claim, PORT + 1), PM_OK);
    kill_actor(0);
    assert_status(status_of(1, do_claim), PM_OK);
    ask(2, do_name_yourself, 0, 0); /* it lives */
}

static void test_a_killed_process_frees_though_its_child_lives(void **state)
{
    (void)state;
    scene(kill_parent);
}

static void exec_holder_laid_over(void)
{
    lay_over();
    exec_holder();
}

static void test_exec_frees(void **state)
{
    (void)state;
    scene(exec_holder_laid_over);
}

/* What is closed here is what the ledger has open; the answer's: how many. With a number, another
 * file is put in their places. */
static actor_answer do_close_ledger(const actor_order *order)
{
    int other = open("/dev/null", O_RDONLY | O_CLOEXEC);
    uint64_t count = 0;

    for (int fd = 3; fd < 200; fd++) {
        if (is_descriptor_of(fd, path)) {
            count++;
            if (order->number) {
                dup2(other, fd);
            } else {
                close(fd);
            }
        }
    }
    close(other);
    return (actor_answer){.number = count};
}

/* How many descriptors are /dev/null's? */
static actor_answer do_count_null(const actor_order *order)
{
    uint64_t count = 0;
    (void)order;

    for (int fd = 3; fd < 200; fd++) {
        count += is_descriptor_of(fd, "/dev/null");
    }
    return (actor_answer){.number = count};
}

/* Closing them is letting go; who notices it takes the ports again, if nobody was quicker. */
static void close_descriptors(void)
{
    lay_over();
    start(0);
    start(1);
    for (uint64_t replaced = 0; replaced < 2; replaced++) {
        uint16_t port = (uint16_t)(PORT + 2 * replaced);
        assert_status(status_at(0, do_claim, port), PM_OK);
        assert_status(status_at(1, do_claim, port), PM_HELD);
        uint64_t others = ask(0, do_count_null, 0, 0).number;
        uint64_t closed = ask(0, do_close_ledger, 0, replaced).number;
        assert_in_range(closed, 1, 2);
        assert_status(status_at(0, do_look, port), PM_HELD);
        assert_status(status_at(1, do_claim, port), PM_HELD);
        assert_status(status_at(0, do_claim, (uint16_t)(port + 1)), PM_OK);
        assert_status(status_at(1, do_claim, (uint16_t)(port + 1)), PM_HELD);
        assert_says(0, "");
        if (replaced) {
            /* Those are left alone. */
            assert_int_equal(ask(0, do_count_null, 0, 0).number, others + closed);
        }
    }
    ask(0, do_release, PORT, 0);
    assert_status(status_of(1, do_claim), PM_OK);
    kill_actor(0);
    assert_status(status_at(1, do_claim, PORT + 1), PM_OK);
}

static void test_who_closed_the_descriptor_takes_its_ports_again(void **state)
{
    (void)state;
    scene(close_descriptors);
}

/* What looks at the file without a check gets a new descriptor: it may have the lost one's number. */
static void release_first(void)
{
    lay_over();
    start(0);
    start(1);
    assert_status(status_of(0, do_claim), PM_OK);
    assert_status(status_at(0, do_claim, PORT + 1), PM_OK);
    ask(0, do_close_ledger, 0, 0);
    ask(0, do_release, PORT + 1, 0);
    assert_status(status_of(0, do_look), PM_HELD);
    assert_status(status_of(1, do_claim), PM_HELD);
}

static void test_a_release_does_not_hide_that_the_descriptor_was_closed(void **state)
{
    (void)state;
    scene(release_first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_WITH_FOLDER(test_processes_exclude_each_other_and_free_by_dying),
        TEST_WITH_FOLDER(test_a_killed_process_frees_though_its_child_lives),
        TEST_WITH_FOLDER(test_exec_frees),
        TEST_WITH_FOLDER(test_a_release_does_not_hide_that_the_descriptor_was_closed),
        TEST_WITH_FOLDER(test_who_closed_the_descriptor_takes_its_ports_again),
    };
    return cmocka_run_group_tests_name("ledger, overlay", tests, NULL, NULL);
}
