/* By open-file-description locks (Linux 3.15). They belong to the description, not to the
 * process: a mapping keeps it alive when every descriptor is closed, closing other descriptors of
 * the file harms nothing, and two copies of this library in one process see each other. */
#include <errno.h>
#include <fcntl.h>

#include "core/liveness.h"

static int lock_call(int fd, int command, short type, uint32_t slot, short *answer)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)slot, .l_len = 1};
    int result;

    do {
        result = fcntl(fd, command, &lock);
    } while (result < 0 && errno == EINTR);
    *answer = lock.l_type;
    return result;
}

pm_status pm_liveness_lock(int fd, uint32_t slot)
{
    short answer;

    if (lock_call(fd, F_OFD_SETLK, F_WRLCK, slot, &answer) == 0) {
        return PM_OK;
    }
    return errno == EAGAIN || errno == EACCES ? PM_BUSY : PM_FAILED;
}

void pm_liveness_unlock(int fd, uint32_t slot)
{
    short answer;
    lock_call(fd, F_OFD_SETLK, F_UNLCK, slot, &answer);
}

pm_status pm_liveness_ask(int fd, uint32_t slot, bool *locked)
{
    short answer;

    if (lock_call(fd, F_OFD_GETLK, F_WRLCK, slot, &answer) < 0) {
        return PM_FAILED;
    }
    *locked = answer != F_UNLCK;
    return PM_OK;
}
