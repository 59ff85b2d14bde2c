/* The port policy of a Linux network namespace, from /proc/sys/net/ipv4. */
#include "core/candidates.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ip_local_reserved_ports may list every second port: 32,768 numbers of up to six characters. */
enum { TEXT_USUAL = 4096, TEXT_MAX = 256 * 1024 };

/* A small file as a string that the caller frees; NULL if it cannot be read or has `size`
 * characters or more. One read: the kernel gives a list of ports in one piece or cut off. */
static char *read_up_to(const char *path, size_t size)
{
    char *text = malloc(size);
    int fd = text ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t got = fd < 0 ? -1 : read(fd, text, size - 1);

    if (fd >= 0) {
        close(fd);
    }
    if (got < 0 || (size_t)got == size - 1) {
        free(text);
        return NULL;
    }
    text[got] = '\0';
    return text;
}

/* The whole of a small file. Little is asked for at first: the kernel clears as much memory as it
 * is offered to fill, and 256 KiB take longer than all the rest. */
static char *read_text(const char *path)
{
    char *text = read_up_to(path, TEXT_USUAL);
    return text ? text : read_up_to(path, TEXT_MAX);
}

/* The decimal number at `*at`, which is moved behind it; false if there is none that is a port. */
static bool take_port(char **at, uint16_t *port)
{
    char *end;
    unsigned long number = strtoul(*at, &end, 10);
    if (end == *at || number > UINT16_MAX) {
        return false;
    }
    *at = end;
    *port = (uint16_t)number;
    return true;
}

static void read_ephemeral(const char *path, pm_port_policy *policy)
{
    char *text = read_text(path), *at = text;
    uint16_t first, last;

    if (text && take_port(&at, &first) && take_port(&at, &last)) {
        policy->ephemeral_first = first;
        policy->ephemeral_last = last;
    }
    free(text);
}

static void read_unprivileged(const char *path, pm_port_policy *policy)
{
    char *text = read_text(path), *at = text;
    uint16_t start;

    if (text && take_port(&at, &start)) {
        policy->unprivileged_start = start;
    }
    free(text);
}

/* A list such as `8080,9000-9010`. */
static void read_reserved(const char *path, pm_port_policy *policy)
{
    char *text = read_text(path), *at = text;
    uint16_t first, last;

    while (text && take_port(&at, &first)) {
        last = first;
        if (*at == '-') {
            at++;
            if (!take_port(&at, &last)) {
                break;
            }
        }
        for (uint32_t port = first; port <= last; port++) {
            pm_port_set_add(&policy->reserved, (uint16_t)port);
        }
        if (*at != ',') {
            break;
        }
        at++;
    }
    free(text);
}

void pm_port_policy_read(pm_port_policy *policy)
{
    memset(policy, 0, sizeof *policy);
    policy->unprivileged_start = 1024;
    policy->ephemeral_first = 32768;
    policy->ephemeral_last = 60999;
    read_unprivileged("/proc/sys/net/ipv4/ip_unprivileged_port_start", policy);
    read_ephemeral("/proc/sys/net/ipv4/ip_local_port_range", policy);
    read_reserved("/proc/sys/net/ipv4/ip_local_reserved_ports", policy);
}
