/* Fault injection, by the wrapped calls of fault_calls.h.
 *
 * A scenario runs once to see which calls it makes. Then it runs again for each place in core that
 * makes one, for its first three calls and its last, and for each errno of the call's man page:
 * in a process of its own, the subject, where that call alone fails. The fault is over after that:
 * the subject runs the scenario once more, and now all must go well. Where ports are claimed,
 * another process, the observer, says whether others see what the subject says.
 *
 * Places that two scenarios had in full fail with six errnos in later ones, each time with the
 * next six. A sanitized program takes twice as long: there it is two, from the start. */
#ifndef PM_TEST_FAULTS_H
#define PM_TEST_FAULTS_H

#include "fault_calls.h"

#include "core/ledger.h"
#include "core/ledger_state.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { IN_FULL = 0, ERRORS_ELSE = 2 };
#else
enum { IN_FULL = 2, ERRORS_ELSE = 6 };
#endif

enum {
    CALLS_OF_A_PLACE = 3,
    PLACES_MAX = 512, /* of all scenarios */
    CHOSEN_MAX = 256, /* of one */
    PORTS_MAX = 8,
    SUBJECT_SECONDS = 30
};

/* Where core makes a call. */
typedef struct {
    call which;
    const void *site;
    int scenarios; /* so many had it */
} place;

typedef struct {
    const char *name;
    pm_status (*run)(void); /* what fails, in the subject */
    void (*prepare)(void);  /* in the subject, before that; NULL: nothing */
    void (*set_up)(void);   /* in the subject's parent, once; NULL: nothing */
    uint64_t told;          /* calls: when these are exhausted, that is the answer */
    unsigned also;          /* statuses that are right besides the clean run's and the errno's */
    unsigned flags;
    call refused; /* a call that this machine has not, and */
    int refusal;  /* its errno; 0: it has all */
} scenario;

enum {
    CLAIMS = 1,           /* the ledger is asked */
    ATTACHED = 2,         /* ... and prepare does so first */
    FRESH = 4,            /* there is no ledger yet */
    OWN_PLACE = 8,        /* the ledger is where no variable says */
    SPOILT = 16,          /* the ledger's file is no good, nor ever will be */
    OTHERS_HOLD = 32,     /* the port that is asked for is somebody else's */
    TIME_PASSES = 64,     /* no answer of the file system is fresh enough to be kept */
    MAY_MISANSWER = 128,  /* where the machine does not say, the answer is a guess */
    REFUSED_ALWAYS = 256, /* else while core is at work in `run` */
    OVERLAID = 512,       /* the mapping of a file does not keep its locks */
};

/* What a scenario tells of itself. */
static struct {
    pm_holder me;
    uint16_t asked; /* the port that others may have when nobody here has it; 0: any */
    uint16_t ports[PORTS_MAX];
    size_t count;       /* those are held */
    bool wrong;         /* the answer is, if the status says that it is known */
    size_t descriptors; /* so many more are core's to keep */
} subject;

/* In memory that all processes of a program share. */
typedef struct {
    fault_plan plan;
    char complaint[512];
    pm_status clean;
    bool takes_part; /* the subject, in the ledger */
    uint16_t asked, ports[PORTS_MAX];
    size_t count;
    unsigned runs, complaints;
    size_t place_count;
    place places[PLACES_MAX];
} common;

static common *our;
static char path_of_ledger[128];

/* The first one counts. */
__attribute__((format(printf, 1, 2))) static inline void complain(const char *format, ...)
{
    va_list arguments;

    if (our->complaint[0] == '\0') {
        va_start(arguments, format);
        vsnprintf(our->complaint, sizeof our->complaint, format, arguments);
        va_end(arguments);
    }
}

/* ---- what is right ------------------------------------------------------------------------- */

