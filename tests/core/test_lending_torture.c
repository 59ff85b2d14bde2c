/* Families of processes that claim, lend, lend on and release a few ports under two names, while
 * they are killed at random: whoever holds a port shares it with ancestors and descendants alone,
 * and under one name; and when all are dead every port is free.
 *
 * The oracle is memory that all share: a family tree, and cells for each port where whoever has it
 * says so, behind taking it, and no more before giving it back. TORTURE_SECONDS makes the run
 * longer. */
#include "oracle.h"

#include <sys/mman.h>

#include "core/ledger.h"
#include "core/ledger_file.h"

enum { PORTS = 6, FIRST = 40000, CELLS = 24, BIRTHS_MAX = 1 << 20 };
enum { FOUNDERS = 3, CHILDREN = 2, DEPTH_MAX = 4, TURNS = 100 };
enum { LEAST_LENDINGS_ON = 200, LEAST_KILLS = 100 };

typedef struct {
    _Atomic(person) who;
    uint32_t parent; /* 0: none */
} birth;

typedef struct {
    _Atomic(uint64_t) cells[PORTS][CELLS]; /* birth << 8 | name; 0: free */
    birth births[BIRTHS_MAX];              /* from 1 on */
    _Atomic(uint32_t) born;
    _Atomic(uint64_t) claims, lendings, lendings_on, kills, doubles, troubles;
} oracle;

static oracle *seen; /* MAP_SHARED */

static bool descends(uint32_t from, uint32_t ancestor)
{
    while (from != 0 && from != ancestor) {
        from = seen->births[from].parent;
    }
    return from != 0;
}

static bool is_dead(uint64_t cell)
{
    return !is_alive(atomic_load(&seen->births[cell >> 8].who));
}

/* Says that we have the port, and looks who else says so; how many of our family do. */
static unsigned tell(uint32_t myself, uint32_t at, uint64_t name)
{
    _Atomic(uint64_t) *cells = seen->cells[at];
    uint64_t mine = (uint64_t)myself << 8 | name;
    unsigned relatives = 0;
    bool told = false;

    for (uint32_t i = 0; !told && i < CELLS; i++) {
        uint64_t cell = atomic_load(&cells[i]);
        told =
            (cell == 0 || is_dead(cell)) && atomic_compare_exchange_strong(&cells[i], &cell, mine);
    }
    seen->troubles += !told;
    for (uint32_t i = 0; i < CELLS; i++) {
        uint64_t cell = atomic_load(&cells[i]);
        uint32_t other = (uint32_t)(cell >> 8);
        if (cell != 0 && other != myself && !is_dead(cell) && atomic_load(&cells[i]) == cell) {
            bool related = descends(other, myself) || descends(myself, other);
            if (!related || (cell & 0xff) != name) {
                seen->doubles++;
            }
            relatives++;
        }
    }
    return relatives;
}

static void tell_no_more(uint32_t myself, uint32_t at)
{
    for (uint32_t i = 0; i < CELLS; i++) {
        if (atomic_load(&seen->cells[at][i]) >> 8 == myself) {
            atomic_store(&seen->cells[at][i], 0);
        }
    }
}

/* ---- a member ------------------------------------------------------------------------------- */

typedef struct {
    uint32_t birth, depth, noise;
    pm_holder holder;
    bool has[PORTS];
    pid_t children[CHILDREN]; /* 0: none */
} member;

static void live(uint32_t parent, uint32_t depth, uint32_t noise);

static void take(member *self, uint32_t at)
{
    uint16_t port = (uint16_t)(FIRST + at), lent;
    pm_name name = {.key = noise_of(&self->noise) % 8 ? 1 : 2};
    pm_claim claim;

    if (pm_ledger_check() != PM_OK) {
        return;
    }
    if (pm_ledger_has_kin() && pm_ledger_lend(self->holder, port, port, &name, &lent) == PM_OK) {
        self->has[at] = true;
        seen->lendings++;
        seen->lendings_on += tell(self->birth, at, name.key) > 1;
    } else if (pm_ledger_claim(self->holder, port, &name, &claim) == PM_OK) {
        self->has[at] = true;
        seen->claims++;
        tell(self->birth, at, name.key);
    }
}

static void give_back(member *self, uint32_t at)
{
    tell_no_more(self->birth, at);
    pm_ledger_release(self->holder, (uint16_t)(FIRST + at));
    self->has[at] = false;
}

