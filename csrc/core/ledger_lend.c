/* Lending: a descendant of a holder gets the port that is held for the same service. */
#include <string.h>

#include "core/ledger_state.h"
#include "core/process.h"

enum { ANCESTORS_MAX = 64 };

static bool is_same(const pm_process *left, const pm_process *right)
{
    return left->pid == right->pid && left->started == right->started;
}

/* How many links from a lineage's first to `process`; 0: it is none of its ancestors. */
static size_t way_to(const pm_process *process, const pm_process *lineage, size_t count)
{
    for (size_t way = 1; way < count; way++) {
        if (is_same(&lineage[way], process)) {
            return way;
        }
    }
    return 0;
}

static pm_process process_of(const pm_slot *slot)
{
    return (pm_process){.pid = atomic_load(&slot->pid), .started = atomic_load(&slot->started)};
}

/* Which slots are our ancestors'? */
static void find_kin(pm_ledger_state *state)
{
    pm_process lineage[ANCESTORS_MAX];
    size_t count = pm_process_lineage(pm_process_id(), lineage, ANCESTORS_MAX);

    state->kin_count = 0;
    for (uint32_t i = 1; i <= state->map.slot_count && state->kin_count < PM_KIN_MAX; i++) {
        const pm_slot *slot = &state->map.slots[i];
        pm_half half = pm_half_of(i, atomic_load(&slot->generation));
        pm_process process = process_of(slot);
        if (process.pid != 0 && way_to(&process, lineage, count) != 0 &&
            pm_ledger_lives(state, half)) {
            state->kin[state->kin_count++] = half;
        }
    }
}

/* Whoever took a slot since we looked may be an ancestor. */
static void refresh_kin(pm_ledger_state *state)
{
    uint64_t takings = atomic_load(&state->map.header->takings); /* before the slots are read */

    if (!state->kin_known || state->kin_takings != takings) {
        find_kin(state);
        state->kin_takings = takings;
        state->kin_known = true;
    }
}

bool pm_ledger_has_kin(void)
{
    pm_ledger_state *state = pm_ledger_lock();
    bool any = false;

    if (!state) {
        return false;
    }
    if (state->mode == PM_SHARED) {
        refresh_kin(state);
        any = state->kin_count > 0;
    }
    pm_ledger_unlock(state);
    return any;
}

/* A slot's process, read between two looks at the generation. */
static bool read_process(const pm_ledger_state *state, pm_half half, pm_process *process)
{
    if (!pm_ledger_is_recent(state, half)) {
        return false;
    }
    *process = process_of(&state->map.slots[pm_slot_of(half)]);
    return pm_ledger_is_recent(state, half);
}

/* Is the way up the same as before? Walked link by link: whoever is still there was there all
 * along. */
static bool is_same_way(const pm_process *before, size_t way)
{
    pm_process after[ANCESTORS_MAX];

    if (pm_process_lineage(before[0].pid, after, way + 1) <= way) {
        return false;
    }
    for (size_t i = 0; i <= way; i++) {
        if (!is_same(&before[i], &after[i])) {
            return false;
        }
    }
    return true;
}

/* What is known of kin may be old: the ancestor may have died, its pid be a stranger's, its slot
 * have another holder. So the slot is read between two walks. */
bool pm_ledger_is_ancestor(pm_ledger_state *state, pm_half half)
{
    pm_process lineage[ANCESTORS_MAX], process;
    bool known = false;
    size_t count, way;

    refresh_kin(state);
    for (uint32_t i = 0; i < state->kin_count; i++) {
        known |= state->kin[i] == half;
    }
    if (!known) {
        return false;
    }
    count = pm_process_lineage(pm_process_id(), lineage, ANCESTORS_MAX);
    if (!read_process(state, half, &process)) {
        return false;
    }
    way = way_to(&process, lineage, count);
    return way != 0 && is_same_way(lineage, way);
}

