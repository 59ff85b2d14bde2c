/* Processes that claim and release a few ports with several threads each, while they are killed
 * and forked at random: no two that live ever hold one port. With few slots as well as many, for
 * errors of generations show only there.
 *
 * The oracle is memory that all share: who holds a port says so behind the claim, and takes it
 * back before the release. TORTURE_SECONDS makes the run longer. */
#include "oracle.h"

#include <pthread.h>
#include <sys/mman.h>

#include "core/ledger.h"
#include "core/ledger_file.h"

enum { WORKERS = 12, THREADS = 3, PORTS = 24, FIRST = 40000, FEW_SLOTS = 31 };
enum { LEAST_KILLS = 30, LEAST_CLAIMS = 1000 };

typedef struct {
    _Atomic(person) holders[PORTS];
    _Atomic(uint64_t) claims, refusals, doubles, forks, troubles;
} oracle;

static oracle *seen; /* MAP_SHARED */
static atomic_bool threads_end;

/* ---- a worker ------------------------------------------------------------------------------- */

static void claim_once(pm_holder me, person myself, uint32_t *noise)
{
    static const pm_name nothing;
    uint32_t at = noise_of(noise) % PORTS;
    uint16_t port = (uint16_t)(FIRST + at);
    pm_claim claim;

    if (pm_ledger_check() != PM_OK || pm_ledger_claim(me, port, &nothing, &claim) != PM_OK) {
        seen->refusals++;
        return;
    }
    person before = atomic_exchange(&seen->holders[at], myself);
    seen->doubles += before != 0 && is_alive(before);
    seen->claims++;
    if (noise_of(noise) % 8 == 0) {
        usleep(noise_of(noise) % 200);
    }
    person mine = myself;
    if (!atomic_compare_exchange_strong(&seen->holders[at], &mine, 0)) {
        seen->doubles++;
    }
    if (noise_of(noise) % 4) {
        pm_ledger_release(me, port);
    } else {
        pm_ledger_withdraw(me, port);
    }
}

static void *claim_often(void *seed)
{
    uint32_t noise = (uint32_t)(uintptr_t)seed;
    pm_holder me = pm_ledger_enroll();
    bool alive;
    person myself = person_of((uint32_t)getpid(), &alive);

    while (!threads_end) {
        claim_once(me, myself, &noise);
    }
    return NULL;
}

/* A child of a process with threads, one of which may be anywhere in the ledger. */
static void run_child(uint32_t noise)
{
    pid_t pid = fork();

    if (pid == 0) {
        pm_holder me = pm_ledger_enroll();
        bool alive;
        person myself = person_of((uint32_t)getpid(), &alive);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (uint32_t i = noise_of(&noise) % 300; i > 0; i--) {
            claim_once(me, myself, &noise);
        }
        _exit(0);
    }
    if (pid > 0) {
        seen->forks++;
        waitpid(pid, NULL, 0);
    }
}

static void work(uint32_t seed)
{
    pthread_t threads[THREADS];
    pm_trouble trouble;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (uintptr_t i = 0; i < THREADS; i++) {
        pthread_create(&threads[i], NULL, claim_often, (void *)(seed * THREADS + i + 1));
    }
    for (;;) {
        usleep(noise_of(&seed) % 3000);
        run_child(seed);
        if (pm_ledger_notice(&trouble)) {
            fprintf(stderr, "%s\n", trouble.text);
            seen->troubles++;
        }
    }
}

/* ---- the supervisor ------------------------------------------------------------------------- */

static pid_t start_worker(uint32_t seed)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        work(seed);
        _exit(0);
    }
    return pid;
}

static void torture(uint32_t slots)
{
    const char *wanted = getenv("TORTURE_SECONDS"), *path = getenv("PORTMANAGER_LEDGER");
    double end = now() + (wanted ? atof(wanted) : 2);
    uint32_t noise = (uint32_t)getpid(), kills = 0;
    pid_t workers[WORKERS];
    pm_trouble trouble;

    unlink(path);
    assert_status(pm_ledger_file_create(path, slots, &trouble), PM_OK);
    seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(seen, MAP_FAILED);
    for (uint32_t i = 0; i < WORKERS; i++) {
        workers[i] = start_worker(noise_of(&noise));
    }
    /* A machine that is busy takes longer for what makes it a torture. */
    while (now() < end || kills < LEAST_KILLS || seen->claims < LEAST_CLAIMS || !seen->refusals ||
           !seen->forks) {
        usleep(noise_of(&noise) % 4000);
        uint32_t at = noise_of(&noise) % WORKERS;
        kill(workers[at], SIGKILL);
        waitpid(workers[at], NULL, 0);
        workers[at] = start_worker(noise_of(&noise));
        kills++;
    }
    for (uint32_t i = 0; i < WORKERS; i++) {
        kill(workers[i], SIGKILL);
        waitpid(workers[i], NULL, 0);
    }
    print_message("%u slots: %llu claims, %llu refusals, %u kills, %llu forks\n", slots,
                  (unsigned long long)seen->claims, (unsigned long long)seen->refusals, kills,
                  (unsigned long long)seen->forks);
    assert_int_equal(seen->doubles, 0);
    assert_int_equal(seen->troubles, 0);
    munmap(seen, sizeof *seen);
}

static void test_few_slots(void **state)
{
    (void)state;
    torture(FEW_SLOTS);
}

static void test_many_slots(void **state)
{
    (void)state;
    torture(PM_SLOTS_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_few_slots),
        cmocka_unit_test(test_many_slots),
    };
    return cmocka_run_group_tests_name("ledger: torture", tests, isolate_with_ledger,
                                       remove_ledger);
}
