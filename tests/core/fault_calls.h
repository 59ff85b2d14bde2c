/* The calls of core that can fail: the linker puts each __wrap_F here between core and F (--wrap,
 * which the Makefile makes of the names here). They fail as the plan says, and keep count of what
 * is not given back. */
#ifndef PM_TEST_FAULT_CALLS_H
#define PM_TEST_FAULT_CALLS_H

#include "support.h"

#include <netdb.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>

/* ---- what can fail, and how ---------------------------------------------------------------- */

typedef enum {
    CALL_SOCKET,
    CALL_NETLINK, /* socket() of AF_NETLINK */
    CALL_SETSOCKOPT,
    CALL_BIND,
    CALL_LISTEN,
    CALL_SEND,
    CALL_SENDTO,
    CALL_RECV,
    CALL_GETADDRINFO,
    CALL_OPEN,
    CALL_OPEN_PROC, /* open() of a file of /proc */
    CALL_OPENAT,
    CALL_TMPFILE, /* openat() of a file without a name */
    CALL_CLOSE,
    CALL_READ,
    CALL_PREAD,
    CALL_PWRITE,
    CALL_IOCTL,
    CALL_FALLOCATE,
    CALL_MKDIR,
    CALL_CHMOD,
    CALL_FCHMOD,
    CALL_LINKAT,
    CALL_UNLINKAT,
    CALL_STAT,
    CALL_LSTAT,
    CALL_FSTAT,
    CALL_FSTATFS,
    CALL_FCNTL,
    CALL_MMAP,
    CALL_MMAP_OWN, /* of no file */
    CALL_MUNMAP,
    CALL_WIPEONFORK, /* madvise() */
    CALL_DONTFORK,
    CALL_ATFORK,
    CALL_MALLOC,
    CALL_REALLOC,
    CALL_GETRANDOM,
    CALL_CLOCK,
    CALL_NANOSLEEP,
    CALL_FOPEN,
    CALL_FGETS,
    CALL_FCLOSE,
    CALL_OPENDIR,
    CALL_FDOPENDIR,
    CALL_READDIR,
    CALL_READLINKAT,
    CALL_CLOSEDIR,
    CALLS
} call;

#define BIT(number) (UINT64_C(1) << (number))

/* No errno: fewer bytes than were asked for. */
enum { NO_BYTES = 1000, HALF = 1001, NO_ERROR = 0 };

static const int socket_errors[] = {EACCES,  EAFNOSUPPORT, EINVAL,          EMFILE, ENFILE,
                                    ENOBUFS, ENOMEM,       EPROTONOSUPPORT, 0};
static const int setsockopt_errors[] = {EBADF,    EFAULT, EINVAL,  ENOPROTOOPT,
                                        ENOTSOCK, ENOMEM, ENOBUFS, 0};
static const int bind_errors[] = {EACCES,  EADDRINUSE, EADDRNOTAVAIL, EBADF,  EFAULT,
                                  EINVAL,  ELOOP,      ENAMETOOLONG,  ENOENT, ENOMEM,
                                  ENOTDIR, ENOTSOCK,   EROFS,         EPERM,  0};
static const int listen_errors[] = {EADDRINUSE, EBADF, ENOTSOCK, EOPNOTSUPP, 0};
static const int send_errors[] = {EACCES, EAGAIN,   EALREADY, EBADF,      ECONNRESET, EDESTADDRREQ,
                                  EFAULT, EINTR,    EINVAL,   EISCONN,    EMSGSIZE,   ENOBUFS,
                                  ENOMEM, ENOTCONN, ENOTSOCK, EOPNOTSUPP, EPIPE,      0};
static const int recv_errors[] = {EAGAIN, EBADF,    ECONNREFUSED, EFAULT,  EINTR, EINVAL,
                                  ENOMEM, ENOTCONN, ENOTSOCK,     ENOBUFS, 0};
/* A positive one is EAI_SYSTEM's. */
static const int getaddrinfo_errors[] = {
    EAI_ADDRFAMILY, EAI_AGAIN,  EAI_BADFLAGS, EAI_FAIL,     EAI_FAMILY, EAI_MEMORY,
    EAI_NODATA,     EAI_NONAME, EAI_SERVICE,  EAI_SOCKTYPE, EMFILE,     ENFILE,
    ENOMEM,         ENOBUFS,    EINTR,        EIO,          0};
