/* The file that participants share: where it is, whether it may be trusted, and its layout.
 *
 * One file for each user and network namespace, whatever the environment says:
 *
 *     /tmp/portmanager-<uid>/ports-<network namespace>
 *
 * in a folder that is the user's alone. PORTMANAGER_LEDGER names another file by its absolute
 * path. A file is complete before it has its name, and is never resized. It is mapped by all who
 * take part; what is read from it is checked before use, for anybody may have written it. */
#ifndef PM_LEDGER_FILE_H
#define PM_LEDGER_FILE_H

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "core/status.h"

enum {
    PM_SLOTS_MAX = 4095,               /* a slot's number has 12 bits, 0 stands for nobody */
    PM_GENERATION_MAX = (1 << 19) - 1, /* a generation has 19 */
    PM_HEIRS_MAX = 8,                  /* generations of processes that share a port */
    PM_LABEL_SIZE = 64,                /* bytes, the NUL included */
};

/* A process that takes part. */
typedef struct {
    _Atomic(uint32_t) generation; /* counts the processes that had the slot */
    _Atomic(uint32_t) pid;
    _Atomic(uint64_t) started; /* as pm_process's */
} pm_slot;

/* A port: a cache line for what a claim touches, and one for people. */
typedef struct {
    _Atomic(uint64_t) word;                /* owner half, heir half; see ledger.h */
    _Atomic(uint64_t) tag;                 /* the owner's half and its service's name, hashed */
    _Atomic(int64_t) changed_at;           /* claimed, or given back: nanoseconds since the epoch */
    _Atomic(uint64_t) remembered;          /* the key of the name that had it last; 0: none */
    _Atomic(uint32_t) heirs[PM_HEIRS_MAX]; /* halves, in no order; 0: none */
    /* The service's name for people, cut where it is longer. */
    _Atomic(uint64_t) label[PM_LABEL_SIZE / sizeof(uint64_t)];
} pm_entry;

typedef struct {
    char magic[16];
    uint32_t version, slots, ports, entry_size;
    _Atomic(uint32_t) next_port; /* where the next walk over all ports begins */
    _Atomic(uint64_t) takings;   /* how many slots were ever taken */
} pm_ledger_header;

/* What tells a file from others. */
typedef struct {
    uint64_t device, inode;
} pm_file_id;

pm_file_id pm_file_id_of(const struct stat *status);
bool pm_file_id_is(const struct stat *status, pm_file_id id);

/* An open and mapped ledger. */
typedef struct {
    pm_ledger_header *header; /* the mapping; NULL: none */
    pm_slot *slots;           /* 1..slot_count */
    pm_entry *entries;        /* by port */
    uint32_t slot_count;
    size_t size; /* bytes */
    pm_file_id file;
    pm_file_id root; /* the folder that the path begins in */
    char path[PATH_MAX];
} pm_ledger_map;

/* What is wrong with a ledger, in a sentence that says what to do. */
typedef struct {
    char text[PATH_MAX + 256];
} pm_trouble;

/* Opens the ledger at `path`, or that of the user if it is NULL, makes one where there is none,
 * and maps it so that no forked child inherits the mapping. The caller closes *fd, which is the
 * one descriptor of its open file description.
 * PM_EXHAUSTED: out of descriptors or memory, errno says which. PM_FAILED: it cannot be used,
 * *trouble says why. Touches the file system, which is expected to be local. */
pm_status pm_ledger_file_open(const char *path, pm_ledger_map *map, int *fd, pm_trouble *trouble);
void pm_ledger_file_unmap(pm_ledger_map *map);

/* Another description of the file that is mapped: PM_BUSY if its path has another file now,
 * PM_FORBIDDEN if that cannot be seen, by a process that gave up its rights or changed its root. */
pm_status pm_ledger_file_reopen(const pm_ledger_map *map, int *fd);

/* Is the mapped file whole, and has it a name? `fd` is a descriptor of it, or was once. The time
 * of the file's last status change goes to *changed_at, which may be NULL. */
typedef enum {
    PM_FILE_SOUND,
    PM_FILE_CHANGED,
    PM_FILE_OTHER_FD,
    PM_FILE_UNKNOWN /* errno says why */
} pm_file_state;
pm_file_state pm_ledger_file_state(const pm_ledger_map *map, int fd, int64_t *changed_at);

/* Does the mapped file, which must be whole, still say that it is a ledger? */
bool pm_ledger_file_is_ledger(const pm_ledger_map *map);

/* Has the path still the file that is mapped? Where it cannot be seen the answer is yes. */
bool pm_ledger_file_is_named(const pm_ledger_map *map);

/* The same and its size, for who has no descriptor. */
bool pm_ledger_file_is_whole_by_name(const pm_ledger_map *map);

/* Is the mapping whole, asked without touching it? For who cannot see the file. */
bool pm_ledger_file_is_there(const pm_ledger_map *map);

/* Makes a ledger with so many slots, 1..PM_SLOTS_MAX, at an absolute path that is free.
 * PM_BUSY: there is a file already. */
pm_status pm_ledger_file_create(const char *path, uint32_t slots, pm_trouble *trouble);

#endif
