/* The ledger's file: what is no ledger, where it may be, and what becomes of one that is removed,
 * replaced, cut short or overwritten while it is in use. */
#include "actors.h"

#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/un.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static char beside[PATH_MAX + 16]; /* another file of the folder */

static int make_place(void **state)
{
    int result = make_folder(state);
    snprintf(beside, sizeof beside, "%s/other", folder);
    return result;
}

static int remove_place(void **state)
{
    return chmod(folder, 0700) != 0 || remove_folder(state);
}

static void empty_folder(void)
{
    assert_int_equal(remove_place(NULL), 0);
    assert_int_equal(mkdir(folder, 0700), 0);
}

static void create_at(const char *name, uint32_t slots)
{
    pm_trouble trouble;
    assert_status(pm_ledger_file_create(name, slots, &trouble), PM_OK);
}

static off_t size_of(const char *name)
{
    struct stat status;
    assert_int_equal(stat(name, &status), 0);
    return status.st_size;
}

static void patch(const char *name, off_t at, const void *bytes, size_t size)
{
    int fd = open(name, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, size, at), size);
    close(fd);
}

/* Writes a byte, or noise, from `from` to the end of a file. */
static void overwrite(const char *name, off_t from, int byte)
{
    unsigned char block[4096];
    uint64_t noise = 88172645463325252;

    memset(block, byte, sizeof block);
    for (off_t at = from, end = size_of(name); at < end; at += (off_t)sizeof block) {
        for (size_t i = 0; byte < 0 && i < sizeof block; i++) {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            block[i] = (unsigned char)noise;
        }
        patch(name, at, block, sizeof block);
    }
}

/* ---- what is said, and what others see ------------------------------------------------------ */

static void take_part(void)
{
    me = pm_ledger_enroll();
    assert_status(pm_ledger_check(), PM_OK);
}

static void assert_silent(void)
{
    pm_trouble trouble;

    if (pm_ledger_notice(&trouble)) {
        fail_msg("there is a notice: %s", trouble.text);
    }
}

/* There is one notice, it has these words, and it is not said again. */
static void assert_said(const char *words)
{
    pm_trouble trouble;

    assert_status(pm_ledger_check(), PM_OK);
    if (!pm_ledger_notice(&trouble)) {
        fail_msg("there is no notice of \"%s\"", words);
    }
    if (!strstr(trouble.text, words)) {
        fail_msg("\"%s\" is not in the notice: %s", words, trouble.text);
    }
    assert_silent();
    for (int i = 0; i < 3; i++) {
        assert_status(pm_ledger_check(), PM_OK);
        assert_silent();
    }
}

static pm_status claim_here(uint16_t port)
{
    pm_holder holder;
    return claim_for(me, port, &holder);
}

/* What a new process sees of a port; it must take part. A descendant, which knows nothing of us. */
static pm_status seen_elsewhere(uint16_t port)
{
    enum { BASE = 100 };
    int status;

    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        pm_holder holder;
        pm_trouble trouble;
        alarm(CHILD_SECONDS);
        if (pm_ledger_check() != PM_OK) {
            _exit(1);
        }
        if (pm_ledger_notice(&trouble)) {
            print_error("elsewhere: %s\n", trouble.text);
            _exit(2);
        }
        _exit(BASE + (int)pm_ledger_look(port, &holder));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_in_range(WEXITSTATUS(status), BASE, BASE + PM_FAILED);
    return (pm_status)(WEXITSTATUS(status) - BASE);
}

/* This process excludes itself, and nobody else. */
static void assert_alone(void)
{
    pm_holder other = pm_ledger_enroll(), holder;

    assert_status(claim_here(PORT + 1), PM_OK);
    assert_status(claim_for(other, PORT + 1, &holder), PM_HELD);
    assert_int_equal(holder, me);
    assert_int_equal(holder_of(PORT + 1), me);
    pm_ledger_release(me, PORT + 1);
    assert_status(claim_for(other, PORT + 1, &holder), PM_OK);
    pm_ledger_withdraw(other, PORT + 1);
    assert_int_equal(holder_of(PORT + 1), PM_NOBODY);
    assert_silent();
}

