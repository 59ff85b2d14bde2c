/* Taking part in the ledger: the process's state, its slot, and the file under it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/ledger_state.h"
#include "core/liveness.h"
#include "core/process.h"

/* How old an answer may be: to whether the file is ours, to whether its path is, and to whether
 * a ledger that could not be used still cannot. */
enum { VERIFIED_NS = 20000, PATH_NS = 1000000, RETRY_NS = 1000000000 };

static _Atomic(pm_ledger_state *) own;
static atomic_bool wiped_by_kernel;

/* A descriptor that we keep. It may be closed behind our back, and its number be another file's. Not
 * in `own`: a forked child has it too. */
typedef struct {
    int fd; /* -1: none */
    pm_file_id file;
} kept_fd;

/* To ask for locks by; of a description of its own, so that our lock does not hang on it. */
static kept_fd asking = {.fd = -1};

/* Where mapping a file does not keep its open file description (overlayfs maps another file), the
 * lock hangs on this descriptor. A forked child closes its copy. */
static kept_fd lock = {.fd = -1};
static bool needs_lock_fd;

static void keep(kept_fd *kept, int fd, const pm_ledger_map *map)
{
    *kept = (kept_fd){fd, map->file};
}

/* Closes it, if it is the one that we keep still. */
static void close_kept(kept_fd *kept)
{
    struct stat status;

    if (kept->fd >= 0) {
        bool known = fstat(kept->fd, &status) == 0;
        if (known ? pm_file_id_is(&status, kept->file) : errno != EBADF) {
            close(kept->fd);
        }
    }
    kept->fd = -1;
}

/* ---- the process's own --------------------------------------------------------------------- */

/* No fork while a slot is taken: the child would have the descriptor, or the mapping, that the
 * lock hangs on. */
static _Thread_local pm_ledger_state *locked_for_fork; /* `own` may come into being meanwhile */

static void before_fork(void)
{
    locked_for_fork = atomic_load(&own);
    if (locked_for_fork) {
        pthread_mutex_lock(&locked_for_fork->mutex);
    }
}

static void after_fork_in_parent(void)
{
    if (locked_for_fork) {
        pthread_mutex_unlock(&locked_for_fork->mutex);
    }
}

static void after_fork_in_child(void)
{
    close_kept(&lock);
    if (!wiped_by_kernel && atomic_load(&own)) {
        /* The mapping is not in the child, whoever wipes the memory. */
        memset(atomic_load(&own), 0, sizeof(pm_ledger_state));
    }
}

/* Once for the process; what failed is tried again by the next caller. */
static bool watch_forks(void)
{
    static atomic_flag watched = ATOMIC_FLAG_INIT;

    if (atomic_flag_test_and_set(&watched)) {
        return true;
    }
    if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0) {
        return true;
    }
    atomic_flag_clear(&watched);
    return false;
}

void pm_ledger_prepare(void)
{
    pm_ledger_state *none = NULL;

    if (atomic_load_explicit(&own, memory_order_acquire)) {
        return;
    }
    void *memory = mmap(NULL, sizeof(pm_ledger_state), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return;
    }
    bool wiped = madvise(memory, sizeof(pm_ledger_state), MADV_WIPEONFORK) == 0;
    atomic_store(&wiped_by_kernel, wiped);
    /* Another thread may have been first, with the same. */
    if (!watch_forks() || !atomic_compare_exchange_strong(&own, &none, memory)) {
        munmap(memory, sizeof(pm_ledger_state));
    }
}

pm_ledger_state *pm_ledger_lock(void)
{
    pm_ledger_prepare();
    pm_ledger_state *state = atomic_load_explicit(&own, memory_order_acquire);
    if (state) {
        pthread_mutex_lock(&state->mutex);
    }
    return state;
}

void pm_ledger_unlock(pm_ledger_state *state)
{
    pthread_mutex_unlock(&state->mutex);
}

