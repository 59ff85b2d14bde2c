/* is_port_available and find_available_port. */
#include <string.h>

#include "core/allocate.h"
#include "ext/garbage.h"
#include "ext/hosts.h"
#include "ext/log.h"
#include "ext/manager.h"
#include "ext/raise.h"
#include "ext/values.h"

/* So many candidates are looked at before the GIL is given up for the rest: below 100
 * microseconds, which is cheaper than queueing for the GIL. */
enum { WITH_GIL = 64, WITHOUT_GIL = 8192 };

/* ---- is_port_available -------------------------------------------------------------------- */

enum { SELF, PORT, HOST };
enum { STARTED, RESOLVED };

static const char *reason(pm_status status)
{
    switch (status) {
    case PM_BUSY:
        return "the address is in use";
    case PM_FORBIDDEN:
        return "binding it needs a privilege";
    case PM_NOT_LOCAL:
        return "the host has no address of this machine";
    default:
        return "the host name does not resolve";
    }
}

static pm_outcome answer(pm_coroutine *co, pm_status status, long port, PyObject **out)
{
    if (status == PM_EXHAUSTED || status == PM_FAILED) {
        pm_raise_unknown("cannot probe", port);
        return PM_ERROR;
    }
    if (status != PM_OK) {
        const char *why = reason(status);
        if (co->vars[HOST]) {
            pm_log(co->module_state, PM_DEBUG, "Port %ld is not available on %S: %s", port,
                   co->vars[HOST], why);
        } else {
            pm_log(co->module_state, PM_DEBUG, "Port %ld is not available: %s", port, why);
        }
    }
    *out = PyBool_FromLong(status == PM_OK);
    return PM_DONE;
}

static pm_outcome is_port_available_step(pm_coroutine *co, PyObject *received, PyObject **out)
{
    pm_addresses addresses;
    pm_prober prober = PM_PROBER_CLOSED;
    pm_host host = PM_HOST_ERROR;
    long port;

    if (co->state == STARTED) {
        if (!pm_port_from(co->vars[PORT], "port", 0, &port) ||
            pm_manager_reconcile((pm_manager *)co->vars[SELF]) < 0) {
            return PM_ERROR;
        }
        host = pm_host_addresses(co->module_state, co->vars[HOST], &addresses, out);
    } else if (received) {
        port = PyLong_AsLong(co->vars[PORT]);
        host = pm_host_resolved(received, &addresses);
    }
    switch (host) {
    case PM_HOST_KNOWN:
        break;
    case PM_HOST_WAIT:
        co->state = RESOLVED;
        pm_set(&co->vars[PORT], PyLong_FromLong(port)); /* an __index__ is asked once */
        return co->vars[PORT] ? PM_AWAIT : PM_ERROR;
    case PM_HOST_NOWHERE:
        return answer(co, PM_UNRESOLVED, port, out);
    case PM_HOST_ERROR:
        return PM_ERROR;
    }
    /* System calls that never block: the GIL stays. */
    pm_status status = pm_probe_host(&prober, &addresses, (uint16_t)port);
    pm_prober_close(&prober);
    return answer(co, status, port, out);
}

const pm_coroutine_kind pm_is_port_available = {.step = is_port_available_step};

/* ---- find_available_port ------------------------------------------------------------------ */

enum { START_PORT = 1, END_PORT, FIND_HOST };
enum { BEGIN, FIND_RESOLVED, ASK, ASKED };

typedef struct {
    long start, end;
    long next; /* asked of an override */
    bool collected;
} find_frame;

static bool read_range(pm_coroutine *co, find_frame *frame)
{
    PyObject *end = co->vars[END_PORT];

    if (!pm_port_from(co->vars[START_PORT], "start_port", 1, &frame->start)) {
        return false;
    }
    if (end && end != Py_None) {
        return pm_port_from(end, "end_port", 1, &frame->end);
    }
    frame->end = frame->start + 100 > UINT16_MAX ? UINT16_MAX : frame->start + 100;
    return true;
}