/* A child is born, or dies and is buried. */
static void change_family(member *self, uint32_t number)
{
    pid_t child = self->children[number];

    if (child != 0) {
        if (noise_of(&self->noise) % 3) {
            kill(child, SIGKILL);
            seen->kills++;
        }
        waitpid(child, NULL, 0);
        self->children[number] = 0;
    } else if (self->depth < DEPTH_MAX) {
        uint32_t noise = noise_of(&self->noise);
        child = fork();
        if (child == 0) {
            live(self->birth, self->depth + 1, noise);
        }
        self->children[number] = child > 0 ? child : 0;
    }
}

/* Whoever is killed leaves its children behind; none of them lives long. */
static void live(uint32_t parent, uint32_t depth, uint32_t noise)
{
    member self = {.birth = atomic_fetch_add(&seen->born, 1) + 1, .depth = depth, .noise = noise};
    pm_trouble trouble;
    bool alive;

    if (self.birth >= BIRTHS_MAX) {
        _exit(0);
    }
    seen->births[self.birth].parent = parent;
    atomic_store(&seen->births[self.birth].who, person_of((uint32_t)getpid(), &alive));
    self.holder = pm_ledger_enroll();
    for (int turn = 0; turn < TURNS; turn++) {
        uint32_t at = noise_of(&self.noise) % PORTS;
        if (noise_of(&self.noise) % 8 == 0) {
            change_family(&self, noise_of(&self.noise) % CHILDREN);
        } else if (!self.has[at]) {
            take(&self, at);
        } else if (noise_of(&self.noise) % 2) {
            give_back(&self, at);
        }
        if (pm_ledger_notice(&trouble)) {
            fprintf(stderr, "%s\n", trouble.text);
            seen->troubles++;
        }
        usleep(noise_of(&self.noise) % 500);
    }
    _exit(0);
}

/* ---- the supervisor ------------------------------------------------------------------------- */

static pid_t start_in(pid_t group, uint32_t noise)
{
    fflush(NULL);
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        setpgid(0, group);
        while (group == 0) {
            pause(); /* it keeps the group */
        }
        live(0, 0, noise);
    }
    setpgid(pid, group);
    return pid;
}

static void end_all(pid_t group)
{
    do {
        kill(-group, SIGKILL);
    } while (waitpid(-group, NULL, 0) > 0 || errno == EINTR);
}

static void assert_all_free(void)
{
    pm_holder me = pm_ledger_enroll();
    pm_name name = {.key = 1};
    pm_claim claim;

    for (uint16_t port = FIRST; port < FIRST + PORTS; port++) {
        assert_status(pm_ledger_check(), PM_OK);
        assert_status(pm_ledger_claim(me, port, &name, &claim), PM_OK);
        pm_ledger_release(me, port);
    }
}

static void torture(void)
{
    const char *wanted = getenv("TORTURE_SECONDS");
    double end = now() + (wanted ? atof(wanted) : 2);
    uint32_t noise = (uint32_t)getpid();
    pid_t founders[FOUNDERS];

    seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_ptr_not_equal(seen, MAP_FAILED);
    /* Orphans come to us, so that everybody can be waited for. */
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    pid_t group = start_in(0, 0);
    for (unsigned i = 0; i < FOUNDERS; i++) {
        founders[i] = start_in(group, noise_of(&noise));
    }
    while (now() < end || seen->lendings_on < LEAST_LENDINGS_ON || seen->kills < LEAST_KILLS) {
        pid_t gone = waitpid(-group, NULL, 0);
        assert_true(gone > 0);
        for (unsigned i = 0; i < FOUNDERS; i++) {
            if (founders[i] == gone) {
                founders[i] = start_in(group, noise_of(&noise));
            }
        }
    }
    end_all(group);
    print_message("%u processes: %llu claims, %llu lendings, %llu of them on, %llu kills\n",
                  (unsigned)seen->born, (unsigned long long)seen->claims,
                  (unsigned long long)seen->lendings, (unsigned long long)seen->lendings_on,
                  (unsigned long long)seen->kills);
    assert_int_equal(seen->doubles, 0);
    assert_int_equal(seen->troubles, 0);
    assert_all_free();
    munmap(seen, sizeof *seen);
}

static void test_families(void **state)
{
    (void)state;
    torture();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),
    };
    return cmocka_run_group_tests_name("lending: torture", tests, isolate_with_ledger,
                                       remove_ledger);
}
