#include "core/file_system.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/vfs.h>

/* f_type of statfs(2) and linux/magic.h. Locks of these are the server's, or every machine's own,
 * and their mappings are not kept in step. */
static const uint32_t remote[] = {
    0x00006969, /* nfs */
    0x0000517b, /* smb */
    0xff534d42, /* cifs */
    0xfe534d42, /* smb2 */
    0x0000564c, /* ncp */
    0x73757245, /* coda */
    0x5346414f, /* afs */
    0x00c36400, /* ceph */
    0x01021997, /* 9p */
    0x65735546, /* fuse, sshfs for one */
    0x47504653, /* gpfs */
    0x0bd00bd0, /* lustre */
    0x01161970, /* gfs2 */
    0x7461636f, /* ocfs2 */
};

bool pm_file_system_is_local(int fd)
{
    struct statfs status;

    if (fstatfs(fd, &status) < 0) {
        return true;
    }
    for (size_t i = 0; i < sizeof remote / sizeof *remote; i++) {
        if ((uint32_t)status.f_type == remote[i]) {
            return false;
        }
    }
    return true;
}
