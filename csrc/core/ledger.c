#include "core/ledger.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/clock.h"
#include "core/ledger_state.h"

/* Not in the state: a forked child's holders are others than its parent's. */
static _Atomic(pm_holder) last_enrolled;

pm_holder pm_ledger_enroll(void)
{
    pm_ledger_prepare();
    return atomic_fetch_add_explicit(&last_enrolled, 1, memory_order_relaxed) + 1;
}

/* ---- names --------------------------------------------------------------------------------- */

uint64_t pm_name_key(uint64_t key, const void *text, size_t size)
{
    const unsigned char *at = text;

    /* FNV-1a, 64 bits, with the size so that ("ab", "c") is not ("a", "bc"). */
    key = key ? key : UINT64_C(14695981039346656037);
    for (size_t i = 0; i < size; i++) {
        key = (key ^ at[i]) * UINT64_C(1099511628211);
    }
    key = (key ^ size) * UINT64_C(1099511628211);
    return key ? key : 1;
}

uint64_t pm_ledger_tag(uint64_t key, pm_half owner)
{
    /* The finisher of splitmix64: every bit of either changes every bit of the tag. */
    uint64_t tag = key ^ ((owner & ~PM_LEFT) * UINT64_C(0x9e3779b97f4a7c15));

    if (key == 0) {
        return 0;
    }
    tag = (tag ^ tag >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    tag = (tag ^ tag >> 27) * UINT64_C(0x94d049bb133111eb);
    tag ^= tag >> 31;
    return tag ? tag : 1;
}

/* ---- within a word -------------------------------------------------------------------------- */

/* The clock of a few milliseconds is quick to read. */
int64_t pm_ledger_moment(pm_ledger_state *state)
{
    int64_t now = pm_clock_ns(CLOCK_REALTIME_COARSE);

    bool set_back = state->last_moment - now > 1000000000;
    state->last_moment = now > state->last_moment || set_back ? now : state->last_moment + 1;
    return state->last_moment;
}

static pm_port_past past_of(pm_ledger_state *state, uint16_t port)
{
    const pm_entry *entry = &state->map.entries[port];

    if (state->mode != PM_SHARED) {
        return (pm_port_past){state->locals[port].changed_at, state->locals[port].remembered};
    }
    return (pm_port_past){atomic_load(&entry->changed_at), atomic_load(&entry->remembered)};
}

/* A name that is too long ends in an ellipsis, behind a whole character of UTF-8. */
static void copy_label(char label[PM_LABEL_SIZE], const char *text)
{
    static const char ellipsis[] = "\xe2\x80\xa6";
    size_t length = strlen(text);

    if (length >= PM_LABEL_SIZE) {
        length = PM_LABEL_SIZE - sizeof ellipsis;
        while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80) {
            length--;
        }
        snprintf(label, PM_LABEL_SIZE, "%.*s%s", (int)length, text, ellipsis);
    } else {
        memcpy(label, text, length + 1);
    }
}

bool pm_ledger_is_other(pm_ledger_state *state, pm_half half)
{
    return half != state->half && pm_ledger_lives(state, half);
}

/* The first of an entry's heirs that is another process; 0: none. */
static pm_half find_other_heir(pm_ledger_state *state, const pm_entry *entry)
{
    for (int i = 0; i < PM_HEIRS_MAX; i++) {
        pm_half heir = atomic_load(&entry->heirs[i]);
        if (heir != 0 && pm_ledger_is_other(state, heir)) {
            return heir;
        }
    }
    return 0;
}

pm_half pm_ledger_find_other(pm_ledger_state *state, const pm_entry *entry, uint64_t word)
{
    pm_half owner = pm_owner_of(word), heir = pm_heir_of(word);

    if (pm_ledger_is_other(state, owner)) {
        return owner;
    }
    return pm_ledger_is_other(state, heir) ? heir : find_other_heir(state, entry);
}

/* Takes dead heirs out. True if there was any. */
static bool forget_heirs(pm_ledger_state *state, pm_entry *entry)
{
    bool any = false;

    for (int i = 0; i < PM_HEIRS_MAX; i++) {
        pm_half heir = atomic_load(&entry->heirs[i]);
        if (heir != 0 && !pm_ledger_is_other(state, heir)) {
            any |= atomic_compare_exchange_strong(&entry->heirs[i], &heir, 0);
        }
    }
    return any;
}