static const int open_errors[] = {
    EACCES,     EBADF,     EBUSY,        EDQUOT, EEXIST,  EFAULT, EFBIG,  EINTR,  EINVAL,  EISDIR,
    ELOOP,      EMFILE,    ENAMETOOLONG, ENFILE, ENODEV,  ENOENT, ENOMEM, ENOSPC, ENOTDIR, ENXIO,
    EOPNOTSUPP, EOVERFLOW, EPERM,        EROFS,  ETXTBSY, EAGAIN, EIO,    0};
static const int close_errors[] = {EBADF, EINTR, EIO, ENOSPC, EDQUOT, 0};
static const int read_errors[] = {EAGAIN, EBADF,     EFAULT, EINTR,    EINVAL, EIO, EISDIR,
                                  ENXIO,  EOVERFLOW, ESPIPE, NO_BYTES, HALF,   0};
static const int write_errors[] = {EAGAIN, EBADF,     EDESTADDRREQ, EDQUOT,   EFAULT, EFBIG,
                                   EINTR,  EINVAL,    EIO,          ENOSPC,   EPERM,  EPIPE,
                                   ENXIO,  EOVERFLOW, ESPIPE,       NO_BYTES, HALF,   0};
static const int ioctl_errors[] = {EBADF, EFAULT, EINVAL, ENOTTY, 0};
static const int fallocate_errors[] = {EBADF,      EFBIG,  EINTR, EINVAL, ENODEV, ENOSPC,
                                       EOPNOTSUPP, ESPIPE, EIO,   EDQUOT, 0};
static const int mkdir_errors[] = {EACCES,  EBADF,  EDQUOT,       EEXIST, EFAULT, EINVAL,
                                   ELOOP,   EMLINK, ENAMETOOLONG, ENOENT, ENOMEM, ENOSPC,
                                   ENOTDIR, EPERM,  EROFS,        0};
static const int chmod_errors[] = {EACCES,  EFAULT, EIO,   ELOOP, ENAMETOOLONG, ENOENT, ENOMEM,
                                   ENOTDIR, EPERM,  EROFS, 0};
static const int fchmod_errors[] = {EBADF, EIO, ENOMEM, ENOTSUP, EPERM, EROFS, 0};
static const int linkat_errors[] = {EACCES, EBADF,   EDQUOT, EEXIST,       EFAULT, EINVAL,
                                    EIO,    ELOOP,   EMLINK, ENAMETOOLONG, ENOENT, ENOMEM,
                                    ENOSPC, ENOTDIR, EPERM,  EROFS,        EXDEV,  0};
static const int unlinkat_errors[] = {EACCES, EBADF,   EBUSY, EFAULT,       EINVAL,
                                      EIO,    EISDIR,  ELOOP, ENAMETOOLONG, ENOENT,
                                      ENOMEM, ENOTDIR, EPERM, EROFS,        0};
static const int stat_errors[] = {EACCES, EBADF,  EFAULT,  EIO,       ELOOP, ENAMETOOLONG,
                                  ENOENT, ENOMEM, ENOTDIR, EOVERFLOW, 0};
static const int fstatfs_errors[] = {EBADF, EFAULT, EINTR, EIO, ENOMEM, ENOSYS, EOVERFLOW, 0};
static const int fcntl_errors[] = {EACCES, EAGAIN, EBADF,  EDEADLK,   EFAULT, EINTR,
                                   EINVAL, EIO,    ENOLCK, EOVERFLOW, EPERM,  0};
static const int mmap_errors[] = {EACCES, EAGAIN, EBADF,     EEXIST, EINVAL,  ENFILE,
                                  ENODEV, ENOMEM, EOVERFLOW, EPERM,  ETXTBSY, 0};
static const int mmap_own_errors[] = {EAGAIN, EINVAL, ENOMEM, EPERM, 0};
static const int munmap_errors[] = {EINVAL, ENOMEM, 0};
static const int madvise_errors[] = {EACCES, EAGAIN, EBADF,  EBUSY, EFAULT,
                                     EINVAL, EIO,    ENOMEM, EPERM, 0};
