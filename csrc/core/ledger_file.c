#include "core/ledger_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file_system.h"
#include "core/process.h"

enum { VERSION = 1, PORTS = UINT16_MAX + 1, PAGE = 4096 };

static const char MAGIC[16] = "portmanager\r\n\n";

_Static_assert(sizeof(pm_ledger_header) <= PAGE, "the header has a page");
_Static_assert(sizeof(pm_slot) == 16 && sizeof(pm_entry) == 128, "the layout has no gaps");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "words are changed without a lock");

/* ---- troubles ------------------------------------------------------------------------------ */

__attribute__((format(printf, 2, 3))) static pm_status fail(pm_trouble *trouble, const char *format,
                                                            ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(trouble->text, sizeof trouble->text, format, arguments);
    va_end(arguments);
    return PM_FAILED;
}

/* After a system call that failed. */
static pm_status fail_by_errno(pm_trouble *trouble, const char *what, const char *path)
{
    if (pm_status_of_errno(errno) == PM_EXHAUSTED) {
        return PM_EXHAUSTED;
    }
    return fail(trouble, "cannot %s %s: %s (PORTMANAGER_LEDGER may name another file)", what, path,
                strerror(errno));
}

static void close_keeping_errno(int fd)
{
    int error = errno;
    if (fd >= 0) {
        close(fd);
    }
    errno = error;
}

/* ---- the layout ---------------------------------------------------------------------------- */

static size_t slots_size(uint32_t slots)
{
    /* Slot 0 is nobody's; the entries begin on a page. */
    return ((slots + 1) * sizeof(pm_slot) + PAGE - 1) / PAGE * PAGE;
}

static size_t ledger_size(uint32_t slots)
{
    return PAGE + slots_size(slots) + PORTS * sizeof(pm_entry);
}

static pm_ledger_header make_header(uint32_t slots)
{
    pm_ledger_header header = {
        .version = VERSION, .slots = slots, .ports = PORTS, .entry_size = sizeof(pm_entry)};
    memcpy(header.magic, MAGIC, sizeof MAGIC);
    return header;
}

static bool is_header(const pm_ledger_header *header, uint32_t slots)
{
    pm_ledger_header expected = make_header(slots);
    return memcmp(header, &expected, offsetof(pm_ledger_header, next_port)) == 0;
}

bool pm_ledger_file_is_ledger(const pm_ledger_map *map)
{
    return is_header(map->header, map->slot_count);
}

/* Is what an open file holds a ledger of ours, and whole? */
static pm_status check_content(int fd, const char *path, off_t size, uint32_t *slots,
                               pm_trouble *trouble)
{
    pm_ledger_header header;
    ssize_t got;

    do {
        got = pread(fd, &header, sizeof header, 0);
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
        return fail_by_errno(trouble, "read", path);
    }
    if (got < (ssize_t)sizeof header || memcmp(header.magic, MAGIC, sizeof MAGIC) != 0) {
        return fail(trouble, "%s is no ledger of reservations, or was overwritten: remove it",
                    path);
    }
    if (header.version != VERSION) {
        return fail(trouble,
                    "%s is of version %u, this library needs %d: let every program that uses it "
                    "have the same version of portmanager",
                    path, header.version, VERSION);
    }
    if (header.slots < 1 || header.slots > PM_SLOTS_MAX || !is_header(&header, header.slots)) {
        return fail(trouble, "%s is no ledger of reservations, or was overwritten: remove it",
                    path);
    }
    if (size != (off_t)ledger_size(header.slots)) {
        return fail(trouble, "%s was cut short or made longer (%lld bytes, not %zu): remove it",
                    path, (long long)size, ledger_size(header.slots));
    }
    *slots = header.slots;
    return PM_OK;
}

/* ---- its place ----------------------------------------------------------------------------- */