bool pm_ledger_join_heirs(pm_ledger_state *state, pm_entry *entry)
{
    for (int i = 0; i < PM_HEIRS_MAX; i++) {
        pm_half heir = atomic_load(&entry->heirs[i]);
        if (!pm_ledger_lives(state, heir) &&
            atomic_compare_exchange_strong(&entry->heirs[i], &heir, state->half)) {
            return true;
        }
    }
    return false;
}

/* The tag that our last claim left goes first if it was for another name: until the new one is
 * written, whoever lends would take that name for this claim's. */
static void clear_old_tag(pm_ledger_state *state, uint16_t port, uint64_t key)
{
    uint64_t old = pm_ledger_tag(state->locals[port].key, state->half);

    if (old != 0 && state->locals[port].key != key) {
        atomic_compare_exchange_strong(&state->map.entries[port].tag, &old, 0);
    }
}

/* Between processes, for one that nobody of this process has: is the port ours now? */
static bool claim_shared(pm_ledger_state *state, uint16_t port, uint64_t key, bool *inherited)
{
    pm_entry *entry = &state->map.entries[port];
    uint64_t word = atomic_load(&entry->word), mine = pm_word_of(state->half, 0);

    do {
        if (pm_ledger_find_other(state, entry, word) != 0) {
            return false;
        }
        clear_old_tag(state, port, key);
    } while (!atomic_compare_exchange_strong(&entry->word, &word, mine));
    /* Nobody is lent the port any more. Whoever is an heir was lent it between the looks at the
     * heirs and at the word, which was as before again; it lends by what was in the word. */
    if (find_other_heir(state, entry) != 0) {
        if (!atomic_compare_exchange_strong(&entry->word, &mine, word)) {
            pm_ledger_leave(state, port);
        }
        return false;
    }
    pm_half owner = pm_owner_of(word);
    *inherited =
        forget_heirs(state, entry) || pm_heir_of(word) != 0 || (owner != 0 && !(owner & PM_LEFT));
    return true;
}

/* The tag last, for it says that the rest is there. */
void pm_ledger_publish(pm_ledger_state *state, uint16_t port)
{
    const pm_local *local = &state->locals[port];
    pm_entry *entry = &state->map.entries[port];

    pm_ledger_describe_claim(entry, local);
    atomic_store_explicit(&entry->tag, pm_ledger_tag(local->key, state->half),
                          memory_order_release);
}

/* ---- claiming and giving back -------------------------------------------------------------- */

void pm_ledger_note(pm_ledger_state *state, pm_holder me, uint16_t port, const pm_name *name,
                    bool lent)
{
    pm_local *local = &state->locals[port];

    local->holder = me;
    local->key = name->key;
    local->lent = lent;
    local->lost = false;
    pm_port_past past = past_of(state, port);

    local->changed_before = past.changed_at;
    local->remembered = past.remembered;
    local->changed_at = pm_ledger_moment(state);
    local->has_label = name->label != NULL;
    if (name->label) {
        copy_label(local->label, name->label);
    }
    pm_port_set_add(&state->held, port);
}

static void forget(pm_ledger_state *state, uint16_t port)
{
    state->locals[port].holder = PM_NOBODY;
    pm_port_set_remove(&state->held, port);
}

pm_status pm_ledger_claim(pm_holder me, uint16_t port, const pm_name *name, pm_claim *claim)
{
    pm_ledger_state *state = pm_ledger_lock();
    pm_status status = PM_HELD;

    *claim = (pm_claim){PM_NOBODY, false};
    if (!state) {
        errno = ENOMEM;
        return PM_EXHAUSTED;
    }
    claim->holder = state->locals[port].holder;
    if (claim->holder == PM_NOBODY &&
        (state->mode != PM_SHARED || claim_shared(state, port, name->key, &claim->inherited))) {
        pm_ledger_note(state, me, port, name, false);
        if (state->mode == PM_SHARED) {
            pm_ledger_publish(state, port);
        }
        status = PM_OK;
    }
    pm_ledger_unlock(state);
    return status;
}

/* The owner's half and the tag stay: its heirs lend by them. */
void pm_ledger_leave(pm_ledger_state *state, uint16_t port)
{
    pm_entry *entry = &state->map.entries[port];
    uint64_t word = atomic_load(&entry->word), rest;

    do {
        pm_half owner = pm_owner_of(word), heir = pm_heir_of(word);
        rest = pm_word_of(owner == state->half ? owner | PM_LEFT : owner,
                          heir == state->half ? 0 : heir);
    } while (rest != word && !atomic_compare_exchange_strong(&entry->word, &word, rest));
    for (int i = 0; i < PM_HEIRS_MAX; i++) {
        if (atomic_load(&entry->heirs[i]) == state->half) {
            atomic_store(&entry->heirs[i], 0);
        }
    }
}

