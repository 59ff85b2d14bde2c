/* Lending: a descendant of a holder gets the port that is held for the same service. */
#include "core/ledger_state.h"
#include "core/process.h"

enum { ANCESTORS_MAX = 64 };

static bool is_same(const pm_process *left, const pm_process *right)
{
    return left->pid == right->pid && left->started == right->started;
}

static bool is_among(const pm_process *process, const pm_process *ancestors, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (is_same(&ancestors[i], process)) {
            return true;
        }
    }
    return false;
}

static pm_process process_of(const pm_slot *slot)
{
    return (pm_process){.pid = atomic_load(&slot->pid), .started = atomic_load(&slot->started)};
}

/* Which slots are our ancestors'? */
static void find_kin(pm_ledger_state *state)
{
    pm_process ancestors[ANCESTORS_MAX];
    size_t count = pm_process_ancestors(ancestors, ANCESTORS_MAX);

    state->kin_count = 0;
    for (uint32_t i = 1; i <= state->map.slot_count && state->kin_count < PM_KIN_MAX; i++) {
        const pm_slot *slot = &state->map.slots[i];
        pm_half half = pm_half_of(i, atomic_load(&slot->generation));
        pm_process process = process_of(slot);
        if (process.pid != 0 && is_among(&process, ancestors, count) &&
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

/* What is known of kin may be old: the ancestor may have died, its pid be a stranger's, its slot
 * have another holder. So the slot's process is read between two looks at the generation, and the
 * way up to it is walked before and after, link by link: whoever is still there then was there
 * while we looked, and the slot its own. */
bool pm_ledger_is_kin(pm_ledger_state *state, pm_half half)
{
    pm_process before[ANCESTORS_MAX], after[ANCESTORS_MAX], process;
    bool known = false;
    size_t count, way;

    refresh_kin(state);
    for (uint32_t i = 0; i < state->kin_count; i++) {
        known |= state->kin[i] == half;
    }
    if (!known) {
        return false;
    }
    const pm_slot *slot = &state->map.slots[pm_slot_of(half)];
    count = pm_process_ancestors(before, ANCESTORS_MAX);
    if (!pm_ledger_is_recent(state, half)) {
        return false;
    }
    process = process_of(slot);
    for (way = 0; way < count && !is_same(&before[way], &process); way++) {
    }
    if (way == count || !pm_ledger_is_recent(state, half) ||
        pm_process_ancestors(after, way + 1) <= way) {
        return false;
    }
    for (size_t i = 0; i <= way; i++) {
        if (!is_same(&before[i], &after[i])) {
            return false;
        }
    }
    return true;
}

/* PM_OK: our half is the heir's. A process is lent a port under one name only: else its half in
 * the word could stand for two claims that a descendant of it cannot tell apart. */
static pm_status become_heir(pm_ledger_state *state, uint16_t port, uint64_t key)
{
    pm_entry *entry = &state->map.entries[port];
    uint64_t word = atomic_load(&entry->word), tag = atomic_load(&entry->tag);
    pm_half owner = pm_owner_of(word), heir = pm_heir_of(word);
    uint64_t lent_as = state->locals[port].lent_as;

    if (owner == 0 || tag != pm_ledger_tag(key, owner) || (lent_as != 0 && lent_as != key)) {
        return PM_HELD;
    }
    /* From the heir if one lives: a reloader's child takes its place. Where the owner is gone, the
     * heir moves up into its place, for it goes on holding the port when we are gone. */
    bool from_heir = pm_ledger_lives(state, heir);
    bool moves_up = from_heir && !pm_ledger_lives(state, owner);
    if (!pm_ledger_is_kin(state, from_heir ? heir : owner)) {
        return PM_HELD;
    }
    pm_half lender = moves_up ? heir : owner;
    if (!atomic_compare_exchange_strong(&entry->word, &word, pm_word_of(lender, state->half))) {
        return PM_HELD;
    }
    state->locals[port].lent_as = key;
    if (moves_up) {
        /* Until then nobody is lent the port: the old tag was the dead owner's. */
        atomic_store(&entry->tag, pm_ledger_tag(key, lender));
    } else if (atomic_load(&entry->tag) != tag) {
        /* The owner gave it back before, and has claimed it anew under another name. */
        pm_ledger_leave(state, port);
        return PM_HELD;
    }
    /* A descendant of ours may have taken the place already. */
    return pm_heir_of(atomic_load(&entry->word)) == state->half ? PM_OK : PM_HELD;
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
