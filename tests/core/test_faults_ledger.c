/* The ledger and who asks it: what becomes of claims when a call fails. */
#include "faults.h"
#include "sockets.h"

#include "core/allocate.h"
#include "core/reserve.h"

/* Without these nobody can take part, and being out of them passes. */
#define FILES                                                                                      \
    (BIT(CALL_OPEN) | BIT(CALL_OPENAT) | BIT(CALL_TMPFILE) | BIT(CALL_MKDIR) | BIT(CALL_CHMOD) |   \
     BIT(CALL_MMAP) | BIT(CALL_DONTFORK))
/* The same, of the process itself; enrolling tries them first, and has no status. */
#define MEMORY (BIT(CALL_MMAP_OWN) | BIT(CALL_ATFORK))
#define SOCKETS (BIT(CALL_SOCKET) | BIT(CALL_NETLINK))

static const pm_name web = {.key = 12345, .label = "web"};

/* What a scenario is about, set up by the subject's parent. */
static uint16_t port;

static void choose_port(void)
{
    port = free_ports(8);
}

static void attach(void)
{
    pm_trouble trouble;
    assert_status(pm_ledger_check(), PM_OK);
    assert_false(pm_ledger_notice(&trouble));
}

/* Nobody was handed a port yet; the first one is drawn. */
static void attach_at_the_start(void)
{
    attach();
    pm_ledger_set_next_port(0);
}

static void attach_later(void)
{
    attach();
    pm_ledger_set_next_port(20000);
}

/* No need to enroll. */
static void be_somebody(void)
{
    subject.me = 1;
}

static pm_status claim(uint16_t wanted)
{
    pm_claim answer;
    pm_status status = pm_ledger_claim(subject.me, wanted, &web, &answer);
    if (status == PM_OK) {
        hold_port(wanted);
    }
    return status;
}

static void attach_and_claim(void)
{
    attach();
    assert_status(claim(port), PM_OK);
}

/* ---- other processes ----------------------------------------------------------------------- */