/* The errno that the caller of core is to see. */
static inline int visible_error(void)
{
    call which = our->plan.fails.which;
    bool is_memory = which == CALL_MMAP_OWN || our->plan.error == EAI_MEMORY;
    return is_memory ? ENOMEM : our->plan.error;
}

static inline bool is_right(const scenario *this, pm_status status, int error)
{
    int expected = visible_error();
    bool no_error = expected == NO_BYTES || expected == HALF || expected < 0;
    pm_status direct = no_error ? our->clean : pm_status_of_errno(expected);
    uint64_t which = BIT(our->plan.fails.which);

    if (expected == EINTR && which & RESTARTED) {
        bool is_alone = this->flags & CLAIMS && !(this->flags & SPOILT) && !our->takes_part;
        return status == our->clean && !is_alone;
    }
    if (direct == PM_EXHAUSTED && which & this->told) {
        return status == direct && error == expected;
    }
    if (status == our->clean || this->also & BIT(status)) {
        return true;
    }
    if (status == PM_OK && this->flags & CLAIMS) {
        return !our->takes_part; /* and that was said */
    }
    if (status == PM_EXHAUSTED) {
        return status == direct && error == expected;
    }
    if (status == PM_FAILED) {
        return direct != PM_EXHAUSTED && (no_error || error == expected);
    }
    return status == direct && error == expected;
}

/* ---- what is left -------------------------------------------------------------------------- */

typedef struct {
    long descriptors, blocks, mappings, files, folders, lists;
} inventory;

static inline inventory take_inventory(void)
{
    return (inventory){(long)open_descriptors(), balance.blocks, balance.mappings, balance.files,
                       balance.folders,          balance.lists};
}

static inline void check_inventory(const scenario *this, const inventory *before, const char *when)
{
    inventory now = take_inventory();
    bool attaches = this->flags & CLAIMS && !(this->flags & ATTACHED);
    /* Whose descriptor is bad does not close it, but here it is good. */
    bool is_lost = our->plan.hit && our->plan.fails.which == CALL_FSTAT && our->plan.error == EBADF;
    /* One to ask for locks; one for the lock, if the mapping may not keep it. */
    bool is_unknown = our->plan.hit && our->plan.fails.which == CALL_FCNTL;
    long descriptors = (attaches ? 1 : 0) + (attaches && this->flags & OVERLAID ? 1 : 0) +
                       is_unknown + is_lost + (long)subject.descriptors;
    /* The process's own, and the ledger's; one that cannot be unmapped stays. */
    long mappings = (attaches ? 2 : 0) + (our->plan.hit && our->plan.fails.which == CALL_MUNMAP);

    if (now.descriptors > before->descriptors + descriptors) {
        complain("%s %ld descriptors too many are open", when,
                 now.descriptors - before->descriptors - descriptors);
    }
    if (now.mappings > before->mappings + mappings) {
        complain("%s %ld mappings are left", when, now.mappings - before->mappings - mappings);
    }
    if (now.blocks != before->blocks || now.files != before->files ||
        now.folders != before->folders || now.lists != before->lists) {
        complain("%s %ld blocks of memory, %ld files, %ld folders and %ld lists of addresses are "
                 "left",
                 when, now.blocks - before->blocks, now.files - before->files,
                 now.folders - before->folders, now.lists - before->lists);
    }
}

/* ---- who holds what ------------------------------------------------------------------------ */

static inline void hold_port(uint16_t port)
{
    assert_in_range(subject.count, 0, PORTS_MAX - 1);
    subject.ports[subject.count++] = port;
}

static inline bool is_held(uint16_t port)
{
    for (size_t i = 0; i < subject.count; i++) {
        if (subject.ports[i] == port) {
            return true;
        }
    }
    return false;
}

/* How many ports this process holds by its own table, */
static inline size_t count_held(const pm_ledger_state *state)
{
    size_t count = 0;
    for (size_t i = 0; i < COUNT(state->held.bits); i++) {
        count += (size_t)__builtin_popcountll(state->held.bits[i]);
    }
    return count;
}