/* Checks until others see the port held, which is when the ledger is used again. */
static void await_sharing(uint16_t port)
{
    pm_ledger_map map;
    pm_trouble trouble;
    int fd;

    for (int waited = 0; waited < PATIENCE_MS; waited += 20) {
        assert_status(pm_ledger_check(), PM_OK);
        if (access(path, F_OK) == 0) {
            assert_status(pm_ledger_file_open(path, &map, &fd, &trouble), PM_OK);
            uint64_t word = atomic_load(&map.entries[port].word);
            close(fd);
            pm_ledger_file_unmap(&map);
            if (word != 0) {
                assert_status(seen_elsewhere(port), PM_HELD);
                return;
            }
        }
        usleep(20000);
    }
    fail_msg("the ledger is not used again");
}

/* ---- what is no ledger ---------------------------------------------------------------------- */

typedef struct {
    void (*make)(void);
    const char *words;
} misfit;

static void make_link(void)
{
    create_at(beside, 4);
    assert_int_equal(symlink(beside, path), 0);
}

static void make_dangling_link(void)
{
    assert_int_equal(symlink(beside, path), 0);
}

static void make_pipe(void)
{
    assert_int_equal(mkfifo(path, 0600), 0);
}

static void make_socket(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%.100s", path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd);
}

static void make_directory(void)
{
    assert_int_equal(mkdir(path, 0700), 0);
}

static void make_empty(void)
{
    close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
}

static void make_longer(off_t bytes)
{
    create_at(path, 4);
    assert_int_equal(truncate(path, size_of(path) + bytes), 0);
}

static void make_too_short(void)
{
    make_longer(-4096);
}

static void make_header_only(void)
{
    create_at(path, 4);
    assert_int_equal(truncate(path, sizeof(pm_ledger_header)), 0);
}

static void make_too_long(void)
{
    make_longer(1);
}

static void make_noise(void)
{
    create_at(path, 4);
    overwrite(path, 0, -1);
}

static void make_zeroes(void)
{
    create_at(path, 4);
    overwrite(path, 0, 0);
}

static void patch_header(size_t at, uint32_t value)
{
    create_at(path, 4);
    patch(path, (off_t)at, &value, sizeof value);
}

static void make_other_version(void)
{
    patch_header(offsetof(pm_ledger_header, version), 2);
}

static void make_no_slots(void)
{
    patch_header(offsetof(pm_ledger_header, slots), 0);
}

static void make_too_many_slots(void)
{
    patch_header(offsetof(pm_ledger_header, slots), PM_SLOTS_MAX + 1);
}

static void make_more_slots(void) /* than the file has room for */
{
    patch_header(offsetof(pm_ledger_header, slots), PM_SLOTS_MAX);
}

static void make_fewer_ports(void)
{
    patch_header(offsetof(pm_ledger_header, ports), 1000);
}

static void make_other_entries(void)
{
    patch_header(offsetof(pm_ledger_header, entry_size), sizeof(pm_entry) / 2);
}

static const misfit misfits[] = {
    {make_link,           "is no regular file: remove it"        },
    {make_dangling_link,  "is no regular file: remove it"        },
    {make_pipe,           "is no regular file: remove it"        },
    {make_socket,         "is no regular file: remove it"        },
    {make_directory,      "is no regular file: remove it"        },
    {make_empty,          "is no ledger of reservations"         },
    {make_header_only,    "was cut short or made longer"         },
    {make_too_short,      "was cut short or made longer"         },
    {make_too_long,       "was cut short or made longer"         },
    {make_noise,          "is no ledger of reservations"         },
    {make_zeroes,         "is no ledger of reservations"         },
    {make_other_version,  "is of version 2, this library needs 1"},
    {make_no_slots,       "is no ledger of reservations"         },
    {make_too_many_slots, "is no ledger of reservations"         },
    {make_more_slots,     "was cut short or made longer"         },
    {make_fewer_ports,    "is no ledger of reservations"         },
    {make_other_entries,  "is no ledger of reservations"         },
};

static void meet_misfit(void *argument)
{
    const misfit *it = argument;
    struct stat before, after;

    it->make();
    assert_int_equal(lstat(path, &before), 0);
    take_part();
    assert_said(it->words);
    assert_alone();
    assert_int_equal(lstat(path, &after), 0); /* nothing happened to it */
    assert_int_equal(after.st_ino, before.st_ino);
    assert_int_equal(after.st_size, before.st_size);
    assert_int_equal(after.st_mtim.tv_nsec, before.st_mtim.tv_nsec);
}