static const int memory_errors[] = {ENOMEM, 0};
static const int getrandom_errors[] = {EAGAIN, EFAULT, EINTR, EINVAL, ENOSYS, NO_BYTES, HALF, 0};
static const int clock_errors[] = {EACCES, EFAULT, EINVAL, ENODEV, ENOTSUP, EPERM, 0};
static const int nanosleep_errors[] = {EFAULT, EINTR, EINVAL, 0};
static const int fgets_errors[] = {EAGAIN, EBADF, EINTR, EIO, ENOMEM, ENXIO, EOVERFLOW, 0};
static const int fclose_errors[] = {EBADF, EINTR, EIO, ENOSPC, 0};
static const int opendir_errors[] = {EACCES, EBADF, EMFILE, ENFILE, ENOENT, ENOMEM, ENOTDIR, 0};
static const int readdir_errors[] = {EBADF, EFAULT, EINVAL, ENOENT, ENOTDIR, 0};
static const int closedir_errors[] = {EBADF, 0};

/* The errors are those of each man page; of the pages that describe several calls, this one's. */
static const struct {
    const char *name;
    const int *errors;
} calls[CALLS] = {
    [CALL_SOCKET] = {"socket",                   socket_errors     },
    [CALL_NETLINK] = {"socket(AF_NETLINK)",       socket_errors     },
    [CALL_SETSOCKOPT] = {"setsockopt",               setsockopt_errors },
    [CALL_BIND] = {"bind",                     bind_errors       },
    [CALL_LISTEN] = {"listen",                   listen_errors     },
    [CALL_SEND] = {"send",                     send_errors       },
    [CALL_SENDTO] = {"sendto",                   send_errors       },
    [CALL_RECV] = {"recv",                     recv_errors       },
    [CALL_GETADDRINFO] = {"getaddrinfo",              getaddrinfo_errors},
    [CALL_OPEN] = {"open",                     open_errors       },
    [CALL_OPEN_PROC] = {"open(/proc)",              open_errors       },
    [CALL_OPENAT] = {"openat",                   open_errors       },
    [CALL_TMPFILE] = {"openat(O_TMPFILE)",        open_errors       },
    [CALL_CLOSE] = {"close",                    close_errors      },
    [CALL_READ] = {"read",                     read_errors       },
    [CALL_PREAD] = {"pread",                    read_errors       },
    [CALL_PWRITE] = {"pwrite",                   write_errors      },
    [CALL_IOCTL] = {"ioctl",                    ioctl_errors      },
    [CALL_FALLOCATE] = {"posix_fallocate",          fallocate_errors  },
    [CALL_MKDIR] = {"mkdir",                    mkdir_errors      },
    [CALL_CHMOD] = {"chmod",                    chmod_errors      },
    [CALL_FCHMOD] = {"fchmod",                   fchmod_errors     },
    [CALL_LINKAT] = {"linkat",                   linkat_errors     },
    [CALL_UNLINKAT] = {"unlinkat",                 unlinkat_errors   },
    [CALL_STAT] = {"stat",                     stat_errors       },
    [CALL_LSTAT] = {"lstat",                    stat_errors       },
    [CALL_FSTAT] = {"fstat",                    stat_errors       },
    [CALL_FSTATFS] = {"fstatfs",                  fstatfs_errors    },
    [CALL_FCNTL] = {"fcntl",                    fcntl_errors      },
    [CALL_MMAP] = {"mmap",                     mmap_errors       },
    [CALL_MMAP_OWN] = {"mmap(MAP_ANONYMOUS)",      mmap_own_errors   },
    [CALL_MUNMAP] = {"munmap",                   munmap_errors     },
    [CALL_WIPEONFORK] = {"madvise(MADV_WIPEONFORK)", madvise_errors    },
    [CALL_DONTFORK] = {"madvise(MADV_DONTFORK)",   madvise_errors    },
    [CALL_ATFORK] = {"pthread_atfork",           memory_errors     },
    [CALL_MALLOC] = {"malloc",                   memory_errors     },
    [CALL_REALLOC] = {"realloc",                  memory_errors     },
    [CALL_GETRANDOM] = {"getrandom",                getrandom_errors  },
    [CALL_CLOCK] = {"clock_gettime",            clock_errors      },
    [CALL_NANOSLEEP] = {"nanosleep",                nanosleep_errors  },
    [CALL_FOPEN] = {"fopen",                    open_errors       },
    [CALL_FGETS] = {"fgets",                    fgets_errors      },
    [CALL_FCLOSE] = {"fclose",                   fclose_errors     },
    [CALL_OPENDIR] = {"opendir",                  opendir_errors    },
    [CALL_FDOPENDIR] = {"fdopendir",                opendir_errors    },
    [CALL_READDIR] = {"readdir",                  readdir_errors    },
    [CALL_READLINKAT] = {"readlinkat",               stat_errors       },
    [CALL_CLOSEDIR] = {"closedir",                 closedir_errors   },
};

