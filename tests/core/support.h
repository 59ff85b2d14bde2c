/* What the tests of core share: cmocka, children, namespaces, refused system calls. */
#ifndef PM_TEST_SUPPORT_H
#define PM_TEST_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/address.h"
#include "core/ledger.h"
#include "core/status.h"

/* ---- assertions ---------------------------------------------------------------------------- */

static inline const char *status_name(pm_status status)
{
    static const char *const names[] = {
        "PM_OK",        "PM_AGAIN",       "PM_BUSY",       "PM_HELD",      "PM_FORBIDDEN",
        "PM_NOT_LOCAL", "PM_UNSUPPORTED", "PM_UNRESOLVED", "PM_EXHAUSTED", "PM_FAILED"};
    return (size_t)status < sizeof names / sizeof *names ? names[status] : "no pm_status";
}

static inline void check_status(pm_status actual, pm_status expected, const char *text,
                                const char *file, int line)
{
    if (actual != expected) {
        int error = errno;
        print_error("%s: %s, expected %s (errno is %d, %s)\n", text, status_name(actual),
                    status_name(expected), error, strerror(error));
        _fail(file, line);
    }
}

#define assert_status(actual, expected)                                                            \
    check_status((actual), (expected), #actual, __FILE__, __LINE__)

/* ---- children ------------------------------------------------------------------------------ */

enum { CHILD_SKIPPED = 77, CHILD_SECONDS = 120 };

static bool is_child;

/* Ends the test as skipped, in the test's process or in a child of in_child. */
static inline void skip_because(const char *reason)
{
    print_message("skipped: %s\n", reason);
    if (is_child) {
        fflush(NULL);
        _exit(CHILD_SKIPPED);
    }
    skip();
}

/* Runs a part of a test in a forked child, so that it may change what belongs to the process.
 * An assertion that fails there, a signal and a sanitizer's report fail the test here. */
static inline void in_child(void (*body)(void *), void *argument)
{
    int status;

    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        static const struct rlimit no_core = {0, 0};
        is_child = true;
        setrlimit(RLIMIT_CORE, &no_core);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        alarm(CHILD_SECONDS);
        setenv("CMOCKA_TEST_ABORT", "1", 1); /* else a failure would go on with the next test */
        body(argument);
        fflush(NULL);
        _exit(0);
    }
    while (waitpid(pid, &status, 0) < 0) {
        assert_int_equal(errno, EINTR);
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == CHILD_SKIPPED) {
        if (is_child) {
            _exit(CHILD_SKIPPED);
        }
        skip();
    }
    if (WIFSIGNALED(status)) {
        fail_msg("the child died of signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* A group of one child that stays until it is told to go: its `body` runs, and its answer comes
 * through a pipe. */
typedef struct {
    pid_t pid;
    int to_child, from_child;
} companion;

/* `body` may write to `answers`; the child then waits for companion_end. */
static inline companion companion_begin(void (*body)(int answers))
{
    int orders[2], answers[2];
    char byte;

    assert_int_equal(pipe2(orders, O_CLOEXEC), 0);
    assert_int_equal(pipe2(answers, O_CLOEXEC), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        is_child = true;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        alarm(CHILD_SECONDS);
        setenv("CMOCKA_TEST_ABORT", "1", 1);
        close(orders[1]);
        close(answers[0]);
        body(answers[1]);
        while (read(orders[0], &byte, 1) < 0 && errno == EINTR) {
        }
        _exit(0);
    }
    close(orders[0]);
    close(answers[1]);
    return (companion){.pid = pid, .to_child = orders[1], .from_child = answers[0]};
}

static inline void companion_end(const companion *child)
{
    int status;
    assert_int_equal(write(child->to_child, "", 1), 1);
    close(child->to_child);
    close(child->from_child);
    assert_int_equal(waitpid(child->pid, &status, 0), child->pid);
    assert_int_equal(status, 0);
}

/* ---- the process's own state: for children only --------------------------------------------- */

static inline bool kernel_is_at_least(int major, int minor)
{
    struct utsname name;
    int its_major = 0, its_minor = 0;
    return uname(&name) == 0 && sscanf(name.release, "%d.%d", &its_major, &its_minor) == 2 &&
           (its_major > major || (its_major == major && its_minor >= minor));
}

/* A user without any privilege; in a user namespace, too, where every user may have them all. */
static inline void become_nobody(void)
{
    enum { NOBODY = 65534 };
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    static const struct __user_cap_data_struct none[2];

    if (geteuid() == 0 && (setgroups(0, NULL) != 0 || setgid(NOBODY) != 0 || setuid(NOBODY) != 0)) {
        skip_because("this process cannot become another user");
    }
    assert_int_equal(syscall(SYS_capset, &header, none), 0);
}

static inline rlim_t *descriptor_limit_before(void)
{
    static rlim_t before;
    return &before;
}

/* Leaves room for so many more descriptors, until unlimit_descriptors. */
static inline void limit_descriptors(unsigned spare)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    int lowest = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_true(lowest >= 0);
    close(lowest);
    *descriptor_limit_before() = limit.rlim_cur;
    limit.rlim_cur = (rlim_t)lowest + spare;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

static inline void unlimit_descriptors(void)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = *descriptor_limit_before();
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

static inline size_t open_descriptors(void)
{
    size_t count = 0;
    DIR *folder = opendir("/proc/self/fd");
    assert_non_null(folder);
    while (readdir(folder)) {
        count++;
    }
    closedir(folder);
    return count;
}

/* Is it a descriptor of the file that has this name? */
static inline bool is_descriptor_of(int fd, const char *file)
{
    char link[64], target[PATH_MAX];

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, target, sizeof target - 1);
    target[length < 0 ? 0 : length] = '\0';
    return strcmp(target, file) == 0;
}

/* ---- refused system calls: for children only ------------------------------------------------ */

/* From now on `call` ends in `action` when its argument number `argument` is `value` under the
 * mask. */
static inline void filter_call(long call, unsigned argument, uint32_t mask, uint32_t value,
                               uint32_t action)
{
    const uint32_t low_half = __BYTE_ORDER == __BIG_ENDIAN ? 4 : 0;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                 (uint32_t)offsetof(struct seccomp_data, args) + 8 * argument + low_half),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, mask),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        skip_because("no seccomp filter is permitted here");
    }
}

