/* Who holds which port, over all threads, managers, interpreters and processes of a user.
 *
 * A claim is one step that nobody else can enter, so whoever holds a port is the only one who may
 * probe it, take it or hand it out:
 *
 *     claim -> probe -> keep, or withdraw
 *
 * Within the process a table says which holder has the port. Between processes a word in the
 * shared file (ledger_file.h) does, changed only by compare-and-swap of its exact old value:
 *
 *     | owner: slot, 12 bits | left, 1 | generation, 19 | heir: slot, 12 | 0 | generation, 19 |
 *
 * The model of all this is tests/model/ledger.pml.
 *
 * A process that takes part has a slot: a lock on its byte, which the kernel drops when the
 * process dies (liveness.h). Taking a slot first locks it, then raises its generation, which
 * never wraps; so a half is dead for ever once its generation is not the slot's or the slot is
 * not locked. Nobody has to clean up.
 *
 * An heir is a descendant of the owner, and of every heir before it that lives, and was lent the
 * port for the same service. The last one is in the word, so that the owner's death and a
 * stranger's claim cannot both win; all are among the entry's heirs, until each gives back what it
 * was lent. A port is free when neither a half of its word nor an heir lives. An owner that gave its
 * port back before its heirs did stays in the word as one who left: heirs lend by the tag, which
 * tells the name and the owner.
 *
 * A forked child starts without a slot and with an empty table. PORTMANAGER_LEDGER=process, or a
 * file that cannot be used, leaves the table alone: then ports are held within the process.
 *
 * Nothing here blocks, but for files: those of pm_ledger_check() when the ledger is new or has
 * changed, and of lending. */
#ifndef PM_LEDGER_H
#define PM_LEDGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/ledger_file.h"
#include "core/status.h"

/* One who may hold ports, a manager for example. Numbers are never given twice in a process, nor
 * by a forked child. */
typedef uint64_t pm_holder;
#define PM_NOBODY ((pm_holder)0)

pm_holder pm_ledger_enroll(void);

/* What a port is held for. */
typedef struct {
    uint64_t key;      /* the name, hashed; 0: no name, and nothing is lent */
    const char *label; /* the name for people, UTF-8; NULL: none */
} pm_name;

/* The key of a name: so many bytes, more than one text by `key` of those before (0 at first). */
uint64_t pm_name_key(uint64_t key, const void *text, size_t size);

/* Is the file still the one that is mapped, and whole? If it is not, or none is mapped yet, takes
 * up the one that is there, with all that this process holds. To be called before the functions
 * below, in the same call of ours: it is what keeps them from a file that was cut short.
 * PM_EXHAUSTED: out of descriptors or memory, errno says which. */
pm_status pm_ledger_check(void);

/* A sentence about the ledger that was not said yet; false if there is none. */
bool pm_ledger_notice(pm_trouble *notice);

typedef struct {
    pm_holder holder; /* PM_HELD: who of this process has it; PM_NOBODY: another process */
    bool inherited;   /* PM_OK: from a process that died, whose sockets may still be closing */
} pm_claim;

/* PM_OK: the port is now `me`'s. PM_HELD: it has a holder, `me` perhaps. */
pm_status pm_ledger_claim(pm_holder me, uint16_t port, const pm_name *name, pm_claim *claim);

/* Gives back a claim that did not stand, as if it had never been. */
void pm_ledger_withdraw(pm_holder me, uint16_t port);

/* Gives back a port of `me`'s; somebody else's is left alone. Needs no check before it. */
void pm_ledger_release(pm_holder me, uint16_t port);

/* PM_OK: the port is free to be claimed. PM_HELD: it is not; `*holder` as in pm_claim. */
pm_status pm_ledger_look(uint16_t port, pm_holder *holder);

/* ---- lending: ledger_lend.c ---------------------------------------------------------------- */

/* Does an ancestor of this process take part? Only then is lending worth asking for. Cheap while
 * nobody new takes part, else it reads a small file for each ancestor. */
bool pm_ledger_has_kin(void);

/* Borrows the first port of first..last that ancestors alone hold, for the same name. PM_OK:
 * `*port` is `me`'s as if it had been claimed. PM_HELD: there is none. */
pm_status pm_ledger_lend(pm_holder me, uint16_t first, uint16_t last, const pm_name *name,
                         uint16_t *port);

/* ---- what is known about ports that are free ----------------------------------------------- */

typedef struct {
    int64_t changed_at;  /* claimed or given back last, in nanoseconds since the epoch; 0: never */
    uint64_t remembered; /* the key of the name that it is kept for; 0: none */
} pm_port_past;

pm_port_past pm_ledger_past(uint16_t port);

/* Keeps a port that `me` holds in mind for a name: others take it last. */
void pm_ledger_remember(pm_holder me, uint16_t port, uint64_t key);

/* The first port of *port..last that is kept for a name, in `*port`; false if there is none. */
bool pm_ledger_find_remembered(uint64_t key, uint16_t *port, uint16_t last);

/* The first port of *port..last that rested, in `*port`: changed before `since` or, by a clock that
 * was set back, after `now`, and kept for no name. `*oldest` becomes the earliest change of
 * those passed over, if that is earlier. False if there is none. */
bool pm_ledger_find_rested(int64_t since, int64_t now, uint16_t *port, uint16_t last,
                           int64_t *oldest);

/* Where the next walk over all ports begins: behind the port that was handed out last. 0: no
 * port was yet. */
uint16_t pm_ledger_next_port(void);
void pm_ledger_set_next_port(uint16_t port);

/* ---- who holds what ------------------------------------------------------------------------ */

typedef struct {
    uint16_t port;
    uint32_t pid;     /* the owner's, else its heir's; 0: not known */
    int64_t since_ns; /* since the epoch */
    char label[PM_LABEL_SIZE];
    bool has_label;
} pm_held;

typedef struct {
    pm_held *items; /* by port, ascending */
    size_t count, capacity;
} pm_held_list;

/* Every held port of first..last, on this machine. PM_EXHAUSTED: out of memory. */
pm_status pm_ledger_list(uint16_t first, uint16_t last, pm_held_list *list);
void pm_held_list_free(pm_held_list *list);

#endif