/* and by the words that others see. */
static inline size_t count_words(const pm_ledger_state *state)
{
    size_t count = 0;
    for (uint32_t port = 0; port <= UINT16_MAX; port++) {
        uint64_t word = atomic_load_explicit(&state->map.entries[port].word, memory_order_relaxed);
        count += pm_owner_of(word) == state->half || pm_heir_of(word) == state->half;
    }
    return count;
}

/* Near the port that was asked for, if it was one. */
static inline size_t count_listed(void)
{
    enum { NEAR = 8 };
    pm_held_list list;
    size_t count = 0;
    uint16_t first = subject.asked > NEAR ? (uint16_t)(subject.asked - NEAR) : 0;
    uint16_t last = subject.asked && subject.asked < UINT16_MAX - NEAR
                        ? (uint16_t)(subject.asked + NEAR)
                        : UINT16_MAX;

    if (pm_ledger_list(first, last, &list) != PM_OK) {
        complain("the ports cannot be listed");
    }
    for (size_t i = 0; i < list.count; i++) {
        count += list.items[i].pid == (uint32_t)getpid();
    }
    pm_held_list_free(&list);
    return count;
}

/* Are exactly those ports ours that are said to be? `all`: for others and in lists, too. */
static inline void check_held(const char *when, bool all)
{
    static const pm_name nameless;
    pm_holder other = pm_ledger_enroll();
    pm_ledger_state *state = pm_ledger_lock();
    pm_claim claim;

    our->takes_part = state && state->mode == PM_SHARED;
    if (!state) {
        return;
    }
    size_t held = count_held(state), words = all && our->takes_part ? count_words(state) : held;
    pm_ledger_unlock(state);
    if (held != subject.count || words != held) {
        complain("%s %zu ports are held, and %zu in the ledger, not %zu", when, held, words,
                 subject.count);
    }
    if (all && subject.count == 0 && count_listed() != 0) {
        complain("%s ports of this process are listed", when);
    }
    for (size_t i = 0; i < subject.count; i++) {
        if (pm_ledger_claim(other, subject.ports[i], &nameless, &claim) != PM_HELD ||
            claim.holder != subject.me) {
            complain("%s port %u has a second holder", when, subject.ports[i]);
            pm_ledger_withdraw(other, subject.ports[i]);
        }
    }
}

/* Who reserves ports for itself alone has to say so, and why. */
static inline void check_notice(void)
{
    pm_trouble notice;
    bool said = pm_ledger_notice(&notice);

    if (!said && !our->takes_part) {
        complain("the ports are reserved in this process alone, and nobody says so");
    }
    if (said && strstr(notice.text, strerror(0))) {
        complain("the notice has no reason: %s", notice.text);
    }
    if (said && our->takes_part) {
        complain("the process takes part, and this is said: %s", notice.text);
    }
}

/* A machine that does not tell its networks apart has another ledger than the observer's. */
static inline bool is_elsewhere(void)
{
    return our->plan.hit && our->plan.fails.which == CALL_STAT;
}

/* In another process, while the subject waits. */
static inline void observe(const scenario *this)
{
    static const pm_name nameless;
    pm_holder me = pm_ledger_enroll();
    pm_trouble notice = {""};
    pm_claim claim;
    bool asked_is_held = this->flags & OTHERS_HOLD;

    pm_status status = pm_ledger_check();
    pm_ledger_notice(&notice);
    if (status != PM_OK || notice.text[0] != '\0') {
        if (!(this->flags & SPOILT)) {
            complain("others cannot take part: %s", notice.text);
        }
        return;
    }
    for (size_t i = 0; i < our->count; i++) {
        asked_is_held |= our->ports[i] == our->asked;
        if (our->takes_part && !is_elsewhere() &&
            pm_ledger_claim(me, our->ports[i], &nameless, &claim) != PM_HELD) {
            complain("port %u is free to others", our->ports[i]);
        }
    }
    if (our->asked && !asked_is_held &&
        pm_ledger_claim(me, our->asked, &nameless, &claim) != PM_OK) {
        complain("port %u stays claimed", our->asked);
    }
}

