#include "core/process.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

uint32_t pm_process_id(void)
{
    return (uint32_t)getpid();
}

uint32_t pm_entropy(void)
{
    uint32_t number = 0;

    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != (ssize_t)sizeof number) {
        /* Early at boot, or refused by a sandbox: the clock and the pid differ well enough. */
        struct timespec now = {0};
        clock_gettime(CLOCK_MONOTONIC, &now);
        number = (uint32_t)now.tv_nsec * 2654435761u ^ pm_process_id();
    }
    return number;
}

/* Fields 4, the parent, and 22, the start in clock ticks since boot, of /proc/PID/stat. */
static bool read_stat(uint32_t pid, pm_process *process, uint32_t *parent)
{
    char path[32], text[1024], *at;
    int fd;
    ssize_t got;

    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    do {
        got = read(fd, text, sizeof text - 1);
    } while (got < 0 && errno == EINTR);
    close(fd);
    if (got <= 0) {
        return false;
    }
    text[got] = '\0';
    /* The second field is the command's name in parentheses, which may hold anything. */
    at = strrchr(text, ')');
    if (!at || sscanf(at + 1, " %*c %u", parent) != 1) {
        return false;
    }
    at++;
    for (int field = 2; field < 21 && at; field++) {
        at = strchr(at + 1, ' ');
    }
    if (!at) {
        return false;
    }
    process->pid = pid;
    process->started = strtoull(at + 1, NULL, 10);
    return true;
}

pm_process pm_process_self(void)
{
    pm_process self = {.pid = pm_process_id()};
    uint32_t parent;

    read_stat(self.pid, &self, &parent);
    return self;
}

size_t pm_process_lineage(uint32_t pid, pm_process *lineage, size_t max)
{
    size_t count = 0;

    while (pid != 0 && count < max && read_stat(pid, &lineage[count], &pid)) {
        count++;
    }
    return count;
}

pm_status pm_network_namespace(uint64_t *number)
{
    struct stat status;
    bool known = stat("/proc/self/ns/net", &status) == 0;

    *number = known ? (uint64_t)status.st_ino : 0;
    return !known && pm_status_of_errno(errno) == PM_EXHAUSTED ? PM_EXHAUSTED : PM_OK;
}