/* Those that a signal may interrupt although nobody waits for them: core starts them again. It
 * opens no slow device, and close() must not be repeated. */
#define RESTARTED                                                                                  \
    (BIT(CALL_SEND) | BIT(CALL_SENDTO) | BIT(CALL_RECV) | BIT(CALL_READ) | BIT(CALL_PREAD) |       \
     BIT(CALL_PWRITE) | BIT(CALL_FALLOCATE) | BIT(CALL_FSTATFS) | BIT(CALL_FCNTL) |                \
     BIT(CALL_NANOSLEEP) | BIT(CALL_GETRANDOM))

/* ---- the plan ------------------------------------------------------------------------------ */

enum { LOG_MAX = 8192 };

typedef struct {
    call which;
    unsigned number;  /* of this call, from 1 on */
    const void *site; /* where core makes it */
} made_call;

/* In memory that the runner shares with its subjects. */
typedef struct {
    made_call fails; /* this one, */
    int error;       /* with this errno; NO_ERROR: none does, and all are written down */
    bool hit;
    size_t made_count;
    made_call made[LOG_MAX];
} fault_plan;

static fault_plan *plan;
static bool armed; /* core is at work, in a subject */
static bool fault_is_over;
static unsigned made_so_far[CALLS];

/* A call that this machine has not, for the time of a scenario; `always`: whoever makes it. */
static call refused = CALLS;
static int refusal;
static bool refused_always;

/* What core has and did not give back. */
static struct {
    long blocks, mappings, files, folders, lists;
} balance;

/* What the call has to fail with, NO_ERROR if it is to go well. */
static inline int fault(call which, const void *site)
{
    if (which == refused && (armed || refused_always)) {
        return refusal;
    }
    if (!armed) {
        return NO_ERROR;
    }
    unsigned number = ++made_so_far[which];
    if (fault_is_over) {
        return NO_ERROR;
    }
    if (plan->error == NO_ERROR && plan->made_count < LOG_MAX) {
        plan->made[plan->made_count++] = (made_call){which, number, site};
    }
    if (plan->error == NO_ERROR || plan->fails.which != which || plan->fails.number != number) {
        return NO_ERROR;
    }
    plan->hit = true;
    return plan->error;
}

static inline bool fails(call which, const void *site)
{
    int error = fault(which, site);
    if (error != NO_ERROR) {
        errno = error;
    }
    return error != NO_ERROR;
}

static inline ssize_t fallen_short(int error)
{
    if (error == NO_BYTES) {
        return 0;
    }
    errno = error;
    return -1;
}

#define SITE __builtin_return_address(0)
#define REAL(name) extern __typeof__(name) __real_##name

/* ---- sockets ------------------------------------------------------------------------------- */

REAL(socket);
int __wrap_socket(int family, int type, int protocol)
{
    return fails(family == AF_NETLINK ? CALL_NETLINK : CALL_SOCKET, SITE)
               ? -1
               : __real_socket(family, type, protocol);
}

REAL(setsockopt);
int __wrap_setsockopt(int fd, int level, int option, const void *value, socklen_t size)
{
    return fails(CALL_SETSOCKOPT, SITE) ? -1 : __real_setsockopt(fd, level, option, value, size);
}

REAL(bind);
int __wrap_bind(int fd, const struct sockaddr *address, socklen_t size)
{
    return fails(CALL_BIND, SITE) ? -1 : __real_bind(fd, address, size);
}

REAL(listen);
int __wrap_listen(int fd, int backlog)
{
    return fails(CALL_LISTEN, SITE) ? -1 : __real_listen(fd, backlog);
}

REAL(send);
ssize_t __wrap_send(int fd, const void *data, size_t size, int flags)
{
    return fails(CALL_SEND, SITE) ? -1 : __real_send(fd, data, size, flags);
}

