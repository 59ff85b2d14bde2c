/* Lending: a descendant of a holder gets the port that is held for the same service. */
#include <time.h>

#include "core/ledger_state.h"
#include "core/process.h"

enum { ANCESTORS_MAX = 64 };

static bool is_among(const pm_process *process, const pm_process *ancestors, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (ancestors[i].pid == process->pid && ancestors[i].started == process->started) {
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

bool pm_ledger_has_kin(void)
{
    pm_ledger_state *state = pm_ledger_lock();
    bool any = false;

    if (!state) {
        return false;
    }
    if (state->mode == PM_SHARED) {
        /* Whoever took a slot since may be an ancestor. Read before the slots are. */
        uint64_t takings = atomic_load(&state->map.header->takings);
        if (!state->kin_known || state->kin_takings != takings) {
            find_kin(state);
            state->kin_takings = takings;
            state->kin_known = true;
        }
        any = state->kin_count > 0;
    }
    pm_ledger_unlock(state);
    return any;
}

/* Is a half an ancestor's, now? What is known of kin may be old: the ancestor may have died, its
 * pid be a stranger's, its slot have another holder. */
static bool is_kin(pm_ledger_state *state, pm_half half)
{
    const pm_slot *slot = &state->map.slots[half >> 20];
    pm_process ancestors[ANCESTORS_MAX], process;
    bool known = false;

    for (uint32_t i = 0; i < state->kin_count; i++) {
        known |= state->kin[i] == half;
    }
    if (!known) {
        return false;
    }
    process = process_of(slot);
    if (!pm_ledger_lives(state, half)) { /* its generation is read after the process was */
        return false;
    }
    /* Still an ancestor, so alive, so the slot was its own while we looked. */
    return is_among(&process, ancestors, pm_process_ancestors(ancestors, ANCESTORS_MAX));
}

/* PM_OK: our half is the heir's. */
static pm_status become_heir(pm_ledger_state *state, uint16_t port, uint64_t key)
{
    pm_entry *entry = &state->map.entries[port];
    uint64_t word = atomic_load(&entry->word), tag = atomic_load(&entry->tag);
    pm_half owner = pm_owner_of(word), heir = pm_heir_of(word);

    if (owner == 0 || tag != pm_ledger_tag(key, owner)) {
        return PM_HELD;
    }
    /* From the heir if one lives: a reloader's child takes its place. */
    if (!is_kin(state, pm_ledger_lives(state, heir) ? heir : owner)) {
        return PM_HELD;
    }
    if (!atomic_compare_exchange_strong(&entry->word, &word, pm_word_of(owner, state->half))) {
        return PM_HELD;
    }
    if (atomic_load(&entry->tag) != tag) {
        /* The owner gave it back, and may have claimed it anew under another name. */
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