/* ---- the subject --------------------------------------------------------------------------- */

static inline pm_status run_armed(const scenario *this, int *error)
{
    memset(made_so_far, 0, sizeof made_so_far);
    subject.wrong = false;
    errno = 0;
    armed = true;
    if (this->flags & CLAIMS && subject.me == PM_NOBODY) {
        subject.me = pm_ledger_enroll();
    }
    pm_status status = this->run();
    *error = errno;
    armed = false;
    return status;
}

static inline void give_back(void)
{
    while (subject.count > 0) {
        pm_ledger_withdraw(subject.me, subject.ports[--subject.count]);
    }
}

static inline void be_subject(const scenario *this, int runner)
{
    static const char first[] = "after the fault", second[] = "after the second time";
    int error;
    char byte;

    subject.me = this->flags & ATTACHED ? pm_ledger_enroll() : PM_NOBODY;
    step_ns = this->flags & TIME_PASSES ? 2000000 : 0;
    refused = this->refusal ? this->refused : CALLS;
    refusal = this->refusal;
    refused_always = this->flags & REFUSED_ALWAYS;
    maps_another = this->flags & OVERLAID;
    if (this->prepare) {
        this->prepare();
    }
    inventory before = take_inventory();
    pm_status status = run_armed(this, &error);
    if (our->plan.error == NO_ERROR) {
        our->clean = status;
    }
    if (this->flags & CLAIMS) {
        check_held(first, true);
        if (status == PM_OK) {
            check_notice();
        }
        our->asked = subject.asked;
        our->count = subject.count;
        memcpy(our->ports, subject.ports, sizeof subject.ports);
        if (write(runner, "", 1) != 1 || read(runner, &byte, 1) != 1) {
            complain("the runner is gone");
        }
    }
    if (our->plan.error != NO_ERROR && !is_right(this, status, error)) {
        complain("the status is %s with %s, %s without a fault", status_name(status),
                 strerror(error), status_name(our->clean));
    }
    if (status == PM_OK && subject.wrong && !(this->flags & MAY_MISANSWER)) {
        complain("the answer is wrong");
    }
    give_back();
    check_inventory(this, &before, first);

    /* Once more, and well. Long enough after the fault. */
    fault_is_over = true;
    monotonic_ns += INT64_C(2000000000);
    status = run_armed(this, &error);
    if (status != our->clean || (status == PM_OK && subject.wrong)) {
        complain("the second time the status is %s with %s, %s without a fault",
                 status_name(status), strerror(error), status_name(our->clean));
    }
    if (this->flags & CLAIMS) {
        check_held(second, false);
        if (!our->takes_part && !(this->flags & SPOILT)) {
            complain("the process does not take part ever after");
        }
        give_back();
        check_held("at the end", false);
    }
    check_inventory(this, &before, second);
}

/* ---- the runner ---------------------------------------------------------------------------- */

static inline void empty_folder(const char *path)
{
    DIR *folder = opendir(path);

    for (const struct dirent *entry; folder && (entry = readdir(folder));) {
        unlinkat(dirfd(folder), entry->d_name, 0);
    }
    if (folder) {
        closedir(folder);
    }
}

/* A file that was made is the only one, and nobody else's to open. */
static inline void check_folder(void)
{
    DIR *folder = opendir(folder_of_tests);
    struct stat status;
    unsigned files = 0;

    for (const struct dirent *entry; folder && (entry = readdir(folder));) {
        files += entry->d_type == DT_REG;
    }
    if (folder) {
        closedir(folder);
    }
    if (files > 1 && our->plan.fails.which != CALL_UNLINKAT) {
        complain("there are %u files", files);
    }
    if (stat(path_of_ledger, &status) == 0 && (status.st_mode & 07777) != 0600) {
        complain("the ledger has mode %04o", status.st_mode & 07777);
    }
}