static pm_outcome search(pm_coroutine *co, const pm_addresses *host, PyObject **out)
{
    const find_frame *frame = co->frame;
    pm_search search = {.host = *host,
                        .holder = ((pm_manager *)co->vars[SELF])->holder,
                        .next = (uint32_t)frame->start,
                        .last = (uint32_t)frame->end,
                        .prober = PM_PROBER_CLOSED};
    pm_outcome outcome = PM_DONE;
    pm_status status = pm_search_run(&search, WITH_GIL);

    while (status == PM_AGAIN || status == PM_HELD) {
        if (status == PM_HELD) {
            if (pm_collect_garbage() < 0) {
                outcome = PM_ERROR;
                break;
            }
            search.refuse_held = true;
        }
        Py_BEGIN_ALLOW_THREADS status = pm_search_run(&search, WITHOUT_GIL);
        Py_END_ALLOW_THREADS
    }
    pm_search_end(&search);
    pm_log_ledger(co->module_state);
    if (outcome == PM_ERROR) {
        return PM_ERROR;
    }
    if (status == PM_EXHAUSTED || status == PM_FAILED) {
        pm_raise_unknown("cannot probe", (long)search.next);
        return PM_ERROR;
    }
    *out = status == PM_OK ? PyLong_FromLong(search.port) : Py_NewRef(Py_None);
    return *out ? PM_DONE : PM_ERROR;
}

/* Is the port held, by one who is not garbage? 1, 0 or -1. */
static int is_held(pm_coroutine *co, uint16_t port)
{
    find_frame *frame = co->frame;
    pm_holder holder;

    if (pm_ledger_look(port, &holder) == PM_OK) {
        return 0;
    }
    if (holder != PM_NOBODY && holder != ((pm_manager *)co->vars[SELF])->holder &&
        !frame->collected) {
        frame->collected = true;
        if (pm_collect_garbage() < 0) {
            return -1;
        }
    }
    return pm_ledger_look(port, &holder) == PM_HELD;
}

/* The override's awaitable for the next port that nobody holds; PM_DONE with None behind the
 * last one. */
static pm_outcome ask_next(pm_coroutine *co, find_frame *frame, PyObject **out)
{
    if (pm_ledger_check() != PM_OK) {
        pm_raise_unknown("cannot probe", frame->next);
        return PM_ERROR;
    }
    for (; frame->next <= frame->end; frame->next++) {
        int held = is_held(co, (uint16_t)frame->next);
        if (held < 0) {
            return PM_ERROR;
        }
        if (!held) {
            co->state = ASKED;
            *out = pm_manager_ask((pm_manager *)co->vars[SELF], frame->next, co->vars[FIND_HOST]);
            return *out ? PM_AWAIT : PM_ERROR;
        }
    }
    *out = Py_NewRef(Py_None);
    return PM_DONE;
}

static pm_outcome find_begin(pm_coroutine *co, pm_addresses *addresses, PyObject **out)
{
    pm_manager *manager = (pm_manager *)co->vars[SELF];
    pm_state *state = co->module_state;
    find_frame *frame = co->frame;

    if (!read_range(co, frame) || pm_manager_reconcile(manager) < 0) {
        return PM_ERROR;
    }
    if (frame->start > frame->end) {
        *out = Py_NewRef(Py_None);
        return PM_DONE;
    }
    int overridden = pm_manager_overrides_probe(manager);
    if (overridden != 0) {
        frame->next = frame->start;
        return overridden < 0 ? PM_ERROR : ask_next(co, frame, out);
    }
    switch (pm_host_addresses(state, co->vars[FIND_HOST], addresses, out)) {
    case PM_HOST_KNOWN:
        return search(co, addresses, out);
    case PM_HOST_WAIT:
        co->state = FIND_RESOLVED;
        return PM_AWAIT;
    case PM_HOST_NOWHERE:
        *out = Py_NewRef(Py_None);
        return PM_DONE;
    default:
        return PM_ERROR;
    }
}

static pm_outcome find_available_port_step(pm_coroutine *co, PyObject *received, PyObject **out)
{
    find_frame *frame = co->frame;
    pm_addresses addresses;

    if (co->state == BEGIN) {
        return find_begin(co, &addresses, out);
    }
    if (!received) {
        return PM_ERROR;
    }
    if (co->state == FIND_RESOLVED) {
        switch (pm_host_resolved(received, &addresses)) {
        case PM_HOST_KNOWN:
            return search(co, &addresses, out);
        case PM_HOST_NOWHERE:
            *out = Py_NewRef(Py_None);
            return PM_DONE;
        default:
            return PM_ERROR;
        }
    }
    int available = PyObject_IsTrue(received);
    if (available == 0) {
        frame->next++;
        return ask_next(co, frame, out);
    }
    if (available > 0) {
        *out = PyLong_FromLong(frame->next);
    }
    return *out ? PM_DONE : PM_ERROR;
}

const pm_coroutine_kind pm_find_available_port = {.step = find_available_port_step,
                                                  .frame_size = sizeof(find_frame)};
