#include "core/fork.h"

#include <pthread.h>
#include <stdatomic.h>

static pthread_rwlock_t guard = PTHREAD_RWLOCK_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic(uint32_t) forks, children;

static void before_fork(void)
{
    pthread_rwlock_wrlock(&guard);
}

static void after_fork_in_parent(void)
{
    /* Behind the fork: what was made up to now has a second owner. */
    atomic_fetch_add(&children, 1);
    pthread_rwlock_unlock(&guard);
}

static void after_fork_in_child(void)
{
    static const pthread_rwlock_t open_guard = PTHREAD_RWLOCK_INITIALIZER;

    guard = open_guard;
    atomic_fetch_add(&forks, 1);
}

static void watch(void)
{
    /* Out of memory for it: then forks are as they would be without us. */
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

void pm_fork_forbid(void)
{
    pthread_once(&once, watch);
    pthread_rwlock_rdlock(&guard);
}

void pm_fork_allow(void)
{
    pthread_rwlock_unlock(&guard);
}

uint32_t pm_fork_count(void)
{
    pthread_once(&once, watch);
    return atomic_load(&forks);
}

uint32_t pm_fork_children(void)
{
    pthread_once(&once, watch);
    return atomic_load(&children);
}