static void test_what_is_no_ledger_is_not_used(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(misfits); i++) {
        misfit it = misfits[i];
        in_child(meet_misfit, &it);
        empty_folder();
    }
}

static void repair(void *argument)
{
    (void)argument;
    make_noise();
    take_part();
    assert_said("is no ledger of reservations");
    assert_status(claim_here(PORT), PM_OK);
    assert_int_equal(unlink(path), 0);
    await_sharing(PORT);
    assert_silent();

    /* The same trouble once more is news. */
    overwrite(path, 0, -1);
    assert_said("is no ledger of reservations");
    assert_alone();
    assert_int_equal(holder_of(PORT), me);
}

static void test_a_ledger_that_was_repaired_is_used_again(void **state)
{
    (void)state;
    in_child(repair, NULL);
}

static void wait_for_retry(void *argument)
{
    (void)argument;
    make_noise();
    take_part();
    assert_said("is no ledger of reservations");
    for (int i = 0; i < 26; i++) { /* it is tried once a second */
        usleep(100000);
        assert_status(pm_ledger_check(), PM_OK);
        assert_silent();
    }
    overwrite(path, 0, 0);
    patch(path, 0, "portmanager\r\n\n", 14);
    for (int tries = 0; tries < PATIENCE_MS / 20; tries++) {
        pm_trouble trouble;
        usleep(20000);
        assert_status(pm_ledger_check(), PM_OK);
        if (pm_ledger_notice(&trouble)) {
            assert_non_null(strstr(trouble.text, "is of version 0"));
            return;
        }
    }
    fail_msg("another trouble is not said");
}

static void test_a_trouble_is_said_once(void **state)
{
    (void)state;
    in_child(wait_for_retry, NULL);
}

/* ---- where it may be ------------------------------------------------------------------------ */

static void name_place(const char *name, const char *words)
{
    assert_int_equal(setenv("PORTMANAGER_LEDGER", name, 1), 0);
    take_part();
    assert_said(words);
    assert_alone();
}

static void name_relative(void *argument)
{
    (void)argument;
    assert_int_equal(chdir(folder), 0);
    name_place("ledger", "expected the absolute path of a file, or `process`");
    assert_int_equal(files_in(folder), 0);
}

static void name_folder(void *argument)
{
    char name[PATH_MAX + 32];
    (void)argument;

    snprintf(name, sizeof name, "%s/", folder);
    name_place(name, "expected the absolute path of a file, or `process`");
}

static void name_too_long(void *argument)
{
    static char name[2 * PATH_MAX];
    (void)argument;

    memset(name, 'x', sizeof name - 1);
    memcpy(name, path, strlen(path));
    name_place(name, "expected the absolute path of a file, or `process`");
}

static void name_missing(void *argument)
{
    char name[PATH_MAX + 32];
    (void)argument;

    snprintf(name, sizeof name, "%s/missing/ledger", folder);
    name_place(name, "No such file or directory");
}

static void name_below_file(void *argument)
{
    char name[PATH_MAX + 32];
    (void)argument;

    make_empty();
    snprintf(name, sizeof name, "%s/ledger", path);
    name_place(name, "is reached by a link, or not by folders: write its real path");
}

static void name_by_link(void *argument)
{
    char name[PATH_MAX + 32];
    (void)argument;

    assert_int_equal(symlink(folder, beside), 0);
    snprintf(name, sizeof name, "%s/ledger", beside);
    name_place(name, "is reached by a link, or not by folders: write its real path");
    assert_int_equal(files_in(folder), 1); /* the link */
}

static void test_a_place_that_cannot_be_used_is_told(void **state)
{
    static void (*const places[])(void *) = {name_relative, name_folder,     name_too_long,
                                             name_missing,  name_below_file, name_by_link};
    (void)state;
    for (size_t i = 0; i < COUNT(places); i++) {
        in_child(places[i], NULL);
        empty_folder();
    }
}

static void stay_alone(void *argument)
{
    (void)argument;
    assert_int_equal(chdir(folder), 0);
    assert_int_equal(setenv("PORTMANAGER_LEDGER", "process", 1), 0);
    take_part();
    assert_silent();
    assert_alone();
    assert_status(claim_here(PORT), PM_OK);
    assert_false(pm_ledger_has_kin());
    assert_status(seen_elsewhere(PORT), PM_OK);
    assert_int_equal(files_in(folder), 0);
}

static void test_a_process_may_stay_alone(void **state)
{
    (void)state;
    in_child(stay_alone, NULL);
}