static inline void refuse_sockets(int family, int error)
{
    filter_call(SYS_socket, 0, UINT32_MAX, (uint32_t)family, SECCOMP_RET_ERRNO | (uint32_t)error);
}

static inline void refuse_files(int error)
{
    filter_call(SYS_openat, 0, 0, 0, SECCOMP_RET_ERRNO | (uint32_t)error);
}

/* From now on who opens a descriptor that exec would hand on dies of SIGSYS. */
static inline void forbid_inheritable_descriptors(void)
{
    filter_call(SYS_socket, 1, SOCK_CLOEXEC, 0, SECCOMP_RET_KILL_PROCESS);
    filter_call(SYS_openat, 2, O_CLOEXEC, 0, SECCOMP_RET_KILL_PROCESS);
}

/* From now on who talks to a resolver dies of SIGSYS. */
static inline void forbid_connections(void)
{
    filter_call(SYS_connect, 0, 0, 0, SECCOMP_RET_KILL_PROCESS);
}

/* ---- networks ------------------------------------------------------------------------------ */

static inline void raise_loopback(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(ioctl(fd, SIOCGIFFLAGS, &request), 0);
    request.ifr_flags |= IFF_UP;
    assert_int_equal(ioctl(fd, SIOCSIFFLAGS, &request), 0);
    close(fd);
}

/* A network of its own for this process, with a loopback interface and nothing else; for
 * children only. */
static inline void enter_new_network(void)
{
    if (unshare(CLONE_NEWNET) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) {
        skip_because("no network namespace is permitted here");
    }
    raise_loopback();
}

/* The group's setup: nobody else takes the ports that a test counts on being free. Where that is
 * not permitted the tests share the machine's ports. */
