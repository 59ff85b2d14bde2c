#include "core/process.h"

#include <sys/random.h>
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