REAL(sendto);
ssize_t __wrap_sendto(int fd, const void *data, size_t size, int flags,
                      const struct sockaddr *address, socklen_t length)
{
    return fails(CALL_SENDTO, SITE) ? -1 : __real_sendto(fd, data, size, flags, address, length);
}

REAL(recv);
ssize_t __wrap_recv(int fd, void *data, size_t size, int flags)
{
    return fails(CALL_RECV, SITE) ? -1 : __real_recv(fd, data, size, flags);
}

REAL(getaddrinfo);
int __wrap_getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
                       struct addrinfo **list)
{
    int error = fault(CALL_GETADDRINFO, SITE);
    if (error != NO_ERROR) {
        errno = error > 0 ? error : EAGAIN; /* any: it counts for EAI_SYSTEM alone */
        return error > 0 ? EAI_SYSTEM : error;
    }
    error = __real_getaddrinfo(host, service, hints, list);
    balance.lists += error == 0;
    return error;
}

REAL(freeaddrinfo);
void __wrap_freeaddrinfo(struct addrinfo *list)
{
    balance.lists--;
    __real_freeaddrinfo(list);
}

/* ---- files --------------------------------------------------------------------------------- */

/* The tests' own folder; what is the user's stays out of it. */
static char folder_of_tests[64];

/* The user's ledger is one below the tests' folder. */
static inline const char *replaced(const char *path, char *buffer, size_t size)
{
    static const char prefix[] = "/tmp/portmanager-";
    if (strncmp(path, prefix, strlen(prefix)) != 0) {
        return path;
    }
    snprintf(buffer, size, "%s/own-%s", folder_of_tests, path + strlen(prefix));
    return buffer;
}

static inline bool has_mode(int flags)
{
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE;
}

REAL(open);
int __wrap_open(const char *path, int flags, ...)
{
    char buffer[256];
    va_list rest;
    va_start(rest, flags);
    mode_t mode = has_mode(flags) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    call which = strncmp(path, "/proc/", 6) == 0 ? CALL_OPEN_PROC : CALL_OPEN;
    return fails(which, SITE) ? -1
                              : __real_open(replaced(path, buffer, sizeof buffer), flags, mode);
}

REAL(openat);
int __wrap_openat(int folder, const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = has_mode(flags) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    call which = (flags & O_TMPFILE) == O_TMPFILE ? CALL_TMPFILE : CALL_OPENAT;
    return fails(which, SITE) ? -1 : __real_openat(folder, path, flags, mode);
}

/* Linux has closed the descriptor even when it says that it could not. */
REAL(close);
int __wrap_close(int fd)
{
    int result = __real_close(fd);
    return fails(CALL_CLOSE, SITE) ? -1 : result;
}

REAL(read);
ssize_t __wrap_read(int fd, void *data, size_t size)
{
    int error = fault(CALL_READ, SITE);
    if (error == NO_ERROR) {
        return __real_read(fd, data, size);
    }
    if (error == HALF) {
        ssize_t got = __real_read(fd, data, size);
        return got > 1 ? got / 2 : got;
    }
    return fallen_short(error);
}

REAL(pread);
ssize_t __wrap_pread(int fd, void *data, size_t size, off_t offset)
{
    int error = fault(CALL_PREAD, SITE);
    if (error == NO_ERROR || error == HALF) {
        return __real_pread(fd, data, error == HALF ? size / 2 : size, offset);
    }
    return fallen_short(error);
}

REAL(pwrite);
ssize_t __wrap_pwrite(int fd, const void *data, size_t size, off_t offset)
{
    int error = fault(CALL_PWRITE, SITE);
    if (error == NO_ERROR || error == HALF) {
        return __real_pwrite(fd, data, error == HALF ? size / 2 : size, offset);
    }
    return fallen_short(error);
}

REAL(ioctl);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
    va_list rest;
    va_start(rest, request);
    void *answer = va_arg(rest, void *);
    va_end(rest);
    return fails(CALL_IOCTL, SITE) ? -1 : __real_ioctl(fd, request, answer);
}

REAL(posix_fallocate);
int __wrap_posix_fallocate(int fd, off_t offset, off_t size)
{
    int error = fault(CALL_FALLOCATE, SITE);
    return error == NO_ERROR ? __real_posix_fallocate(fd, offset, size) : error;
}