/* One that claims the port and dies without a word. */
static void let_one_die(void)
{
    int status;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        attach_and_claim();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void attach_after_a_death(void)
{
    let_one_die();
    attach();
}

enum { LISTED = 70 }; /* more than a list has room for at first */

static void claim_many(int answers)
{
    pm_claim answer;

    attach();
    for (uint16_t i = 0; i < LISTED; i++) {
        assert_status(pm_ledger_claim(1, (uint16_t)(port + 2 * i), &web, &answer), PM_OK);
    }
    assert_int_equal(write(answers, "", 1), 1);
}

/* One that lives as long as the scenario. */
static void start_holder(void)
{
    char byte;
    port = 40000;
    companion other = companion_begin(claim_many);
    assert_int_equal(read(other.from_child, &byte, 1), 1);
}

/* The subject's parent itself. */
static void hold_for_children(void)
{
    choose_port();
    subject.me = pm_ledger_enroll();
    attach_and_claim();
    subject.count = 0; /* the subjects start without */
}

/* ---- the ledger itself --------------------------------------------------------------------- */

static pm_status check_and_claim(void)
{
    subject.asked = port;
    pm_status status = pm_ledger_check();
    return status == PM_OK ? claim(port) : status;
}

static pm_status claim_and_withdraw(void)
{
    pm_status status = check_and_claim();
    give_back();
    return status;
}

static pm_status release(void)
{
    subject.asked = port;
    pm_ledger_release(subject.me, port);
    subject.count = 0;
    return PM_OK;
}

static pm_status check(void)
{
    subject.asked = port;
    return pm_ledger_check();
}

/* What is not noticed at once, for a want of time to compare, is at the next call. */
static pm_status check_twice(void)
{
    pm_status status = check();
    return status == PM_OK ? check() : status;
}

/* A child that kept the lock would keep what we hold alive. */
static pm_status fork_off(void)
{
    armed = false;
    size_t before = open_descriptors();
    subject.asked = port;
    armed = true;
    pid_t pid = fork();
    armed = false;

    if (pid == 0) {
        bool is_lost = plan->hit && plan->error == EBADF; /* it is not, in fact */
        if (open_descriptors() != before - 1 && !is_lost) {
            complain("the child has the lock's descriptor");
        }
        _exit(0);
    }
    waitpid(pid, NULL, 0);
    return PM_OK;
}

static pm_status look(void)
{
    pm_holder holder = subject.me, nobody = subject.me;
    subject.asked = port;
    pm_status status = pm_ledger_check();

    if (status != PM_OK) {
        return status;
    }
    status = pm_ledger_look(port, &holder);
    if (pm_ledger_look((uint16_t)(port + 1), &nobody) != PM_OK || holder != PM_NOBODY ||
        nobody != PM_NOBODY) {
        return PM_AGAIN; /* which is never right */
    }
    return status;
}

static pm_status list_all(void)
{
    pm_held_list list;
    subject.asked = port;
    pm_status status = pm_ledger_check();

    if (status == PM_OK) {
        status = pm_ledger_list(0, UINT16_MAX, &list);
        subject.wrong = list.count != LISTED;
        pm_held_list_free(&list);
    }
    return status;
}

static pm_status borrow(void)
{
    uint16_t lent;
    pm_status status = pm_ledger_check();

    if (status == PM_OK && !pm_ledger_has_kin()) {
        return PM_HELD;
    }
    if (status == PM_OK) {
        status = pm_ledger_lend(subject.me, port, (uint16_t)(port + 1), &web, &lent);
    }
    if (status == PM_OK) {
        hold_port(lent);
    }
    return status;
}

static void attach_and_lose_the_file(void)
{
    attach_and_claim();
    assert_int_equal(unlink(path_of_ledger), 0);
}

static void attach_and_lose_content(void)
{
    attach_and_claim();
    assert_int_equal(truncate(path_of_ledger, 100), 0);
}

/* The number of the ledger's descriptor is another file's now. */
static void attach_and_lose_the_descriptor(void)
{
    int other = open("/dev/null", O_RDONLY | O_CLOEXEC);
    bool found = false;

    attach_and_claim();
    for (int fd = 0; !found && fd < 1024; fd++) {
        found = is_descriptor_of(fd, path_of_ledger);
        if (found) {
            assert_int_equal(dup2(other, fd), fd);
        }
    }
    assert_true(found);
    close(other);
    subject.descriptors = 1;
}

/* ---- allocations --------------------------------------------------------------------------- */

static pm_status allocate(uint16_t default_port, bool has_range)
{
    static pm_allocation allocation;
    pm_request request = {.holder = subject.me,
                          .name = web,
                          .default_port = default_port,
                          .has_range = has_range,
                          .first = port,
                          .last = (uint16_t)(port + 3),
                          .refuse_held = true};
    pm_status status = pm_allocation_begin(&allocation, &request);

    if (status != PM_OK) {
        return status;
    }
    do {
        status = pm_allocation_run(&allocation, 64, true);
    } while (status == PM_AGAIN);
    int error = errno;
    pm_allocation_end(&allocation);
    errno = error;
    if (status == PM_OK) {
        hold_port(allocation.port);
    }
    return status;
}

static pm_status allocate_default(void)
{
    subject.asked = port;
    return allocate(port, false);
}

static pm_status allocate_of_range(void)
{
    return allocate(port, true);
}

static pm_status allocate_any(void)
{
    return allocate(0, false);
}

static void occupy_port(void)
{
    choose_port();
    hold("127.0.0.1", &port, LISTENING);
}

static pm_status search(void)
{
    pm_search this = {.host = addresses_of("127.0.0.1"),
                      .next = port,
                      .last = port + 3u,
                      .holder = subject.me,
                      .refuse_held = true,
                      .prober = PM_PROBER_CLOSED};
    subject.asked = port;
    pm_status status = pm_search_run(&this, 64);
    int error = errno;
    pm_search_end(&this);
    errno = error;
    return status;
}

/* ---- reservations -------------------------------------------------------------------------- */

static pm_status reserve(pm_reserve_request request)
{
    static pm_reservation reservation;
    uint16_t ports[PORTS_MAX];
    request.holder = subject.me;
    pm_status status = pm_reservation_begin(&reservation, &request, ports);

    if (status != PM_OK) {
        return status;
    }
    do {
        status = pm_reservation_run(&reservation, 64, true);
    } while (status == PM_AGAIN);
    int error = errno;
    pm_reservation_end(&reservation);
    errno = error;
    for (uint32_t i = 0; status == PM_OK && i < request.count; i++) {
        hold_port(ports[i]);
    }
    return status;
}

static pm_status reserve_one(void)
{
    return reserve((pm_reserve_request){.count = 1});
}

static pm_status reserve_five(void)
{
    return reserve((pm_reserve_request){.count = 5});
}

static pm_status reserve_consecutive(void)
{
    return reserve((pm_reserve_request){.count = 3, .consecutive = true});
}

static pm_status reserve_by_name(void)
{
    return reserve((pm_reserve_request){.count = 1, .name = web});
}

static pm_status reserve_of_range(void)
{
    return reserve((pm_reserve_request){.count = 1, .first = port, .last = (uint16_t)(port + 2)});
}

/* A range where no port has rested. */
static void attach_and_use_range(void)
{
    attach();
    for (uint16_t i = 0; i < 3; i++) {
        uint16_t used = (uint16_t)(port + i);
        assert_status(claim(used), PM_OK);
        pm_ledger_release(subject.me, used);
    }
    subject.count = 0;
}

/* ---- all of them --------------------------------------------------------------------------- */

enum { AFTERWARDS = CLAIMS | ATTACHED };

static const scenario scenarios[] = {
    {"claim, the first process", check_and_claim, .set_up = choose_port, .told = FILES,
     .flags = CLAIMS | FRESH},
    {"claim, the first process in the user's folder", check_and_claim, .set_up = choose_port,
     .told = FILES | BIT(CALL_STAT), .flags = CLAIMS | FRESH | OWN_PLACE},
    {"claim, the first process without O_TMPFILE", check_and_claim, .set_up = choose_port,
     .told = FILES, .flags = CLAIMS | FRESH, .refused = CALL_TMPFILE, .refusal = EOPNOTSUPP},
    {"check, the second process", check, be_somebody, choose_port, .told = FILES | MEMORY,
     .flags = CLAIMS},
    {"check, without MADV_DONTFORK", check, be_somebody, choose_port, .flags = CLAIMS | SPOILT,
     .refused = CALL_DONTFORK, .refusal = EINVAL},
    {"check, without handlers of forks", check, be_somebody, choose_port,
     .flags = CLAIMS | SPOILT | REFUSED_ALWAYS, .refused = CALL_ATFORK, .refusal = ENOMEM},
    {"claim, the second process", check_and_claim, .set_up = choose_port, .told = FILES,
     .flags = CLAIMS},
    {"claim, without MADV_WIPEONFORK", check_and_claim, .set_up = choose_port, .told = FILES,
     .flags = CLAIMS, .refused = CALL_WIPEONFORK, .refusal = EINVAL},
    {"claim a dead process's port", check_and_claim, attach_after_a_death, choose_port,
     .flags = AFTERWARDS},
    {"claim and withdraw", claim_and_withdraw, attach, choose_port, .flags = AFTERWARDS},
    {"claim and withdraw, later", claim_and_withdraw, attach, choose_port,
     .flags = AFTERWARDS | TIME_PASSES},
    {"release", release, attach_and_claim, choose_port, .flags = AFTERWARDS},
    {"release without the descriptor", release, attach_and_lose_the_descriptor, choose_port,
     .flags = AFTERWARDS},
    {"claim, overlaid", check_and_claim, .set_up = choose_port, .told = FILES,
     .flags = CLAIMS | OVERLAID},
    {"check without the lock, overlaid", check_twice, attach_and_lose_the_descriptor, choose_port,
     .flags = AFTERWARDS | OVERLAID | TIME_PASSES},
    {"check without the file, overlaid", check_twice, attach_and_lose_the_file, choose_port,
     .told = FILES, .flags = AFTERWARDS | FRESH | OVERLAID},
    {"fork, overlaid", fork_off, attach_and_claim, choose_port, .flags = AFTERWARDS | OVERLAID},
    {"look", look, attach, start_holder, .flags = AFTERWARDS | OTHERS_HOLD},
    {"list", list_all, attach, start_holder, .told = BIT(CALL_REALLOC),
     .flags = AFTERWARDS | OTHERS_HOLD},
    {"borrow", borrow, NULL, hold_for_children, .told = FILES, .also = BIT(PM_HELD),
     .flags = CLAIMS | OTHERS_HOLD},
    {"check without the descriptor", check, attach_and_lose_the_descriptor, choose_port,
     .flags = AFTERWARDS},
    {"check without fstat", check, attach_and_claim, choose_port, .flags = AFTERWARDS | SPOILT,
     .refused = CALL_FSTAT, .refusal = EIO},
    {"check without the file", check_twice, attach_and_lose_the_file, choose_port, .told = FILES,
     .flags = AFTERWARDS | FRESH},
    {"check without its content", check, attach_and_lose_content, choose_port,
     .flags = AFTERWARDS | FRESH | SPOILT},
    {"allocate the default port", allocate_default, attach, choose_port, .told = SOCKETS,
     .flags = AFTERWARDS},
    {"allocate the default port, the first call", allocate_default, NULL, choose_port,
     .told = SOCKETS | FILES, .flags = CLAIMS},
    {"allocate a dying process's port", allocate_default, attach_after_a_death, occupy_port,
     .told = SOCKETS, .flags = AFTERWARDS | TIME_PASSES},
    {"allocate of a range", allocate_of_range, attach, occupy_port, .told = SOCKETS,
     .flags = AFTERWARDS},
    {"allocate any port", allocate_any, attach_at_the_start, NULL, .told = SOCKETS,
     .flags = AFTERWARDS},
    {"search", search, attach, choose_port, .told = SOCKETS, .flags = AFTERWARDS},
    {"reserve one port", reserve_one, attach_later, NULL, .told = SOCKETS, .flags = AFTERWARDS},
    {"reserve five ports", reserve_five, attach_later, NULL, .told = SOCKETS, .flags = AFTERWARDS},
    {"reserve consecutive ports", reserve_consecutive, attach_later, NULL, .told = SOCKETS,
     .flags = AFTERWARDS},
    {"reserve a name's port", reserve_by_name, attach_later, NULL, .told = SOCKETS,
     .flags = AFTERWARDS},
    {"reserve of a range", reserve_of_range, attach_and_use_range, choose_port, .told = SOCKETS,
     .flags = AFTERWARDS},
};

static void test_all_calls_fail(void **state)
{
    static const call expected[] = {
        CALL_OPEN,     CALL_OPEN_PROC,  CALL_OPENAT,   CALL_TMPFILE,   CALL_CLOSE,  CALL_READ,
        CALL_PREAD,    CALL_PWRITE,     CALL_IOCTL,    CALL_FALLOCATE, CALL_MKDIR,  CALL_FCHMOD,
        CALL_CHMOD,    CALL_LINKAT,     CALL_UNLINKAT, CALL_STAT,      CALL_LSTAT,  CALL_FSTAT,
        CALL_FSTATFS,  CALL_FCNTL,      CALL_MMAP,     CALL_MMAP_OWN,  CALL_MUNMAP, CALL_WIPEONFORK,
        CALL_DONTFORK, CALL_ATFORK,     CALL_MALLOC,   CALL_REALLOC,   CALL_CLOCK,  CALL_NANOSLEEP,
        CALL_SOCKET,   CALL_SETSOCKOPT, CALL_BIND,     CALL_GETRANDOM};
    (void)state;
    check_all_fail(expected, COUNT(expected));
}

int main(void)
{
    FAULT_TESTS(scenarios, test_all_calls_fail);
    return cmocka_run_group_tests_name("faults of the ledger", tests, begin_faults, end_faults);
}