/* The user's own folder, made if need be; *fd is a descriptor of it. */
static pm_status open_own_folder(const char *path, int *fd, pm_trouble *trouble)
{
    struct stat status;
    bool made = mkdir(path, 0700) == 0;

    if (!made && errno != EEXIST) {
        return fail_by_errno(trouble, "make", path);
    }
    if (made && chmod(path, 0700) < 0) { /* whatever the umask */
        return fail_by_errno(trouble, "chmod", path);
    }
    *fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (*fd < 0) {
        if (errno == ELOOP || errno == ENOTDIR) {
            return fail(trouble, "%s is no folder: remove it", path);
        }
        return fail_by_errno(trouble, "open", path);
    }
    if (fstat(*fd, &status) < 0) {
        return fail_by_errno(trouble, "stat", path);
    }
    if (status.st_uid != geteuid()) {
        return fail(trouble, "%s belongs to another user (uid %u): remove it", path,
                    (unsigned)status.st_uid);
    }
    if ((status.st_mode & 07777) != 0700) {
        return fail(trouble, "%s has mode %04o, so that others may reach into it: chmod 700 %s",
                    path, (unsigned)status.st_mode & 07777, path);
    }
    return PM_OK;
}

/* The folder of an absolute path, reached without following a link. */
static pm_status open_folder_of(const char *path, int *fd, pm_trouble *trouble)
{
    char walked[PATH_MAX];
    const char *at = path, *slash;

    *fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    while (*fd >= 0 && (slash = strchr(at + 1, '/')) != NULL) {
        snprintf(walked, sizeof walked, "%.*s", (int)(slash - at - 1), at + 1);
        at = slash;
        if (walked[0] == '\0') {
            continue;
        }
        int next = openat(*fd, walked, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        close_keeping_errno(*fd);
        *fd = next;
    }
    if (*fd < 0 && (errno == ELOOP || errno == ENOTDIR)) {
        return fail(trouble,
                    "PORTMANAGER_LEDGER=%s is reached by a link, or not by folders: "
                    "write its real path",
                    path);
    }
    return *fd < 0 ? fail_by_errno(trouble, "reach", path) : PM_OK;
}

/* Puts the ledger's path together and opens its folder. */
static pm_status open_place(const char *named, char path[PATH_MAX], int *folder,
                            pm_trouble *trouble)
{
    char own[64];
    uint64_t network;

    if (named == NULL) {
        pm_status status = pm_network_namespace(&network);
        if (status != PM_OK) {
            return status;
        }
        snprintf(own, sizeof own, "/tmp/portmanager-%u", (unsigned)geteuid());
        snprintf(path, PATH_MAX, "%s/ports-%llu", own, (unsigned long long)network);
        return open_own_folder(own, folder, trouble);
    }
    if (named[0] != '/' || strlen(named) >= PATH_MAX || named[strlen(named) - 1] == '/') {
        return fail(trouble,
                    "PORTMANAGER_LEDGER=%.200s: expected the absolute path of a file, or `process`",
                    named);
    }
    snprintf(path, PATH_MAX, "%s", named);
    return open_folder_of(path, folder, trouble);
}

static const char *name_in(const char *path)
{
    return strrchr(path, '/') + 1;
}

/* ---- making one ---------------------------------------------------------------------------- */

/* Fills a new file: every block is there before anybody maps it, so that a full disk is an error
 * here and not a signal later. */
static int fill(int fd, uint32_t slots)
{
    pm_ledger_header header = make_header(slots);
    int error;

    do {
        error = posix_fallocate(fd, 0, (off_t)ledger_size(slots));
    } while (error == EINTR);
    if (error) {
        errno = error;
        return -1;
    }
    if (pwrite(fd, &header, sizeof header, 0) != (ssize_t)sizeof header) {
        return -1;
    }
    return fchmod(fd, 0600); /* whatever the umask */
}

/* With a file that has no name until it is complete, and none ever if we die on the way. */
static int create_unnamed(int folder, const char *name, uint32_t slots)
{
    char link[64];
    int fd = openat(folder, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    int result = fd < 0 ? -1 : fill(fd, slots);

    if (result == 0) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        result = linkat(AT_FDCWD, link, folder, name, AT_SYMLINK_FOLLOW);
    }
    close_keeping_errno(fd);
    return result;
}

/* The same for file systems without such files. */
static int create_renamed(int folder, const char *name, uint32_t slots)
{
    char temporary[NAME_MAX + 1];
    int fd, result;

    snprintf(temporary, sizeof temporary, "%.200s.%u", name, pm_process_id());
    unlinkat(folder, temporary, 0); /* of a process of that number that died */
    fd = openat(folder, temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    result = fd < 0 ? -1 : fill(fd, slots);
    if (result == 0) {
        result = linkat(folder, temporary, folder, name, 0);
    }
    close_keeping_errno(fd);
    if (fd >= 0) {
        int error = errno;
        unlinkat(folder, temporary, 0);
        errno = error;
    }
    return result;
}

/* Whoever comes second finds the first's: PM_BUSY. */
static pm_status create_in(int folder, const char *path, uint32_t slots, pm_trouble *trouble)
{
    int result = create_unnamed(folder, name_in(path), slots);

    if (result < 0 && errno != EEXIST && errno != ENOSPC && errno != EDQUOT &&
        pm_status_of_errno(errno) != PM_EXHAUSTED) {
        result = create_renamed(folder, name_in(path), slots);
    }
    if (result == 0) {
        return PM_OK;
    }
    return errno == EEXIST ? PM_BUSY : fail_by_errno(trouble, "make", path);
}

pm_status pm_ledger_file_create(const char *path, uint32_t slots, pm_trouble *trouble)
{
    int folder = -1;
    pm_status status = open_folder_of(path, &folder, trouble);

    if (status == PM_OK) {
        status = create_in(folder, path, slots, trouble);
    }
    close_keeping_errno(folder);
    return status;
}

/* ---- which file is it ---------------------------------------------------------------------- */

pm_file_id pm_file_id_of(const struct stat *status)
{
    return (pm_file_id){(uint64_t)status->st_dev, (uint64_t)status->st_ino};
}

bool pm_file_id_is(const struct stat *status, pm_file_id id)
{
    return (uint64_t)status->st_dev == id.device && (uint64_t)status->st_ino == id.inode;
}

/* ---- opening ------------------------------------------------------------------------------- */

/* A file that is there, ours to use, regular and on a local file system. */
static pm_status open_in(int folder, pm_ledger_map *map, bool own, int *fd, pm_trouble *trouble)
{
    struct stat status;

    /* Not blocking: a pipe in its place must not hold us up. */
    *fd = openat(folder, name_in(map->path), O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0) {
        if (errno == ENOENT) {
            return PM_AGAIN;
        }
        if (errno == ELOOP || errno == EISDIR || errno == ENXIO) {
            return fail(trouble, "%s is no regular file: remove it", map->path);
        }
        return fail_by_errno(trouble, "open", map->path);
    }
    if (fstat(*fd, &status) < 0) {
        return fail_by_errno(trouble, "stat", map->path);
    }
    if (!S_ISREG(status.st_mode)) {
        return fail(trouble, "%s is no regular file: remove it", map->path);
    }
    if (own && status.st_uid != geteuid()) {
        return fail(trouble, "%s belongs to another user (uid %u): remove it", map->path,
                    (unsigned)status.st_uid);
    }
    if (!pm_file_system_is_local(*fd)) {
        return fail(trouble,
                    "%s is on a network file system, which knows no locks of this machine: name "
                    "another file in PORTMANAGER_LEDGER",
                    map->path);
    }
    map->file = pm_file_id_of(&status);
    map->size = (size_t)status.st_size;
    return check_content(*fd, map->path, status.st_size, &map->slot_count, trouble);
}

static pm_status map_file(int fd, pm_ledger_map *map, pm_trouble *trouble)
{
    uint8_t *base = mmap(NULL, map->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    pm_status status = PM_OK;
    struct stat root = {0};

    if (base == MAP_FAILED) {
        return fail_by_errno(trouble, "map", map->path);
    }
    /* A forked child must not keep the lock alive that hangs on the mapping. */
    if (madvise(base, map->size, MADV_DONTFORK) < 0) {
        status = fail_by_errno(trouble, "keep children from", map->path);
    } else if (stat("/", &root) < 0) {
        status = fail_by_errno(trouble, "look at", "/");
    }
    if (status != PM_OK) {
        munmap(base, map->size);
        return status;
    }
    map->root = pm_file_id_of(&root);
    map->header = (pm_ledger_header *)base;
    map->slots = (pm_slot *)(base + PAGE);
    map->entries = (pm_entry *)(base + PAGE + slots_size(map->slot_count));
    return PM_OK;
}

pm_status pm_ledger_file_open(const char *path, pm_ledger_map *map, int *fd, pm_trouble *trouble)
{
    int folder = -1;

    *fd = -1;
    map->header = NULL;
    pm_status status = open_place(path, map->path, &folder, trouble);
    if (status != PM_OK) {
        goto done;
    }
    /* A file may be removed between its making and its opening; somebody who does that for ever
     * is not waited for. */
    status = PM_AGAIN;
    for (int attempts = 0; status == PM_AGAIN && attempts < 8; attempts++) {
        status = open_in(folder, map, path == NULL, fd, trouble);
        if (status == PM_AGAIN) {
            pm_status made = create_in(folder, map->path, PM_SLOTS_MAX, trouble);
            status = made == PM_OK || made == PM_BUSY ? PM_AGAIN : made;
        }
    }
    if (status == PM_AGAIN) {
        status = fail(trouble, "%s is removed again and again", map->path);
    }
    if (status == PM_OK) {
        status = map_file(*fd, map, trouble);
    }
done:
    close_keeping_errno(folder);
    if (status != PM_OK) {
        close_keeping_errno(*fd);
        *fd = -1;
    }
    return status;
}

void pm_ledger_file_unmap(pm_ledger_map *map)
{
    if (map->header) {
        munmap(map->header, map->size);
        map->header = NULL;
    }
}

/* ---- the same file still? ------------------------------------------------------------------ */

/* What an errno of asking for the file's path says of the file: that it is not there, or not to be
 * seen by this process, which gave up its rights or has another root. */
static pm_status status_of_path(const pm_ledger_map *map, int error)
{
    struct stat root;

    if (error != ENOENT && error != ENOTDIR) {
        pm_status status = pm_status_of_errno(error);
        return status == PM_FORBIDDEN || status == PM_EXHAUSTED ? status : PM_BUSY;
    }
    bool same_root = stat("/", &root) == 0 && pm_file_id_is(&root, map->root);
    return same_root ? PM_BUSY : PM_FORBIDDEN;
}

pm_status pm_ledger_file_reopen(const pm_ledger_map *map, int *fd)
{
    struct stat status;

    *fd = open(map->path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0) {
        return status_of_path(map, errno);
    }
    if (fstat(*fd, &status) < 0 || !pm_file_id_is(&status, map->file)) {
        close_keeping_errno(*fd);
        *fd = -1;
        return PM_BUSY;
    }
    return PM_OK;
}

pm_file_state pm_ledger_file_state(const pm_ledger_map *map, int fd, int64_t *changed_at)
{
    struct stat status;

    if (fd < 0) {
        return PM_FILE_OTHER_FD;
    }
    if (fstat(fd, &status) < 0) {
        return errno == EBADF ? PM_FILE_OTHER_FD : PM_FILE_UNKNOWN;
    }
    if (!pm_file_id_is(&status, map->file)) {
        return PM_FILE_OTHER_FD;
    }
    if (changed_at) {
        *changed_at = (int64_t)status.st_ctim.tv_sec * 1000000000 + status.st_ctim.tv_nsec;
    }
    return status.st_nlink > 0 && (size_t)status.st_size == map->size ? PM_FILE_SOUND
                                                                      : PM_FILE_CHANGED;
}

bool pm_ledger_file_is_whole_by_name(const pm_ledger_map *map)
{
    struct stat status;
    return lstat(map->path, &status) == 0 && pm_file_id_is(&status, map->file) &&
           (size_t)status.st_size == map->size;
}

bool pm_ledger_file_is_named(const pm_ledger_map *map)
{
    struct stat status;

    if (lstat(map->path, &status) == 0) {
        return pm_file_id_is(&status, map->file);
    }
    return status_of_path(map, errno) != PM_BUSY;
}

bool pm_ledger_file_is_there(const pm_ledger_map *map)
{
    uint8_t *last = (uint8_t *)map->header + map->size - PAGE;

    /* EFAULT: the file ends before. Anything else (Linux before 5.14) says nothing. */
    return madvise(last, PAGE, MADV_POPULATE_READ) == 0 || errno != EFAULT;
}