static void mask_everything(void *argument)
{
    struct stat status;
    (void)argument;

    umask(0777);
    take_part();
    assert_silent();
    assert_status(claim_here(PORT), PM_OK);
    assert_status(seen_elsewhere(PORT), PM_HELD);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
    assert_int_equal(files_in(folder), 1); /* nothing is left over */
}

static void test_the_umask_does_not_matter(void **state)
{
    (void)state;
    in_child(mask_everything, NULL);
}

static void use_extra_slashes(void *argument)
{
    char name[PATH_MAX + 32];
    (void)argument;

    take_part();
    assert_status(claim_here(PORT), PM_OK);
    snprintf(name, sizeof name, "/%s//ledger", folder);
    assert_int_equal(setenv("PORTMANAGER_LEDGER", name, 1), 0);
    assert_status(seen_elsewhere(PORT), PM_HELD);
}

static void test_slashes_may_be_doubled(void **state)
{
    (void)state;
    in_child(use_extra_slashes, NULL);
}

/* ---- removed, replaced, renamed ------------------------------------------------------------- */

static void remove_file(void)
{
    assert_int_equal(unlink(path), 0);
}

static void rename_away(void)
{
    assert_int_equal(rename(path, beside), 0);
}

static void rename_over(void)
{
    create_at(beside, 7);
    assert_int_equal(rename(beside, path), 0);
}

/* The name is another file's; ours has one more, so that it is not without any. */
static void link_elsewhere(void)
{
    assert_int_equal(link(path, beside), 0);
    assert_int_equal(unlink(path), 0);
    create_at(path, 7);
}

