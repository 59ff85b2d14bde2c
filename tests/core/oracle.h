/* What oracles of tortures need: who lives, whatever the ledger says; and some noise. */
#ifndef PM_TEST_ORACLE_H
#define PM_TEST_ORACLE_H

#include "support.h"

#include <signal.h>
#include <stdatomic.h>
#include <time.h>

enum { PF_EXITING = 4 };

/* A process, and when it started: pids are used again. 0: nobody. */
typedef uint64_t person;

static inline person person_of(uint32_t pid, bool *alive)
{
    char path[32], text[512];
    unsigned long flags = 0;
    unsigned long long started = 0;
    char state = 0;

    *alive = false;
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) {
        close(fd);
    }
    if (got <= 0) {
        return 0;
    }
    text[got] = '\0';
    const char *at = strrchr(text, ')');
    if (!at || sscanf(at + 1,
                      " %c %*d %*d %*d %*d %*d %lu %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d "
                      "%*d %llu",
                      &state, &flags, &started) != 3) {
        return 0;
    }
    /* A dying process's locks go before it shows as a zombie. */
    *alive = state != 'Z' && state != 'X' && !(flags & PF_EXITING);
    return (person)pid << 32 | (uint32_t)started;
}

static inline bool is_alive(person who)
{
    bool alive;
    return person_of((uint32_t)(who >> 32), &alive) == who && alive;
}

static inline uint32_t noise_of(uint32_t *noise)
{
    *noise = *noise * 1664525 + 1013904223;
    return *noise >> 8;
}

static inline double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

#endif
