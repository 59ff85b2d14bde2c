/* What the files of the ledger share, ledger.c and ledger_*.c; nobody else's. */
#ifndef PM_LEDGER_STATE_H
#define PM_LEDGER_STATE_H

#include <pthread.h>

#include "core/ledger.h"
#include "core/port_set.h"

/* Half of a word: a slot and a generation of it; 0: nobody. */
typedef uint32_t pm_half;

/* An owner's half that stays when the port was given back, for the tag is told by it. */
static const pm_half PM_LEFT = 1u << 19;

static inline pm_half pm_half_of(uint32_t slot, uint32_t generation)
{
    return slot << 20 | generation;
}

static inline uint32_t pm_slot_of(pm_half half)
{
    return half >> 20;
}

static inline uint32_t pm_generation_of(pm_half half)
{
    return half & PM_GENERATION_MAX;
}

static inline uint64_t pm_word_of(pm_half owner, pm_half heir)
{
    return (uint64_t)owner << 32 | heir;
}

static inline pm_half pm_owner_of(uint64_t word)
{
    return (pm_half)(word >> 32);
}

static inline pm_half pm_heir_of(uint64_t word)
{
    return (pm_half)word;
}

/* What this process knows of a port. */
typedef struct {
    pm_holder holder; /* PM_NOBODY: nobody of this process */
    uint64_t key, remembered;
    int64_t changed_at, changed_before;
    bool lent; /* we are an heir */
    bool lost; /* others have it, in a ledger that took the place of a lost one */
    bool has_label;
    char label[PM_LABEL_SIZE];
} pm_local;

enum { PM_KIN_MAX = 32 };

/* All of the process's own. In memory that a forked child finds zeroed, so that it starts anew:
 * the mapping of the file is not in the child, and the slot is not the child's. */
typedef struct {
    pthread_mutex_t mutex; /* over all of this; zeroes are an open mutex */
    enum { PM_UNDECIDED, PM_SHARED, PM_ALONE } mode;
    pm_ledger_map map;
    pm_half half;         /* ours in the words; 0: no slot */
    int64_t verified_at;  /* when the file was found to be ours and whole, monotonic nanoseconds */
    int64_t named_at;     /* when its path was asked for, or taking it up was tried */
    int64_t changed_at;   /* its status change then */
    int64_t last_moment;  /* of pm_ledger_moment */
    pm_port_set held;     /* the ports of `locals` that have a holder */
    pm_trouble said, say; /* the last notice, and one that is not said yet */
    uint16_t next_port;

    /* The halves of living ancestors, known as of so many takings. */
    uint64_t kin_takings;
    bool kin_known;
    uint32_t kin_count;
    pm_half kin[PM_KIN_MAX];

    pm_local locals[UINT16_MAX + 1];
} pm_ledger_state;

/* Makes the state, so that forks are seen from now on. */
void pm_ledger_prepare(void);

/* The state, locked; NULL if there is no memory for it. */
pm_ledger_state *pm_ledger_lock(void);
void pm_ledger_unlock(pm_ledger_state *state);

/* Has a half's slot its generation still? The slot must be one of the map's. */
static inline bool pm_ledger_is_recent(const pm_ledger_state *state, pm_half half)
{
    const pm_slot *slot = &state->map.slots[pm_slot_of(half)];
    return atomic_load(&slot->generation) == pm_generation_of(half);
}

/* Does the process live that a half stands for? Not known counts as yes. */
bool pm_ledger_lives(pm_ledger_state *state, pm_half half);

/* Is a half an ancestor's, or a descendant's, now? Reads a small file for each process of the way
 * to it, twice. */
bool pm_ledger_is_ancestor(pm_ledger_state *state, pm_half half);
bool pm_ledger_is_descendant(pm_ledger_state *state, pm_half half);

/* What belongs into an entry's tag: a dead owner's never equals another's; one who left has that of
 * before. 0 for no name alone. */
uint64_t pm_ledger_tag(uint64_t key, pm_half owner);

/* Does a half stand for another process that lives? */
bool pm_ledger_is_other(pm_ledger_state *state, pm_half half);

/* Who holds a port, of the other processes; 0: none. */
pm_half pm_ledger_find_other(pm_ledger_state *state, const pm_entry *entry, uint64_t word);

/* Notes that `me` has the port, in this process's table. */
void pm_ledger_note(pm_ledger_state *state, pm_holder me, uint16_t port, const pm_name *name,
                    bool lent);

/* Writes what belongs to a claim of ours into its entry; and what of it people are told. */
void pm_ledger_publish(pm_ledger_state *state, uint16_t port);
void pm_ledger_describe_claim(pm_entry *entry, const pm_local *local);

/* May the mapping be touched? One cheap call, for it is asked at every release. */
bool pm_ledger_is_whole(pm_ledger_state *state);

/* Puts what this process holds into a ledger that is new to it. */
void pm_ledger_publish_all(pm_ledger_state *state);

/* Says something once, until there is something else to say. */
void pm_ledger_say(pm_ledger_state *state, const pm_trouble *trouble);

/* Now, in nanoseconds since the epoch; later than any moment before it in this process. */
int64_t pm_ledger_moment(pm_ledger_state *state);

/* Takes our half out of a word, and of the heirs. */
void pm_ledger_leave(pm_ledger_state *state, uint16_t port);

/* Puts ours among an entry's heirs. False: there are as many as can be. */
bool pm_ledger_join_heirs(pm_ledger_state *state, pm_entry *entry);

#endif