bool pm_ledger_is_descendant(pm_ledger_state *state, pm_half half)
{
    pm_process lineage[ANCESTORS_MAX], process, self = pm_process_self();
    size_t count, way;

    if (!read_process(state, half, &process)) {
        return false;
    }
    count = pm_process_lineage(process.pid, lineage, ANCESTORS_MAX);
    if (count == 0 || !is_same(&lineage[0], &process)) {
        return false;
    }
    way = way_to(&self, lineage, count);
    return way != 0 && is_same_way(lineage, way) && pm_ledger_lives(state, half);
}

/* Everybody who holds a port, as one look found it. */
typedef struct {
    pm_half heirs[PM_HEIRS_MAX];
    uint64_t word, tag;
} pm_holders;

/* All who live are ancestors of ours, at least one does, and the heir in the word, if it lives, is
 * among the heirs: else it has not done borrowing. */
static bool may_lend(pm_ledger_state *state, const pm_holders *holders)
{
    pm_half halves[PM_HEIRS_MAX + 1], heir = pm_heir_of(holders->word);
    bool any = false, joined = !pm_ledger_lives(state, heir);

    halves[0] = pm_owner_of(holders->word);
    memcpy(halves + 1, holders->heirs, sizeof holders->heirs);
    for (int i = 0; i <= PM_HEIRS_MAX; i++) {
        if (pm_ledger_is_other(state, halves[i])) {
            if (!pm_ledger_is_ancestor(state, halves[i])) {
                return false;
            }
            any = true;
            joined |= i > 0 && halves[i] == heir;
        }
    }
    return any && joined;
}

/* Is somebody among the heirs who was not before? */
static bool has_new_heir(pm_ledger_state *state, const pm_entry *entry, const pm_holders *holders)
{
    for (int i = 0; i < PM_HEIRS_MAX; i++) {
        pm_half heir = atomic_load(&entry->heirs[i]);
        if (heir != holders->heirs[i] && pm_ledger_is_other(state, heir)) {
            return true;
        }
    }
    return false;
}

/* PM_OK: we are the heir in the word, and among the heirs. From the moment that we are in the word
 * the owner cannot claim the port anew, under another name, nor is anybody else lent it; so both
 * are looked at again. */
static pm_status become_heir(pm_ledger_state *state, uint16_t port, uint64_t key)
{
    pm_entry *entry = &state->map.entries[port];
    pm_holders holders = {.word = atomic_load(&entry->word), .tag = atomic_load(&entry->tag)};
    pm_half owner = pm_owner_of(holders.word);
    uint64_t word = holders.word;

    if (holders.tag != pm_ledger_tag(key, owner)) {
        return PM_HELD;
    }
    for (int i = 0; i < PM_HEIRS_MAX; i++) {
        holders.heirs[i] = atomic_load(&entry->heirs[i]);
    }
    if (!may_lend(state, &holders) ||
        !atomic_compare_exchange_strong(&entry->word, &word, pm_word_of(owner, state->half))) {
        return PM_HELD;
    }
    if (atomic_load(&entry->tag) != holders.tag || has_new_heir(state, entry, &holders) ||
        !pm_ledger_join_heirs(state, entry)) {
        pm_ledger_leave(state, port);
        return PM_HELD;
    }
    return PM_OK;
}

pm_status pm_ledger_lend(pm_holder me, uint16_t first, uint16_t last, const pm_name *name,
                         uint16_t *port)
{
    pm_ledger_state *state = pm_ledger_lock();
    pm_status status = PM_HELD;

    if (!state) {
        return PM_HELD;
    }
    if (name->key != 0 && state->mode == PM_SHARED) {
        for (uint32_t at = first; status != PM_OK && at <= last; at++) {
            if (!pm_port_set_has(&state->held, (uint16_t)at)) {
                *port = (uint16_t)at;
                status = become_heir(state, *port, name->key);
            }
        }
    }
    if (status == PM_OK) {
        pm_ledger_note(state, me, *port, name, true);
    }
    pm_ledger_unlock(state);
    return status;
}
