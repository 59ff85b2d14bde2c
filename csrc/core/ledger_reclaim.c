/* A ledger that is new to us: what this process holds is put into it. */
#include <stdio.h>
#include <time.h>

#include "core/ledger_state.h"

/* Those who share a port come back in any order; what one has half done is no refusal to another. */
enum { AGAIN = 2, PAUSE_NS = 1000000 };

static bool is_family(pm_ledger_state *state, pm_half half)
{
    return pm_ledger_is_ancestor(state, half) || pm_ledger_is_descendant(state, half);
}

/* Do those heirs who live satisfy the condition? */
static bool are_heirs(pm_ledger_state *state, const pm_entry *entry,
                      bool (*condition)(pm_ledger_state *, pm_half))
{
    for (int i = 0; i < PM_HEIRS_MAX; i++) {
        pm_half heir = atomic_load(&entry->heirs[i]);
        if (pm_ledger_is_other(state, heir) && !condition(state, heir)) {
            return false;
        }
    }
    return true;
}

/* Is what others hold, by this word and this tag, held for our name? */
static bool is_ours_by_name(pm_ledger_state *state, uint16_t port, uint64_t word, uint64_t tag)
{
    const pm_entry *entry = &state->map.entries[port];

    return pm_ledger_find_other(state, entry, word) == 0 ||
           tag == pm_ledger_tag(state->locals[port].key, pm_owner_of(word));
}

/* If a stranger was quicker the port is lost, and if one of the family holds it for another name. */
static bool reclaim_owner(pm_ledger_state *state, uint16_t port)
{
    pm_entry *entry = &state->map.entries[port];
    uint64_t word = atomic_load(&entry->word), mine;

    do {
        pm_half owner = pm_owner_of(word), heir = pm_heir_of(word);
        if (pm_ledger_is_other(state, owner) ||
            (pm_ledger_is_other(state, heir) && !pm_ledger_is_descendant(state, heir))) {
            return false;
        }
        mine = pm_word_of(state->half, heir);
    } while (!atomic_compare_exchange_strong(&entry->word, &word, mine));
    if (!are_heirs(state, entry, pm_ledger_is_descendant) ||
        !is_ours_by_name(state, port, word, atomic_load(&entry->tag))) {
        return false;
    }
    atomic_store(&entry->remembered, state->locals[port].remembered);
    pm_ledger_publish(state, port);
    return true;
}

/* An heir that comes before its owner has nobody's half beside it, and the tag of that. */
static void publish_heir(pm_ledger_state *state, uint16_t port, uint64_t tag_before)
{
    const pm_local *local = &state->locals[port];
    pm_entry *entry = &state->map.entries[port];

    pm_ledger_describe_claim(entry, local);
    /* Unless the owner has come meanwhile. */
    atomic_compare_exchange_strong(&entry->tag, &tag_before, pm_ledger_tag(local->key, 0));
}

static bool reclaim_heir(pm_ledger_state *state, uint16_t port)
{
    pm_entry *entry = &state->map.entries[port];
    uint64_t word = atomic_load(&entry->word), tag, mine;
    bool joined = false;

    do {
        pm_half owner = pm_owner_of(word), heir = pm_heir_of(word);
        bool owned = pm_ledger_is_other(state, owner);
        if (owned && !pm_ledger_is_ancestor(state, owner)) {
            return false;
        }
        tag = atomic_load(&entry->tag);
        mine = pm_word_of(owned ? owner : 0, state->half);
        if (pm_ledger_is_other(state, heir) && !pm_ledger_is_ancestor(state, heir)) {
            /* A descendant's place is not ours, but among the heirs we are beside it. */
            joined = joined ||
                     (pm_ledger_is_descendant(state, heir) && pm_ledger_join_heirs(state, entry));
            if (!joined) {
                return false;
            }
            mine = word;
        }
    } while (!atomic_compare_exchange_strong(&entry->word, &word, mine));
    if (!are_heirs(state, entry, is_family) || !is_ours_by_name(state, port, word, tag) ||
        (!joined && !pm_ledger_join_heirs(state, entry))) {
        return false;
    }
    if (mine == pm_word_of(0, state->half)) {
        publish_heir(state, port, tag);
    }
    return true;
}

static bool reclaim(pm_ledger_state *state, uint16_t port)
{
    bool lent = state->locals[port].lent;

    if (lent ? reclaim_heir(state, port) : reclaim_owner(state, port)) {
        return true;
    }
    pm_ledger_leave(state, port);
    return false;
}

/* Of all that we hold, or, `again`, of what was refused; how many are. */
static int reclaim_all(pm_ledger_state *state, bool again)
{
    int lost = 0;

    for (uint32_t port = 0; port <= UINT16_MAX; port++) {
        if (pm_port_set_has(&state->held, (uint16_t)port) && (!again || state->locals[port].lost)) {
            state->locals[port].lost = !reclaim(state, (uint16_t)port);
            lost += state->locals[port].lost;
        }
    }
    return lost;
}

void pm_ledger_publish_all(pm_ledger_state *state)
{
    const struct timespec pause = {.tv_nsec = PAUSE_NS};
    int lost = reclaim_all(state, false);

    for (int again = 0; lost && again < AGAIN; again++) {
        nanosleep(&pause, NULL);
        lost = reclaim_all(state, true);
    }
    if (lost) {
        pm_trouble trouble;
        snprintf(
            trouble.text, sizeof trouble.text,
            "%s was removed or replaced, and %d port%s of this process went to others before it "
            "was noticed: allocate again what does not run yet",
            state->map.path, lost, lost == 1 ? "" : "s");
        pm_ledger_say(state, &trouble);
    }
}