static void lose_folder(void)
{
    char away[PATH_MAX + 16];

    snprintf(away, sizeof away, "%s.away", folder);
    assert_int_equal(rename(folder, away), 0);
    assert_int_equal(mkdir(folder, 0700), 0);
    assert_int_equal(nftw(away, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

/* A path is asked for once a millisecond, the file's descriptor every 20 microseconds. */
enum { NOTICED_US = 5000 };

static void hold_on(void *change)
{
    take_part();
    assert_status(claim_here(PORT), PM_OK);
    assert_status(seen_elsewhere(PORT), PM_HELD);
    for (int i = 0; i < 3; i++) {
        (*(void (**)(void))change)();
        usleep(NOTICED_US);
        assert_status(pm_ledger_check(), PM_OK);
        assert_status(seen_elsewhere(PORT), PM_HELD);
        assert_status(claim_here(PORT), PM_HELD);
        assert_int_equal(holder_of(PORT), me);
        unlink(beside);
    }
    assert_silent();
    (*(void (**)(void))change)();
    pm_ledger_release(me, PORT); /* without a check */
    usleep(NOTICED_US);
    assert_status(pm_ledger_check(), PM_OK);
    assert_status(seen_elsewhere(PORT), PM_OK);
    assert_silent();
}

static void test_holds_are_in_the_file_that_others_find(void **state)
{
    static void (*const changes[])(void) = {remove_file, rename_away, rename_over, link_elsewhere,
                                            lose_folder};
    (void)state;
    for (size_t i = 0; i < COUNT(changes); i++) {
        void (*change)(void) = changes[i];
        in_child(hold_on, &change);
        empty_folder();
    }
}

static void take_what_is_free(int answers)
{
    take_part();
    pm_status status = claim_here(PORT);
    assert_int_equal(write(answers, &status, sizeof status), sizeof status);
}

static void come_too_late(void *argument)
{
    pm_status status;
    (void)argument;

    take_part();
    assert_status(claim_here(PORT), PM_OK);
    assert_int_equal(unlink(path), 0);
    companion other = companion_begin(take_what_is_free);
    assert_int_equal(read(other.from_child, &status, sizeof status), sizeof status);
    assert_status(status, PM_OK); /* we did not notice yet */
    assert_said("1 port of this process went to others before it was noticed");
    assert_int_equal(holder_of(PORT), me);
    pm_ledger_release(me, PORT);
    assert_status(seen_elsewhere(PORT), PM_HELD); /* the other's is left alone */
    companion_end(&other);
}

static void test_who_comes_too_late_with_its_holds_says_so(void **state)
{
    (void)state;
    in_child(come_too_late, NULL);
}

/* Gives up the right to see whether the file has its name. */
static void lose_rights(void *removing)
{
    assert_int_equal(geteuid() == 0 ? chown(folder, 65534, (gid_t)-1) : 0, 0);
    become_nobody();
    take_part();
    assert_silent();
    assert_status(claim_here(PORT), PM_OK);
    if (*(bool *)removing) {
        assert_int_equal(unlink(path), 0);
    }
    assert_int_equal(chmod(folder, 0), 0);
    usleep(5000);
    if (*(bool *)removing) {
        assert_said("Permission denied");
        assert_int_equal(holder_of(PORT), me);
        return;
    }
    assert_status(pm_ledger_check(), PM_OK); /* it goes on */
    assert_silent();
    assert_int_equal(chmod(folder, 0700), 0);
    assert_status(seen_elsewhere(PORT), PM_HELD);
}

static void test_a_removed_file_is_noticed_by_who_may_not_look(void **state)
{
    bool removing = true;
    (void)state;
    in_child(lose_rights, &removing);
}

static void test_who_may_not_look_any_more_goes_on(void **state)
{
    bool removing = false;
    (void)state;
    in_child(lose_rights, &removing);
}

/* ---- cut short, overwritten ------------------------------------------------------------------ */

/* Everything that reads or writes the file, on ports all over it. */
static void use_everything(void)
{
    static const uint16_t ports[] = {0, 1, PORT, PORT + 2, UINT16_MAX};
    pm_name name = {.key = 77, .label = "a label"};
    pm_held_list list;
    pm_claim claim;
    pm_holder holder;
    uint16_t port;
    int64_t oldest = INT64_MAX;

    for (size_t i = 0; i < COUNT(ports); i++) {
        assert_status(pm_ledger_check(), PM_OK);
        pm_ledger_look(ports[i], &holder);
        pm_ledger_past(ports[i]);
        if (pm_ledger_claim(me, ports[i], &name, &claim) == PM_OK) {
            assert_status(pm_ledger_claim(me, ports[i], &name, &claim), PM_HELD);
            pm_ledger_remember(me, ports[i], 77);
            assert_status(pm_ledger_check(), PM_OK);
            if (i % 2) {
                pm_ledger_release(me, ports[i]);
            } else {
                pm_ledger_withdraw(me, ports[i]);
            }
        }
    }
    assert_status(pm_ledger_check(), PM_OK);
    assert_status(pm_ledger_list(0, UINT16_MAX, &list), PM_OK);
    for (size_t i = 0; i < list.count; i++) {
        assert_non_null(memchr(list.items[i].label, '\0', PM_LABEL_SIZE));
    }
    pm_held_list_free(&list);
    port = 0;
    pm_ledger_find_remembered(77, &port, UINT16_MAX);
    port = 0;
    pm_ledger_find_rested(0, INT64_MAX, &port, UINT16_MAX, &oldest);
    pm_ledger_set_next_port((uint16_t)(pm_ledger_next_port() + 1));
    pm_ledger_has_kin();
    pm_ledger_lend(me, 0, UINT16_MAX, &name, &port);
}

typedef enum { CHECK, CLAIM, RELEASE, WITHDRAW, LOOK, LIST, PAST, EVERYTHING, CALLS } call;

typedef struct {
    call call;
    int part; /* of two that are left of the file */
} cut;

static void cut_short(void *argument)
{
    const cut *how = argument;
    pm_held_list list;
    pm_holder holder;

    take_part();
    assert_status(claim_here(0), PM_OK);
    assert_status(claim_here(PORT), PM_OK);
    assert_status(claim_here(UINT16_MAX), PM_OK);
    off_t size = size_of(path);
    assert_status(pm_ledger_check(), PM_OK);
    assert_int_equal(truncate(path, size * how->part / 2), 0);
    if (how->call == RELEASE) { /* before any check */
        pm_ledger_release(me, UINT16_MAX);
    } else if (how->call == WITHDRAW) {
        pm_ledger_withdraw(me, UINT16_MAX);
    } else {
        assert_status(pm_ledger_check(), PM_OK);
    }
    if (how->call == CLAIM) {
        assert_status(claim_here(UINT16_MAX - 1), PM_OK);
    } else if (how->call == LOOK) {
        assert_status(pm_ledger_look(UINT16_MAX, &holder), PM_HELD);
        assert_int_equal(holder, me);
        assert_status(pm_ledger_look(UINT16_MAX - 1, &holder), PM_OK);
    } else if (how->call == LIST) {
        assert_status(pm_ledger_list(0, UINT16_MAX, &list), PM_OK);
        assert_int_equal(list.count, 3);
        pm_held_list_free(&list);
    } else if (how->call == PAST) {
        assert_true(pm_ledger_past(UINT16_MAX).changed_at > 0);
        assert_int_equal(pm_ledger_past(UINT16_MAX - 1).changed_at, 0);
    } else if (how->call == EVERYTHING) {
        use_everything();
    }
    assert_said(how->part ? "was cut short" : "is no ledger of reservations");
    assert_alone();
    bool given_back = how->call == RELEASE || how->call == WITHDRAW;
    assert_int_equal(holder_of(UINT16_MAX), given_back ? PM_NOBODY : me);
    assert_int_equal(holder_of(PORT), me);
    assert_int_equal(size_of(path), size * how->part / 2);
    pm_ledger_release(me, PORT);
    assert_int_equal(holder_of(PORT), PM_NOBODY);
    if (how->call == EVERYTHING) {
        assert_int_equal(unlink(path), 0);
        await_sharing(0);
        assert_silent();
    }
}

static void test_a_file_that_is_cut_short_is_no_signal(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * CALLS; i++) {
        cut how = {(call)(i / 2), i % 2};
        in_child(cut_short, &how);
        empty_folder();
    }
}

typedef struct {
    off_t from;
    int byte; /* -1: noise */
    const char *words;
} scribble;

static void scribble_over(void *argument)
{
    const scribble *it = argument;

    take_part();
    assert_status(claim_here(PORT), PM_OK);
    overwrite(path, it->from, it->byte);
    assert_status(pm_ledger_check(), PM_OK);
    use_everything();
    if (it->words) {
        assert_said(it->words);
        assert_alone();
    }
    assert_int_equal(holder_of(PORT), me);
    pm_ledger_release(me, PORT);
    assert_int_equal(holder_of(PORT), PM_NOBODY);
    use_everything();

    /* Whoever comes now does not crash either. */
    overwrite(path, it->from, it->byte);
    pid_t pid = fork();
    int status;
    if (pid == 0) {
        alarm(CHILD_SECONDS);
        take_part();
        use_everything();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void test_a_file_that_is_overwritten_does_no_harm(void **state)
{
    enum { SLOTS_AT = 4096, ENTRIES_AT = 4096 + 65536 };
    static const scribble scribbles[] = {
        {0,          0xff, "is no ledger"},
        {0,          -1,   "is no ledger"},
        {0,          0,    "is no ledger"},
        {SLOTS_AT,   0xff, "no slot left"},
        {SLOTS_AT,   0,    NULL          },
        {SLOTS_AT,   -1,   NULL          },
        {ENTRIES_AT, 0xff, NULL          },
        {ENTRIES_AT, -1,   NULL          },
        {ENTRIES_AT, 0,    NULL          },
    };
    (void)state;
    for (size_t i = 0; i < COUNT(scribbles); i++) {
        scribble it = scribbles[i];
        in_child(scribble_over, &it);
        empty_folder();
    }
}

/* Halves of slots that the file does not have; somebody even has the lock on their byte. */
static void name_wrong_slots(void *argument)
{
    static const uint32_t slots[] = {3, 4, 255, 4000, PM_SLOTS_MAX};
    pm_ledger_map map;
    pm_trouble trouble;
    pm_held_list list;
    pm_holder holder;
    int fd;
    (void)argument;

    create_at(path, 2);
    assert_status(pm_ledger_file_open(path, &map, &fd, &trouble), PM_OK);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 3, .l_len = 5000};
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
    take_part();
    assert_silent();
    for (size_t i = 0; i < COUNT(slots); i++) {
        for (uint64_t generation = 0; generation < 2; generation++) {
            uint64_t half = (uint64_t)slots[i] << 20 | generation;
            for (int as_heir = 0; as_heir < 2; as_heir++) {
                atomic_store(&map.entries[PORT].word, as_heir ? half : half << 32);
                assert_status(pm_ledger_check(), PM_OK);
                assert_status(pm_ledger_look(PORT, &holder), PM_OK);
                assert_status(pm_ledger_list(0, UINT16_MAX, &list), PM_OK);
                assert_int_equal(list.count, 0);
                assert_status(claim_here(PORT), PM_OK);
                pm_ledger_release(me, PORT);
            }
        }
    }
    close(fd);
    pm_ledger_file_unmap(&map);
}

static void test_slots_beyond_the_last_are_nobodys(void **state)
{
    (void)state;
    in_child(name_wrong_slots, NULL);
}

/* ---- the user's own place, in a /tmp of this process's own ------------------------------------ */

static char own_folder[64];

/* Mounts a new, empty /tmp that only this process sees; for children only. */
static void enter_new_tmp(const char *options)
{
    char map[64];
    uid_t uid = geteuid();
    gid_t gid = getegid();

    if (unshare(CLONE_NEWNS) != 0) {
        if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
            skip_because("no mount namespace is permitted here");
        }
        write_setting("/proc/self/setgroups", "deny");
        snprintf(map, sizeof map, "%u %u 1", (unsigned)uid, (unsigned)uid);
        write_setting("/proc/self/uid_map", map);
        snprintf(map, sizeof map, "%u %u 1", (unsigned)gid, (unsigned)gid);
        write_setting("/proc/self/gid_map", map);
    }
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, options) != 0) {
        skip_because("no file system may be mounted here");
    }
    assert_int_equal(unsetenv("PORTMANAGER_LEDGER"), 0);
    snprintf(own_folder, sizeof own_folder, "/tmp/portmanager-%u", (unsigned)geteuid());
}