static inline pid_t start_process(void)
{
    fflush(NULL);
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        alarm(SUBJECT_SECONDS);
    }
    return pid;
}

static inline void end_process(pid_t pid, const char *who)
{
    int status;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (status != 0) {
        complain("the %s %s %d", who, WIFSIGNALED(status) ? "died of signal" : "ended with",
                 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    }
}

static inline const char *error_text(int error)
{
    return error == NO_BYTES ? "no bytes"
           : error == HALF   ? "half the bytes"
           : error < 0       ? gai_strerror(error)
                             : strerrorname_np(error);
}

static inline void run_once(const scenario *this, made_call fails, int error)
{
    extern const char __executable_start[];
    int ends[2];
    char byte;

    our->plan.fails = fails;
    our->plan.error = error;
    our->plan.hit = false;
    our->plan.made_count = 0;
    our->complaint[0] = '\0';
    if (this->flags & FRESH) {
        char own[128];
        snprintf(own, sizeof own, "%s/own-%u", folder_of_tests, (unsigned)geteuid());
        empty_folder(folder_of_tests);
        empty_folder(own);
        rmdir(own);
    }
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    pid_t pid = start_process();
    if (pid == 0) {
        close(ends[0]);
        be_subject(this, ends[1]);
        _exit(0);
    }
    close(ends[1]);
    if (this->flags & CLAIMS && read(ends[0], &byte, 1) == 1) {
        pid_t observer = start_process();
        if (observer == 0) {
            observe(this);
            _exit(0);
        }
        end_process(observer, "observer");
        assert_int_equal(write(ends[0], "", 1), 1);
    }
    end_process(pid, "subject");
    close(ends[0]);
    if (this->flags & FRESH) {
        check_folder();
    }
    /* Where this network is not ours alone, the lines of its tables are not either. */
    if (error != NO_ERROR && !our->plan.hit && fails.which != CALL_FGETS) {
        complain("the call was not made");
    }
    if (our->complaint[0] != '\0') {
        our->complaints++;
        print_error("%s, %s number %u (addr2line %#lx) with %s: %s\n", this->name,
                    error == NO_ERROR ? "no call" : calls[fails.which].name, fails.number,
                    (unsigned long)((const char *)fails.site - __executable_start),
                    error_text(error), our->complaint);
    }
}

/* The first calls of each place, and its last; returns how many. */
static inline size_t choose(made_call chosen[CHOSEN_MAX])
{
    size_t count = 0;

    assert_in_range(our->plan.made_count, 0, LOG_MAX - 1);
    for (size_t i = 0; i < our->plan.made_count; i++) {
        const made_call *at = &our->plan.made[i];
        unsigned earlier = 0;
        bool later = false;
        for (size_t j = 0; j < our->plan.made_count; j++) {
            if (our->plan.made[j].site == at->site && our->plan.made[j].which == at->which) {
                earlier += j < i;
                later |= j > i;
            }
        }
        if (earlier < CALLS_OF_A_PLACE || !later) {
            assert_in_range(count, 0, CHOSEN_MAX - 1);
            chosen[count++] = *at;
        }
    }
    return count;
}

static inline place *place_of(const made_call *made)
{
    size_t i = 0;

    while (i < our->place_count &&
           (our->places[i].site != made->site || our->places[i].which != made->which)) {
        i++;
    }
    if (i == our->place_count) {
        assert_in_range(i, 0, PLACES_MAX - 1);
        our->places[our->place_count++] = (place){made->which, made->site, 0};
    }
    return &our->places[i];
}

static inline void fail_each(const scenario *this, const made_call *made)
{
    static size_t next[CALLS];
    const int *errors = calls[made->which].errors;
    size_t all = 0, count;

    while (errors[all]) {
        all++;
    }
    count = place_of(made)->scenarios < IN_FULL || all < ERRORS_ELSE ? all : ERRORS_ELSE;
    for (size_t i = 0; i < count; i++) {
        run_once(this, *made, errors[next[made->which]++ % all]);
        our->runs++;
    }
}

static inline void run_scenario(void *argument)
{
    static made_call chosen[CHOSEN_MAX];
    const scenario *this = argument;
    unsigned before = our->complaints;
    pm_trouble trouble;

    if (this->flags & OWN_PLACE) {
        unsetenv("PORTMANAGER_LEDGER");
    }
    if (this->flags & CLAIMS && !(this->flags & FRESH)) {
        unlink(path_of_ledger);
        assert_status(pm_ledger_file_create(path_of_ledger, PM_SLOTS_MAX, &trouble), PM_OK);
    }
    if (this->set_up) {
        this->set_up();
    }
    run_once(this, (made_call){.which = CALLS}, NO_ERROR);
    assert_int_equal(our->complaints, before);
    size_t count = choose(chosen);
    for (size_t i = 0; i < count; i++) {
        fail_each(this, &chosen[i]);
    }
    for (size_t i = 0; i < count; i++) {
        place_of(&chosen[i])->scenarios++;
    }
    assert_int_equal(our->complaints, before);
}

static inline void check_scenario(void **state)
{
    in_child(run_scenario, *state);
}

static inline void check_all_fail(const call *expected, size_t count)
{
    unsigned missing = 0;

    for (size_t i = 0; i < count; i++) {
        bool found = false;
        for (size_t j = 0; j < our->place_count; j++) {
            found |= our->places[j].which == expected[i];
        }
        if (!found) {
            print_error("no scenario calls %s\n", calls[expected[i]].name);
            missing++;
        }
    }
    print_message("%u runs, at %zu places\n", our->runs, our->place_count);
    assert_int_equal(missing, 0);
}

static inline int begin_faults(void **state)
{
    /* In memory if possible: a ledger is made for each fault of those that are new. */
    char template[] = "/dev/shm/pm-faults-XXXXXX", elsewhere[] = "/tmp/pm-faults-XXXXXX", *real;

    isolate(state);
    our = mmap(NULL, sizeof *our, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    real = realpath(mkdtemp(template) ? template : mkdtemp(elsewhere), NULL);
    if (our == MAP_FAILED || !real) {
        return -1;
    }
    snprintf(folder_of_tests, sizeof folder_of_tests, "%s", real);
    free(real);
    snprintf(path_of_ledger, sizeof path_of_ledger, "%s/ledger", folder_of_tests);
    plan = &our->plan;
    return setenv("PORTMANAGER_LEDGER", path_of_ledger, 1);
}

static inline int end_faults(void **state)
{
    char own[128];
    (void)state;

    snprintf(own, sizeof own, "%s/own-%u", folder_of_tests, (unsigned)geteuid());
    empty_folder(own);
    rmdir(own);
    empty_folder(folder_of_tests);
    return rmdir(folder_of_tests);
}

/* A program's tests: each scenario, and whether they made all calls fail that they are to. */
#define FAULT_TESTS(scenarios, all_fail)                                                           \
    struct CMUnitTest tests[COUNT(scenarios) + 1];                                                 \
    for (size_t i = 0; i < COUNT(scenarios); i++) {                                                \
        tests[i] = (struct CMUnitTest){.name = (scenarios)[i].name,                                \
                                       .test_func = check_scenario,                                \
                                       .initial_state = (void *)(uintptr_t)&(scenarios)[i]};       \
    }                                                                                              \
    tests[COUNT(scenarios)] = (struct CMUnitTest)cmocka_unit_test(all_fail)

#endif