void pm_ledger_say(pm_ledger_state *state, const pm_trouble *trouble)
{
    if (strcmp(state->said.text, trouble->text) != 0) {
        state->said = state->say = *trouble;
    }
}

bool pm_ledger_notice(pm_trouble *notice)
{
    pm_ledger_state *state = pm_ledger_lock();
    bool any = state && state->say.text[0] != '\0';

    if (any) {
        *notice = state->say;
        state->say.text[0] = '\0';
    }
    if (state) {
        pm_ledger_unlock(state);
    }
    return any;
}

/* ---- who lives ----------------------------------------------------------------------------- */

/* As pm_ledger_file_reopen. */
static pm_status reopen_asking(const pm_ledger_map *map)
{
    int fd;

    close_kept(&asking);
    pm_status status = pm_ledger_file_reopen(map, &fd);
    keep(&asking, fd, map);
    return status;
}

/* Sees to it that there is a descriptor of the mapped file. */
static pm_status ready_asking(const pm_ledger_map *map)
{
    return pm_ledger_file_state(map, asking.fd, NULL) == PM_FILE_OTHER_FD ? reopen_asking(map)
                                                                          : PM_OK;
}

static bool slot_is_locked(pm_ledger_state *state, uint32_t slot)
{
    for (int attempts = 0; attempts < 2; attempts++) {
        bool locked = true;
        if (asking.fd >= 0 && pm_liveness_ask(asking.fd, slot, &locked) == PM_OK) {
            /* `No` of another file, by a descriptor that is not ours any more, would be fatal. */
            if (locked || pm_ledger_file_state(&state->map, asking.fd, NULL) <= PM_FILE_CHANGED) {
                return locked;
            }
        }
        if (ready_asking(&state->map) != PM_OK) {
            break;
        }
    }
    return true; /* not known */
}

bool pm_ledger_lives(pm_ledger_state *state, pm_half half)
{
    uint32_t slot = pm_slot_of(half);

    if (slot == 0 || slot > state->map.slot_count || half & PM_LEFT ||
        !pm_ledger_is_recent(state, half)) {
        return false;
    }
    return half == state->half || slot_is_locked(state, slot);
}

/* ---- taking part --------------------------------------------------------------------------- */

/* Lock first, then raise the generation: in between the previous holder seems to live, which is
 * the safe side. The pid is taken out before, so that nobody reads the previous holder's with our
 * generation. PM_BUSY: the slot is not to be had. */
static pm_status take_slot_at(pm_ledger_state *state, int fd, uint32_t number)
{
    pm_slot *slot = &state->map.slots[number];
    pm_status status = pm_liveness_lock(fd, number);

    if (status != PM_OK) {
        return status;
    }
    uint32_t generation = atomic_load(&slot->generation);
    if (generation >= PM_GENERATION_MAX) {
        pm_liveness_unlock(fd, number); /* it had its last holder */
        return PM_BUSY;
    }
    pm_process self = pm_process_self();
    atomic_store(&slot->pid, 0);
    atomic_store(&slot->generation, generation + 1);
    atomic_store(&slot->started, self.started);
    atomic_store(&slot->pid, self.pid);
    atomic_fetch_add(&state->map.header->takings, 1);
    state->half = pm_half_of(number, generation + 1);
    return PM_OK;
}

static pm_status take_slot(pm_ledger_state *state, int fd, pm_trouble *trouble)
{
    uint32_t count = state->map.slot_count;
    uint32_t start = (uint32_t)(atomic_load(&state->map.header->takings) % count);
    pm_status status = PM_BUSY;

    for (uint32_t i = 0; status == PM_BUSY && i < count; i++) {
        status = take_slot_at(state, fd, (start + i) % count + 1);
    }
    if (status == PM_BUSY) {
        snprintf(trouble->text, sizeof trouble->text,
                 "%s has no slot left for one more process: remove it when nothing uses it",
                 state->map.path);
        return PM_FAILED;
    }
    if (status == PM_FAILED) {
        snprintf(trouble->text, sizeof trouble->text,
                 "cannot lock %s: %s (PORTMANAGER_LEDGER may name another file)", state->map.path,
                 strerror(errno));
    }
    return status;
}

