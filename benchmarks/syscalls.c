/* The system calls of a probe and nothing else: what the benchmarks measure against.
 *
 * The benchmarks load it as a shared library; as a program it prints nanoseconds, for a PORT that
 * is free with the 99 behind it, and a COUNT:
 *
 *     cc -O2 -o syscalls syscalls.c && ./syscalls 20000 100000 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const int on = 1, off = 0;

static struct sockaddr_in loopback_of(uint16_t port)
{
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons(port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

/* Is a port of 127.0.0.1 free? Asked `count` times; false unless it was each time. */
bool probe_loopback(uint16_t port, int count)
{
    struct sockaddr_in address = loopback_of(port);
    bool free = true;

    while (count-- > 0) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        free &= bind(fd, (struct sockaddr *)&address, sizeof address) == 0;
        close(fd);
    }
    return free;
}

/* The same for all addresses of the machine, IPv4 and IPv6, which is what an allocation asks. */
bool probe_everywhere(uint16_t port, int count)
{
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    bool free = true;

    while (count-- > 0) {
        int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        free &= bind(fd, (struct sockaddr *)&address, sizeof address) == 0;
        close(fd);
    }
    return free;
}

/* One bind for each port of first..last, which must all be busy, on one socket: `count` times. */
bool walk_busy(uint16_t first, uint16_t last, int count)
{
    bool busy = true;

    while (count-- > 0) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        for (uint32_t port = first; port <= last; port++) {
            struct sockaddr_in address = loopback_of((uint16_t)port);
            busy &= bind(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno == EADDRINUSE;
        }
        close(fd);
    }
    return busy;
}

/* Nanoseconds of processor time. */
static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

enum { WALKED = 100 };

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: %s PORT COUNT\n", argv[0]);
        return 2;
    }
    uint16_t port = (uint16_t)atoi(argv[1]);
    int count = atoi(argv[2]), walks = count / WALKED + 1;

    double start = now();
    bool fine = probe_loopback(port, count);
    double loopback = (now() - start) / count;

    start = now();
    fine &= probe_everywhere(port, count);
    double everywhere = (now() - start) / count;

    for (int i = 0; i < WALKED; i++) { /* busy from here on, until the process ends */
        struct sockaddr_in address = loopback_of((uint16_t)(port + i));
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        fine &= bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 1) == 0;
    }
    start = now();
    fine &= walk_busy(port, (uint16_t)(port + WALKED - 1), walks);
    double busy = (now() - start) / walks / WALKED;

    printf("a probe of 127.0.0.1: %.0f ns, of all addresses: %.0f ns, each busy port of a walk: "
           "%.0f ns\n",
           loopback, everywhere, busy);
    return fine ? 0 : 1;
}
