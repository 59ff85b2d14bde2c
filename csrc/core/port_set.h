/* A set of TCP ports: one bit for each of 0..65535. */
#ifndef PM_PORT_SET_H
#define PM_PORT_SET_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint64_t bits[(UINT16_MAX + 1) / 64];
} pm_port_set;

static inline void pm_port_set_add(pm_port_set *set, uint16_t port)
{
    set->bits[port / 64] |= UINT64_C(1) << (port % 64);
}

static inline void pm_port_set_remove(pm_port_set *set, uint16_t port)
{
    set->bits[port / 64] &= ~(UINT64_C(1) << (port % 64));
}

static inline bool pm_port_set_has(const pm_port_set *set, uint16_t port)
{
    return set->bits[port / 64] >> (port % 64) & 1;
}

#endif