/* Does the lock hang on the mapping alone? PM_UNSUPPORTED: no. */
static pm_status check_lock(pm_ledger_state *state, pm_trouble *trouble)
{
    bool locked = false;

    pm_status ready = ready_asking(&state->map);
    if (ready != PM_OK) {
        return ready == PM_EXHAUSTED ? PM_EXHAUSTED : PM_AGAIN;
    }
    pm_status asked = pm_liveness_ask(asking.fd, pm_slot_of(state->half), &locked);
    if (asked != PM_OK || !locked) {
        snprintf(trouble->text, sizeof trouble->text,
                 "%s cannot be used: its file system does not keep locks (PORTMANAGER_LEDGER may "
                 "name another file)",
                 state->map.path);
        return asked == PM_OK ? PM_UNSUPPORTED : PM_FAILED;
    }
    return PM_OK;
}

static void detach(pm_ledger_state *state)
{
    close_kept(&asking);
    close_kept(&lock);
    pm_ledger_file_unmap(&state->map); /* and with it our lock */
    state->half = 0;
    state->kin_known = false;
    state->mode = PM_UNDECIDED;
}

/* The mapping keeps the lock, or the descriptor has to. */
static void keep_lock(const pm_ledger_state *state, int fd)
{
    if (!needs_lock_fd) {
        close(fd);
        return;
    }
    keep(&lock, fd, &state->map);
}

static pm_status attach_file(pm_ledger_state *state, const char *path, pm_trouble *trouble)
{
    pm_status status = PM_AGAIN;

    /* Once more if the file is replaced while we do it. */
    for (int attempts = 0; status == PM_AGAIN && attempts < 8; attempts++) {
        int fd = -1;
        status = pm_ledger_file_open(path, &state->map, &fd, trouble);
        if (status == PM_OK) {
            status = take_slot(state, fd, trouble);
            keep_lock(state, fd);
        }
        if (status == PM_OK) {
            status = check_lock(state, trouble);
        }
        if (status == PM_UNSUPPORTED) {
            status = needs_lock_fd ? PM_FAILED : PM_AGAIN;
            needs_lock_fd = true;
        }
        if (status != PM_OK) {
            int error = errno;
            detach(state);
            errno = error;
        }
    }
    if (status == PM_AGAIN) {
        snprintf(trouble->text, sizeof trouble->text, "%s is replaced again and again",
                 state->map.path);
    }
    return status == PM_AGAIN ? PM_FAILED : status;
}

static pm_status attach(pm_ledger_state *state)
{
    const char *path = getenv("PORTMANAGER_LEDGER");
    pm_trouble trouble;

    if (path && strcmp(path, "process") == 0) {
        state->mode = PM_ALONE;
        return PM_OK;
    }
    pm_status status = attach_file(state, path && *path ? path : NULL, &trouble);
    if (status == PM_OK) {
        state->mode = PM_SHARED;
        state->said.text[0] = '\0';
        pm_ledger_publish_all(state);
    } else if (status == PM_FAILED) {
        pm_trouble said;
        snprintf(said.text, sizeof said.text, "Ports are reserved within this process alone: %.*s",
                 (int)(sizeof said.text - 64), trouble.text);
        pm_ledger_say(state, &said);
        status = PM_OK; /* alone for now */
    }
    /* What was exhausted is asked for again at the next call. */
    state->named_at = status == PM_OK ? pm_clock_ns(CLOCK_MONOTONIC) : 0;
    return status;
}

/* Asks for everything that can be known: the descriptor, the file's links, its name. PM_BUSY: the
 * file is not whole any more, or not the one that others find. */