REAL(mkdir);
int __wrap_mkdir(const char *path, mode_t mode)
{
    char buffer[256];
    return fails(CALL_MKDIR, SITE) ? -1 : __real_mkdir(replaced(path, buffer, sizeof buffer), mode);
}

REAL(chmod);
int __wrap_chmod(const char *path, mode_t mode)
{
    char buffer[256];
    return fails(CALL_CHMOD, SITE) ? -1 : __real_chmod(replaced(path, buffer, sizeof buffer), mode);
}

REAL(fchmod);
int __wrap_fchmod(int fd, mode_t mode)
{
    return fails(CALL_FCHMOD, SITE) ? -1 : __real_fchmod(fd, mode);
}

REAL(linkat);
int __wrap_linkat(int from, const char *path, int to, const char *name, int flags)
{
    return fails(CALL_LINKAT, SITE) ? -1 : __real_linkat(from, path, to, name, flags);
}

REAL(unlinkat);
int __wrap_unlinkat(int folder, const char *name, int flags)
{
    return fails(CALL_UNLINKAT, SITE) ? -1 : __real_unlinkat(folder, name, flags);
}

REAL(stat);
int __wrap_stat(const char *path, struct stat *status)
{
    return fails(CALL_STAT, SITE) ? -1 : __real_stat(path, status);
}

REAL(lstat);
int __wrap_lstat(const char *path, struct stat *status)
{
    char buffer[256];
    return fails(CALL_LSTAT, SITE) ? -1
                                   : __real_lstat(replaced(path, buffer, sizeof buffer), status);
}

REAL(fstat);
int __wrap_fstat(int fd, struct stat *status)
{
    return fails(CALL_FSTAT, SITE) ? -1 : __real_fstat(fd, status);
}

REAL(fstatfs);
int __wrap_fstatfs(int fd, struct statfs *status)
{
    return fails(CALL_FSTATFS, SITE) ? -1 : __real_fstatfs(fd, status);
}

REAL(fcntl);
int __wrap_fcntl(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    struct flock *lock = va_arg(rest, struct flock *); /* core locks, and does nothing else */
    va_end(rest);
    return fails(CALL_FCNTL, SITE) ? -1 : __real_fcntl(fd, command, lock);
}

/* ---- streams and folders ------------------------------------------------------------------- */

static bool stream_is_broken; /* by the last fgets */
static DIR *processes;        /* an open /proc, where nobody is to be seen but we */

REAL(fopen);
FILE *__wrap_fopen(const char *path, const char *mode)
{
    FILE *file = fails(CALL_FOPEN, SITE) ? NULL : __real_fopen(path, mode);
    balance.files += file != NULL;
    return file;
}

REAL(fgets);
char *__wrap_fgets(char *text, int size, FILE *file)
{
    stream_is_broken = fails(CALL_FGETS, SITE);
    return stream_is_broken ? NULL : __real_fgets(text, size, file);
}

REAL(ferror);
int __wrap_ferror(FILE *file)
{
    return stream_is_broken || __real_ferror(file);
}

REAL(fclose);
int __wrap_fclose(FILE *file)
{
    int result = __real_fclose(file);
    balance.files--;
    return fails(CALL_FCLOSE, SITE) ? EOF : result;
}

REAL(opendir);
DIR *__wrap_opendir(const char *path)
{
    DIR *folder = fails(CALL_OPENDIR, SITE) ? NULL : __real_opendir(path);
    balance.folders += folder != NULL;
    if (strcmp(path, "/proc") == 0) {
        processes = folder;
    }
    return folder;
}

REAL(fdopendir);
DIR *__wrap_fdopendir(int fd)
{
    DIR *folder = fails(CALL_FDOPENDIR, SITE) ? NULL : __real_fdopendir(fd);
    balance.folders += folder != NULL;
    return folder;
}

REAL(readdir);
struct dirent *__wrap_readdir(DIR *folder)
{
    struct dirent *entry = fails(CALL_READDIR, SITE) ? NULL : __real_readdir(folder);

    /* A machine may have thousands of processes, and never the same ones. */
    while (entry && folder == processes && atol(entry->d_name) > 0 &&
           atol(entry->d_name) != getpid()) {
        entry = __real_readdir(folder);
    }
    return entry;
}