static inline int isolate(void **state)
{
    (void)state;
    if (unshare(CLONE_NEWNET) == 0) {
        raise_loopback();
    }
    return 0;
}

/* ---- a ledger of one's own ------------------------------------------------------------------ */

static char ledger_folder[PATH_MAX];

static inline const char *ledger_path(void)
{
    static char path[PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/ledger", ledger_folder);
    return path;
}

/* The group's setup, with isolate()'s: this program and its children share a ledger that nobody
 * else uses. */
static inline int isolate_with_ledger(void **state)
{
    char name[] = "/tmp/portmanager-tests-XXXXXX";

    if (isolate(state) != 0 || !mkdtemp(name) || !realpath(name, ledger_folder)) {
        return -1;
    }
    return setenv("PORTMANAGER_LEDGER", ledger_path(), 1);
}

/* Ports have no past from here on, for who counts on which ones rested. */
static inline void forget_the_past(void)
{
    assert_true(unlink(ledger_path()) == 0 || errno == ENOENT);
}

/* The group's teardown: nothing else is in the folder. */
static inline int remove_ledger(void **state)
{
    (void)state;
    unlink(ledger_path());
    return rmdir(ledger_folder);
}

/* Who of this process holds a port. */
static inline pm_holder holder_of(uint16_t port)
{
    pm_holder holder;
    assert_status(pm_ledger_check(), PM_OK);
    pm_ledger_look(port, &holder);
    return holder;
}

/* Claims a port for nothing in particular; `*holder` is who of this process has it else. */
static inline pm_status claim_for(pm_holder me, uint16_t port, pm_holder *holder)
{
    static const pm_name nothing;
    pm_claim claim;

    assert_status(pm_ledger_check(), PM_OK);
    pm_status status = pm_ledger_claim(me, port, &nothing, &claim);
    *holder = claim.holder;
    return status;
}

static inline void write_setting(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0) {
        close(fd);
    }
    if (!written) {
        print_message("%s: %s\n", path, strerror(errno));
        skip_because("a setting of the network cannot be written here");
    }
}

static inline long read_setting(const char *path)
{
    long number;
    FILE *file = fopen(path, "re");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%ld", &number), 1);
    fclose(file);
    return number;
}

/* Gives the loopback interface one more IPv4 address. */
static inline void add_address(const char *literal)
{
    struct ifreq request = {.ifr_name = "lo:1"};
    struct sockaddr_in *address = (struct sockaddr_in *)(void *)&request.ifr_addr;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    address->sin_family = AF_INET;
    assert_int_equal(inet_pton(AF_INET, literal, &address->sin_addr), 1);
    assert_int_equal(ioctl(fd, SIOCSIFADDR, &request), 0);
    close(fd);
}

/* The same for IPv6; linux/ipv6.h, which has the struct, does not go with netinet/in.h. */
static inline void add_address6(const char *literal)
{
    struct {
        struct in6_addr address;
        uint32_t prefix;
        int index;
    } request = {.prefix = 64, .index = (int)if_nametoindex("lo")};
    struct sockaddr_in6 address = {.sin6_family = AF_INET6,
                                   .sin6_scope_id = (uint32_t)request.index};
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_int_equal(inet_pton(AF_INET6, literal, &request.address), 1);
    assert_int_equal(ioctl(fd, SIOCSIFADDR, &request), 0);
    /* It is tentative until the kernel has looked for others that have it. */
    address.sin6_addr = request.address;
    for (int tries = 0; bind(fd, (struct sockaddr *)&address, sizeof address) != 0; tries++) {
        assert_in_range(tries, 0, 5000);
        usleep(1000);
    }
    close(fd);
}

/* ---- addresses of core --------------------------------------------------------------------- */

static inline pm_addresses addresses_of(const char *literal)
{
    pm_addresses addresses;
    assert_status(pm_address_literal(literal, &addresses), PM_OK);
    return addresses;
}

static inline pm_address address_of(const char *literal)
{
    return addresses_of(literal).items[0];
}

#endif