static pm_status verify(pm_ledger_state *state, int64_t now)
{
    int64_t changed_at;
    pm_file_state file = pm_ledger_file_state(&state->map, asking.fd, &changed_at);

    if (file == PM_FILE_OTHER_FD) {
        pm_status status = reopen_asking(&state->map);
        if (status == PM_FORBIDDEN) {
            return pm_ledger_file_is_there(&state->map) ? PM_OK : PM_BUSY;
        }
        if (status != PM_OK) {
            return status;
        }
        file = pm_ledger_file_state(&state->map, asking.fd, &changed_at);
    }
    if (file == PM_FILE_UNKNOWN) {
        if (pm_status_of_errno(errno) == PM_EXHAUSTED) {
            return PM_EXHAUSTED;
        }
        return pm_ledger_file_is_whole_by_name(&state->map) ? PM_OK : PM_BUSY;
    }
    if (file != PM_FILE_SOUND || !pm_ledger_file_is_ledger(&state->map)) {
        return PM_BUSY;
    }
    /* Renaming changes a file's status, that of its folder does not. */
    if (changed_at != state->changed_at || now - state->named_at >= PATH_NS) {
        if (!pm_ledger_file_is_named(&state->map)) {
            return PM_BUSY;
        }
        state->named_at = now;
        state->changed_at = changed_at;
    }
    /* The descriptor may be closed, or another one of the file: the lock itself is asked for. */
    if (lock.fd >= 0) {
        bool locked = true;
        if (pm_liveness_ask(asking.fd, pm_slot_of(state->half), &locked) == PM_OK && !locked) {
            return PM_BUSY;
        }
    }
    state->verified_at = now;
    return PM_OK;
}

static bool has_size(const pm_ledger_state *state)
{
    int size; /* from the position on, which nobody moves; lseek would move that of another file */
    return ioctl(asking.fd, FIONREAD, &size) == 0 && size >= 0 && (size_t)size == state->map.size;
}

/* The size is asked each time, for it is what keeps us from a signal; the rest unless it was a
 * moment ago, for it takes three times as long. */
static pm_status is_current(pm_ledger_state *state)
{
    int64_t now = pm_clock_ns(CLOCK_MONOTONIC);
    bool lately = now - state->verified_at < VERIFIED_NS;
    pm_status status = lately && has_size(state) ? PM_OK : verify(state, now);

    /* Overwritten: to others we are dead. */
    return status == PM_OK && !pm_ledger_is_recent(state, state->half) ? PM_BUSY : status;
}

pm_status pm_ledger_check(void)
{
    pm_ledger_state *state = pm_ledger_lock();
    pm_status status = PM_OK;

    if (!state) {
        errno = ENOMEM;
        return PM_EXHAUSTED;
    }
    if (state->mode == PM_SHARED) {
        status = is_current(state);
        if (status == PM_BUSY) {
            detach(state);
            status = attach(state);
        }
    } else if (state->mode == PM_UNDECIDED &&
               (state->named_at == 0 ||
                pm_clock_ns(CLOCK_MONOTONIC) - state->named_at >= RETRY_NS)) {
        status = attach(state);
    }
    pm_ledger_unlock(state);
    return status;
}

/* A moment after the check, most often in the same call of ours, the answer is the check's. */
bool pm_ledger_is_whole(pm_ledger_state *state)
{
    if (state->mode != PM_SHARED) {
        return false;
    }
    if (pm_clock_ns(CLOCK_MONOTONIC) - state->verified_at < VERIFIED_NS || has_size(state)) {
        return true;
    }
    pm_status ready = ready_asking(&state->map);
    if (ready == PM_FORBIDDEN) {
        return pm_ledger_file_is_there(&state->map);
    }
    return (ready == PM_OK && has_size(state)) || pm_ledger_file_is_whole_by_name(&state->map);
}