static const char roomy[] = "mode=1777,size=64m";

static void use_own_place(void *argument)
{
    struct stat status;
    (void)argument;

    enter_new_tmp(roomy);
    umask(0777);
    take_part();
    assert_silent();
    assert_status(claim_here(PORT), PM_OK);
    assert_int_equal(stat(own_folder, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0700);
    assert_int_equal(files_in(own_folder), 1);
    assert_int_equal(files_in("/tmp"), 1);
    assert_status(seen_elsewhere(PORT), PM_HELD);
    assert_int_equal(setenv("PORTMANAGER_LEDGER", "", 1), 0); /* is as if it were not set */
    assert_status(seen_elsewhere(PORT), PM_HELD);
}

static void test_a_user_has_one_ledger(void **state)
{
    (void)state;
    in_child(use_own_place, NULL);
}

static void use_own_place_as_nobody(void *argument)
{
    struct stat status;
    (void)argument;

    enter_new_tmp(roomy);
    become_nobody();
    snprintf(own_folder, sizeof own_folder, "/tmp/portmanager-%u", (unsigned)geteuid());
    umask(0777);
    take_part();
    assert_silent();
    assert_status(claim_here(PORT), PM_OK);
    assert_int_equal(stat(own_folder, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0700);
    assert_status(seen_elsewhere(PORT), PM_HELD);
}

static void test_the_umask_of_a_user_without_privileges_does_not_matter(void **state)
{
    (void)state;
    in_child(use_own_place_as_nobody, NULL);
}

static void plant_link(void)
{
    assert_int_equal(mkdir("/tmp/elsewhere", 0700), 0);
    assert_int_equal(symlink("/tmp/elsewhere", own_folder), 0);
}

static void plant_file(void)
{
    close(open(own_folder, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
}

static void plant_open_folder(void)
{
    assert_int_equal(mkdir(own_folder, 0700), 0);
    assert_int_equal(chmod(own_folder, 0755), 0);
}

static void plant_sticky_folder(void)
{
    assert_int_equal(mkdir(own_folder, 0700), 0);
    assert_int_equal(chmod(own_folder, 01700), 0);
}

static void plant_others_folder(void)
{
    assert_int_equal(mkdir(own_folder, 0700), 0);
    if (chown(own_folder, 12345, 12345) != 0) {
        skip_because("this process cannot give a folder to another user");
    }
}

static void plant_others_file(void)
{
    struct stat status;
    char name[PATH_MAX];

    assert_int_equal(stat("/proc/self/ns/net", &status), 0);
    assert_int_equal(mkdir(own_folder, 0700), 0);
    snprintf(name, sizeof name, "%s/ports-%llu", own_folder, (unsigned long long)status.st_ino);
    create_at(name, 4);
    if (chown(name, 12345, 12345) != 0) {
        skip_because("this process cannot give a file to another user");
    }
}

static const misfit plants[] = {
    {plant_link,          "is no folder: remove it"                                   },
    {plant_file,          "is no folder: remove it"                                   },
    {plant_open_folder,   "has mode 0755, so that others may reach into it: chmod 700"},
    {plant_sticky_folder, "has mode 1700"                                             },
    {plant_others_folder, "belongs to another user (uid 12345): remove it"            },
    {plant_others_file,   "belongs to another user (uid 12345): remove it"            },
};

static void meet_plant(void *argument)
{
    const misfit *plant = argument;

    enter_new_tmp(roomy);
    plant->make();
    take_part();
    assert_said(plant->words);
    assert_alone();
    if (plant->make == plant_link) {
        assert_int_equal(files_in("/tmp/elsewhere"), 0);
    } else if (plant->make == plant_open_folder) {
        assert_int_equal(files_in(own_folder), 0);
    }
}

static void meet_plant_number(size_t number)
{
    misfit plant = plants[number];
    in_child(meet_plant, &plant);
}

static void test_a_planted_link_is_not_followed(void **state)
{
    (void)state;
    meet_plant_number(0);
}

static void test_a_planted_file_is_no_folder(void **state)
{
    (void)state;
    meet_plant_number(1);
}

static void test_a_folder_that_others_reach_into_is_not_used(void **state)
{
    (void)state;
    meet_plant_number(2);
    meet_plant_number(3);
}

static void test_what_is_another_users_is_not_used(void **state)
{
    (void)state;
    meet_plant_number(4);
    meet_plant_number(5);
}

static void use_full_disk(void *argument)
{
    (void)argument;
    enter_new_tmp("mode=1777,size=1m");
    take_part();
    for (uint32_t port = 1; port <= UINT16_MAX; port += 37) { /* in every page */
        assert_status(claim_here((uint16_t)port), PM_OK);
    }
    assert_said("No space left on device");
    assert_alone();
    assert_int_equal(files_in(own_folder), 0);

    assert_int_equal(mount(NULL, "/tmp", NULL, MS_REMOUNT | MS_NOSUID | MS_NODEV, "size=64m"), 0);
    for (int waited = 0; files_in(own_folder) == 0 && waited < PATIENCE_MS; waited += 20) {
        usleep(20000);
        assert_status(pm_ledger_check(), PM_OK);
    }
    assert_status(seen_elsewhere(1), PM_HELD);
    assert_status(seen_elsewhere(2), PM_OK);
    assert_silent();
}

static void test_a_full_disk_is_no_signal(void **state)
{
    (void)state;
    in_child(use_full_disk, NULL);
}

static void use_read_only(void *argument)
{
    (void)argument;
    enter_new_tmp(roomy);
    if (*(bool *)argument) { /* with a ledger */
        assert_status(seen_elsewhere(PORT), PM_OK);
        assert_int_equal(files_in(own_folder), 1);
    }
    assert_int_equal(mount(NULL, "/tmp", NULL, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL),
                     0);
    take_part();
    assert_said("Read-only file system");
    assert_alone();
}

static void test_a_read_only_place_is_told(void **state)
{
    bool with_ledger = false;
    (void)state;
    in_child(use_read_only, &with_ledger);
    with_ledger = true;
    in_child(use_read_only, &with_ledger);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_place, remove_place)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_what_is_no_ledger_is_not_used),
        TEST(test_a_ledger_that_was_repaired_is_used_again),
        TEST(test_a_trouble_is_said_once),
        TEST(test_a_place_that_cannot_be_used_is_told),
        TEST(test_a_process_may_stay_alone),
        TEST(test_the_umask_does_not_matter),
        TEST(test_slashes_may_be_doubled),
        TEST(test_holds_are_in_the_file_that_others_find),
        TEST(test_who_comes_too_late_with_its_holds_says_so),
        TEST(test_a_removed_file_is_noticed_by_who_may_not_look),
        TEST(test_who_may_not_look_any_more_goes_on),
        TEST(test_a_file_that_is_cut_short_is_no_signal),
        TEST(test_a_file_that_is_overwritten_does_no_harm),
        TEST(test_slots_beyond_the_last_are_nobodys),
        TEST(test_a_user_has_one_ledger),
        TEST(test_the_umask_of_a_user_without_privileges_does_not_matter),
        TEST(test_a_planted_link_is_not_followed),
        TEST(test_a_planted_file_is_no_folder),
        TEST(test_a_folder_that_others_reach_into_is_not_used),
        TEST(test_what_is_another_users_is_not_used),
        TEST(test_a_full_disk_is_no_signal),
        TEST(test_a_read_only_place_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
