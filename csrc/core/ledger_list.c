/* Who holds what, for people: written beside a claim, and listed. */
#include <stdlib.h>
#include <string.h>

#include "core/ledger_state.h"
#include "core/process.h"

/* ---- written ------------------------------------------------------------------------------- */

/* An empty name has something behind its end, so that it differs from none. */
static void write_label(pm_entry *entry, const char *text)
{
    uint64_t words[PM_LABEL_SIZE / sizeof(uint64_t)] = {0};

    if (text) {
        memcpy(words, text, strlen(text));
        ((char *)words)[1] = text[0] == '\0' ? 1 : ((char *)words)[1];
    }
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        atomic_store_explicit(&entry->label[i], words[i], memory_order_relaxed);
    }
}

void pm_ledger_describe_claim(pm_entry *entry, const pm_local *local)
{
    atomic_store_explicit(&entry->changed_at, local->changed_at, memory_order_relaxed);
    write_label(entry, local->has_label ? local->label : NULL);
}

/* ---- listed -------------------------------------------------------------------------------- */

static pm_held *append(pm_held_list *list)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 64;
        pm_held *items = realloc(list->items, capacity * sizeof *items);
        if (!items) {
            return NULL;
        }
        list->items = items;
        list->capacity = capacity;
    }
    return &list->items[list->count++];
}

static void read_label(const pm_entry *entry, pm_held *held)
{
    uint64_t words[PM_LABEL_SIZE / sizeof(uint64_t)];

    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        words[i] = atomic_load_explicit(&entry->label[i], memory_order_relaxed);
    }
    memcpy(held->label, words, PM_LABEL_SIZE);
    held->label[PM_LABEL_SIZE - 1] = '\0';
    held->has_label = held->label[0] != '\0' || held->label[1] != '\0';
}

/* What another process holds; false if nobody does. */
static bool describe_shared(pm_ledger_state *state, uint16_t port, pm_held *held)
{
    const pm_entry *entry = &state->map.entries[port];
    uint64_t word = atomic_load(&entry->word);
    pm_half holder = pm_ledger_find_other(state, entry, word);

    if (holder == 0) {
        return false;
    }
    held->pid = atomic_load(&state->map.slots[pm_slot_of(holder)].pid);
    held->since_ns = atomic_load(&entry->changed_at);
    read_label(entry, held);
    /* Given back meanwhile, and perhaps claimed by the next: what was read may be of both. Or the
     * slot is another process's. */
    return atomic_load(&entry->word) == word && pm_ledger_is_recent(state, holder);
}

static bool describe(pm_ledger_state *state, uint16_t port, pm_held *held)
{
    const pm_local *local = &state->locals[port];

    held->port = port;
    if (local->holder == PM_NOBODY) {
        return state->mode == PM_SHARED && describe_shared(state, port, held);
    }
    held->pid = pm_process_id();
    held->since_ns = local->changed_at;
    held->has_label = local->has_label;
    memcpy(held->label, local->label, PM_LABEL_SIZE);
    return true;
}

pm_status pm_ledger_list(uint16_t first, uint16_t last, pm_held_list *list)
{
    pm_ledger_state *state = pm_ledger_lock();
    pm_status status = PM_OK;
    pm_held held;

    *list = (pm_held_list){0};
    if (!state) {
        return PM_OK;
    }
    for (uint32_t port = first; status == PM_OK && port <= last; port++) {
        if (describe(state, (uint16_t)port, &held)) {
            pm_held *item = append(list);
            if (item) {
                *item = held;
            } else {
                status = PM_EXHAUSTED;
            }
        }
    }
    pm_ledger_unlock(state);
    return status;
}

void pm_held_list_free(pm_held_list *list)
{
    free(list->items);
    *list = (pm_held_list){0};
}