/* `used`: the port was handed out, and had better rest for a while. */
static void give_back(pm_holder me, uint16_t port, bool used)
{
    pm_ledger_state *state = pm_ledger_lock();

    if (!state) {
        return;
    }
    if (me != PM_NOBODY && state->locals[port].holder == me) {
        pm_local *local = &state->locals[port];
        int64_t now = used ? pm_ledger_moment(state) : local->changed_before;
        if (pm_ledger_is_whole(state)) {
            if (!local->lent && !local->lost) {
                atomic_store_explicit(&state->map.entries[port].changed_at, now,
                                      memory_order_relaxed);
            }
            pm_ledger_leave(state, port);
        }
        local->changed_at = now;
        forget(state, port);
    }
    pm_ledger_unlock(state);
}

void pm_ledger_withdraw(pm_holder me, uint16_t port)
{
    give_back(me, port, false);
}

void pm_ledger_release(pm_holder me, uint16_t port)
{
    give_back(me, port, true);
}

pm_status pm_ledger_look(uint16_t port, pm_holder *holder)
{
    pm_ledger_state *state = pm_ledger_lock();
    bool held = false;

    *holder = PM_NOBODY;
    if (!state) {
        return PM_OK; /* nobody of this process can have claimed anything */
    }
    *holder = state->locals[port].holder;
    if (*holder != PM_NOBODY) {
        held = true;
    } else if (state->mode == PM_SHARED) {
        const pm_entry *entry = &state->map.entries[port];
        held = pm_ledger_find_other(state, entry, atomic_load(&entry->word)) != 0;
    }
    pm_ledger_unlock(state);
    return held ? PM_HELD : PM_OK;
}

/* ---- the past ------------------------------------------------------------------------------ */

pm_port_past pm_ledger_past(uint16_t port)
{
    pm_ledger_state *state = pm_ledger_lock();
    pm_port_past past = {0};

    if (state) {
        past = past_of(state, port);
        pm_ledger_unlock(state);
    }
    return past;
}

void pm_ledger_remember(pm_holder me, uint16_t port, uint64_t key)
{
    pm_ledger_state *state = pm_ledger_lock();

    if (!state) {
        return;
    }
    if (state->locals[port].holder == me) {
        state->locals[port].remembered = key;
        if (state->mode == PM_SHARED && !state->locals[port].lost) {
            atomic_store(&state->map.entries[port].remembered, key);
        }
    }
    pm_ledger_unlock(state);
}

bool pm_ledger_find_remembered(uint64_t key, uint16_t *port, uint16_t last)
{
    pm_ledger_state *state = pm_ledger_lock();
    bool found = false;

    if (!state) {
        return false;
    }
    for (uint32_t at = *port; !found && at <= last; at++) {
        if (past_of(state, (uint16_t)at).remembered == key) {
            *port = (uint16_t)at;
            found = true;
        }
    }
    pm_ledger_unlock(state);
    return found;
}

bool pm_ledger_find_rested(int64_t since, int64_t now, uint16_t *port, uint16_t last,
                           int64_t *oldest)
{
    pm_ledger_state *state = pm_ledger_lock();
    bool found = false;

    if (!state) {
        return true; /* nothing is known against any port */
    }
    for (uint32_t at = *port; !found && at <= last; at++) {
        pm_port_past past = past_of(state, (uint16_t)at);
        if (past.remembered) {
            continue;
        }
        if (past.changed_at <= since || past.changed_at > now) {
            *port = (uint16_t)at;
            found = true;
        } else if (past.changed_at < *oldest) {
            *oldest = past.changed_at;
        }
    }
    pm_ledger_unlock(state);
    return found;
}

uint16_t pm_ledger_next_port(void)
{
    pm_ledger_state *state = pm_ledger_lock();
    uint16_t port = 0;

    if (!state) {
        return port;
    }
    port = state->mode == PM_SHARED ? (uint16_t)atomic_load(&state->map.header->next_port)
                                    : state->next_port;
    pm_ledger_unlock(state);
    return port;
}

void pm_ledger_set_next_port(uint16_t port)
{
    pm_ledger_state *state = pm_ledger_lock();

    if (!state) {
        return;
    }
    state->next_port = port;
    if (state->mode == PM_SHARED) {
        atomic_store(&state->map.header->next_port, port);
    }
    pm_ledger_unlock(state);
}