REAL(readlinkat);
ssize_t __wrap_readlinkat(int folder, const char *path, char *target, size_t size)
{
    return fails(CALL_READLINKAT, SITE) ? -1 : __real_readlinkat(folder, path, target, size);
}

REAL(closedir);
int __wrap_closedir(DIR *folder)
{
    int result = __real_closedir(folder);
    balance.folders--;
    if (folder == processes) {
        processes = NULL;
    }
    return fails(CALL_CLOSEDIR, SITE) ? -1 : result;
}

/* ---- memory -------------------------------------------------------------------------------- */

/* As overlayfs does it: what is mapped is not the open file that the lock hangs on. */
static bool maps_another;

REAL(mmap);
static inline void *map_another(size_t size, int protection, int flags, int fd)
{
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int other = __real_open(link, O_RDWR | O_CLOEXEC);
    void *memory = __real_mmap(NULL, size, protection, flags, other, 0);
    __real_close(other);
    return memory;
}

void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (fails(flags & MAP_ANONYMOUS ? CALL_MMAP_OWN : CALL_MMAP, SITE)) {
        return MAP_FAILED;
    }
    void *memory = fd >= 0 && maps_another ? map_another(size, protection, flags, fd)
                                           : __real_mmap(at, size, protection, flags, fd, offset);
    balance.mappings += memory != MAP_FAILED;
    return memory;
}

REAL(munmap);
int __wrap_munmap(void *memory, size_t size)
{
    int result = fails(CALL_MUNMAP, SITE) ? -1 : __real_munmap(memory, size);
    balance.mappings -= result == 0;
    return result;
}

REAL(madvise);
int __wrap_madvise(void *memory, size_t size, int advice)
{
    return fails(advice == MADV_DONTFORK ? CALL_DONTFORK : CALL_WIPEONFORK, SITE)
               ? -1
               : __real_madvise(memory, size, advice);
}

REAL(pthread_atfork);
int __wrap_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void))
{
    int error = fault(CALL_ATFORK, SITE);
    return error == NO_ERROR ? __real_pthread_atfork(prepare, parent, child) : error;
}

REAL(malloc);
void *__wrap_malloc(size_t size)
{
    void *block = fails(CALL_MALLOC, SITE) ? NULL : __real_malloc(size);
    balance.blocks += block != NULL;
    return block;
}

REAL(realloc);
void *__wrap_realloc(void *old, size_t size)
{
    void *block = fails(CALL_REALLOC, SITE) ? NULL : __real_realloc(old, size);
    balance.blocks += block != NULL && old == NULL;
    return block;
}

REAL(free);
void __wrap_free(void *block)
{
    balance.blocks -= block != NULL;
    __real_free(block);
}

/* ---- time and chance ----------------------------------------------------------------------- */

/* A clock that the scenarios set: what core has looked at lately must not hang on how busy the
 * machine is. */
static int64_t monotonic_ns = INT64_C(1000000000000);
static int64_t step_ns; /* so much later at each look */

REAL(clock_gettime);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    if (fails(CALL_CLOCK, SITE)) {
        return -1;
    }
    if (clock != CLOCK_MONOTONIC) {
        return __real_clock_gettime(clock, now);
    }
    monotonic_ns += step_ns;
    now->tv_sec = monotonic_ns / 1000000000;
    now->tv_nsec = monotonic_ns % 1000000000;
    return 0;
}

/* Nobody has to wait: the clock is ours. */
int __wrap_nanosleep(const struct timespec *pause, struct timespec *rest)
{
    (void)pause, (void)rest;
    return fails(CALL_NANOSLEEP, SITE) ? -1 : 0;
}

/* Never the same twice in a process, and the same in each. */
ssize_t __wrap_getrandom(void *buffer, size_t size, unsigned flags)
{
    static uint32_t number = 1;
    int error = fault(CALL_GETRANDOM, SITE);
    (void)flags;

    if (error != NO_ERROR && error != HALF) {
        return fallen_short(error);
    }
    number = number * 1664525 + 1013904223;
    size = size < sizeof number ? size : sizeof number;
    memcpy(buffer, &number, size);
    return (ssize_t)(error == HALF ? size / 2 : size);
}

#endif
