/* get_port_status and wait_for_port: passive, unless is_port_available is overridden. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/listeners.h"
#include "ext/holds.h"
#include "ext/hosts.h"
#include "ext/looking.h"
#include "ext/loop.h"
#include "ext/manager.h"
#include "ext/raise.h"
#include "ext/record.h"
#include "ext/values.h"

static pm_manager *manager_of(pm_coroutine *co)
{
    return (pm_manager *)co->vars[0];
}

static pm_status list_listeners(const pm_port_set *ports, bool with_pids, pm_listeners *list)
{
    pm_status status;

    Py_BEGIN_ALLOW_THREADS status = pm_listeners_list(ports, list);
    if (status == PM_OK && with_pids) {
        pm_listeners_find_pids(list);
    }
    Py_END_ALLOW_THREADS return status;
}

static PyObject *raise_untold(void)
{
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* ---- _listening_ports ---------------------------------------------------------------------- */

static bool read_ports(PyObject *iterable, pm_port_set *ports)
{
    PyObject *iterator = PyObject_GetIter(iterable), *item;
    long port;

    while (iterator && (item = PyIter_Next(iterator))) {
        bool good = pm_port_from(item, "port", 0, &port);
        Py_DECREF(item);
        if (!good) {
            break;
        }
        pm_port_set_add(ports, (uint16_t)port);
    }
    Py_XDECREF(iterator);
    return !PyErr_Occurred();
}

PyObject *pm_listening_ports(PyObject *module, PyObject *iterable)
{
    pm_port_set ports = {0};
    pm_listeners list;
    PyObject *found;

    (void)module;
    if (!read_ports(iterable, &ports)) {
        return NULL;
    }
    if (list_listeners(&ports, false, &list) != PM_OK) {
        raise_untold();
        pm_listeners_free(&list);
        return NULL;
    }
    found = PySet_New(NULL);
    for (size_t i = 0; found && i < list.count; i++) {
        PyObject *port = PyLong_FromLong(list.items[i].port);
        if (!port || PySet_Add(found, port) < 0) {
            Py_CLEAR(found);
        }
        Py_XDECREF(port);
    }
    pm_listeners_free(&list);
    return found;
}

/* ---- get_port_status ----------------------------------------------------------------------- */

enum { ITEMS = 1, STATUSES };
enum { COLLECT, ANSWERED };

typedef struct {
    Py_ssize_t next;
    bool passive;
    pm_port_set ports;
    pm_listeners list;
} status_frame;

/* A naive local datetime, or None for 0. */
static PyObject *datetime_of(pm_state *state, double seconds)
{
    PyObject *module, *type, *moment = NULL;

    if (seconds == 0) {
        Py_RETURN_NONE;
    }
    module = PyImport_ImportModule("datetime");
    type = module ? PyObject_GetAttrString(module, "datetime") : NULL;
    if (type) {
        PyObject *number = PyFloat_FromDouble(seconds);
        moment = number ? PyObject_CallMethodObjArgs(type, state->names.fromtimestamp, number, NULL)
                        : NULL;
        Py_XDECREF(number);
    }
    Py_XDECREF(type);
    Py_XDECREF(module);
    return moment;
}

/* The listener of a port with the lowest known pid; NULL: nobody listens. */
static const pm_listener *find_listener(const pm_listeners *list, long port)
{
    const pm_listener *best = NULL;
    for (size_t i = 0; i < list->count; i++) {
        const pm_listener *at = &list->items[i];
        if (at->port == port && (!best || (at->pid && (best->pid == 0 || at->pid < best->pid)))) {
            best = at;
        }
    }
    return best;
}

/* Appends the status of an item; `in_use` -1: as the kernel's tables have it. */
static int append_status(pm_coroutine *co, PyObject *item, int in_use)
{
    pm_state *state = co->module_state;
    status_frame *frame = co->frame;
    PyObject *service = PyTuple_GetItem(item, 0), *allocation = PyTuple_GetItem(item, 1);
    PyObject *port = PyObject_GetAttr(allocation, state->names.allocated_port);
    PyObject *pid = NULL, *moment = NULL, *status = NULL;
    int result = -1;
    long number = -1; /* it may have been released meanwhile */

    if (!port || pm_allocated_port(state, allocation, &number) < 0) {
        goto done;
    }
    const pm_listener *listener = find_listener(&frame->list, number);
    if (in_use < 0) {
        in_use = listener != NULL;
    }
    pid = in_use && listener && listener->pid ? PyLong_FromLong(listener->pid) : Py_NewRef(Py_None);
    moment = datetime_of(state, pm_hold_time(manager_of(co), service, number));
    if (pid && moment) {
        PyObject *values[] = {port, service, in_use ? Py_True : Py_False, pid, moment};
        status = pm_record_new(state, PM_RECORD_PORT_STATUS, values);
    }
    result = status ? PyList_Append(co->vars[STATUSES], status) : -1;
done:
    Py_XDECREF(status);
    Py_XDECREF(moment);
    Py_XDECREF(pid);
    Py_XDECREF(port);
    return result;
}

/* Looks at the kernel's tables once for all ports. */
static pm_outcome look(pm_coroutine *co)
{
    status_frame *frame = co->frame;
    pm_state *state = co->module_state;
    long port;

    for (Py_ssize_t i = 0; i < PyList_Size(co->vars[ITEMS]); i++) {
        PyObject *allocation = PyTuple_GetItem(PyList_GetItem(co->vars[ITEMS], i), 1);
        int is = pm_allocated_port(state, allocation, &port);
        if (is < 0) {
            return PM_ERROR;
        }
        if (is && port > 0 && port <= UINT16_MAX) {
            pm_port_set_add(&frame->ports, (uint16_t)port);
        }
    }
    if (list_listeners(&frame->ports, true, &frame->list) != PM_OK && frame->passive) {
        raise_untold();
        return PM_ERROR;
    }
    return PM_AWAIT;
}

static pm_outcome get_port_status_step(pm_coroutine *co, PyObject *received, PyObject **out)
{
    pm_state *state = co->module_state;
    status_frame *frame = co->frame;
    PyObject *items;

    if (co->state == COLLECT) {
        int overridden = pm_manager_overrides_probe(manager_of(co));
        co->vars[ITEMS] = overridden < 0 ? NULL : pm_manager_allocated_items(manager_of(co));
        co->vars[STATUSES] = co->vars[ITEMS] ? PyList_New(0) : NULL;
        if (!co->vars[STATUSES]) {
            return PM_ERROR;
        }
        frame->passive = !overridden;
        if (PyList_Size(co->vars[ITEMS]) > 0 && look(co) == PM_ERROR) {
            return PM_ERROR;
        }
        co->state = ANSWERED;
    } else {
        int available = received ? PyObject_IsTrue(received) : -1;
        if (available < 0 ||
            append_status(co, PyList_GetItem(co->vars[ITEMS], frame->next++), !available) < 0) {
            return PM_ERROR;
        }
    }
    items = co->vars[ITEMS];
    for (; frame->next < PyList_Size(items); frame->next++) {
        PyObject *item = PyList_GetItem(items, frame->next);
        if (!frame->passive) {
            long port = 0;
            if (pm_allocated_port(state, PyTuple_GetItem(item, 1), &port) < 0) {
                return PM_ERROR;
            }
            *out = pm_manager_ask(manager_of(co), port, NULL);
            return *out ? PM_AWAIT : PM_ERROR;
        }
        if (append_status(co, item, -1) < 0) {
            return PM_ERROR;
        }
    }
    *out = Py_NewRef(co->vars[STATUSES]);
    return PM_DONE;
}

static void get_port_status_end(pm_coroutine *co)
{
    pm_listeners_free(&((status_frame *)co->frame)->list);
}

const pm_coroutine_kind pm_get_port_status = {
    .step = get_port_status_step, .frame_size = sizeof(status_frame), .end = get_port_status_end};

/* ---- wait_for_port ------------------------------------------------------------------------- */

enum { PORT = 1, TIMEOUT, CHECK_INTERVAL, HOST };
enum { BEGIN, RESOLVED, LOOK, ASKED };

/* The shortest pause between two looks, in seconds, and how pauses grow with the time waited:
 * a service is noticed within a fraction of the time that it took to start. */
#define SHORTEST_PAUSE 0.001
#define PAUSE_GROWTH 0.04

typedef struct {
    long port;
    double began, timeout, check_interval; /* seconds */
    bool resolved;                         /* the addresses of the host are there */
    pm_addresses addresses;
} wait_frame;

static double now(void)
{
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return (double)moment.tv_sec + (double)moment.tv_nsec / 1e9;
}

static bool read_wait(pm_coroutine *co, wait_frame *frame)
{
    PyObject *timeout = co->vars[TIMEOUT], *interval = co->vars[CHECK_INTERVAL];

    frame->timeout = 30.0;
    frame->check_interval = 1.0;
    frame->began = now();
    return pm_port_from(co->vars[PORT], "port", 1, &frame->port) &&
           (!timeout || pm_seconds_from(timeout, "timeout", &frame->timeout)) &&
           (!interval || pm_seconds_from(interval, "check_interval", &frame->check_interval));
}

/* Nothing listens yet: False at the timeout, else a pause. */
static pm_outcome pause_or_give_up(pm_coroutine *co, pm_status status, PyObject **out)
{
    wait_frame *frame = co->frame;
    double waited = now() - frame->began, left = frame->timeout - waited;

    if (left <= 0) {
        if (status == PM_EXHAUSTED || status == PM_FAILED) {
            raise_untold();
            return PM_ERROR;
        }
        *out = Py_NewRef(Py_False);
        return PM_DONE;
    }
    double pause = fmax(SHORTEST_PAUSE, waited * PAUSE_GROWTH);
    pause = fmin(pause, fmax(SHORTEST_PAUSE, frame->check_interval));
    co->state = LOOK;
    *out = pm_loop_sleep(co->module_state, fmin(pause, left));
    return *out ? PM_AWAIT : PM_ERROR;
}

/* Exact looks at the kernel's table, a few microseconds each: the GIL stays. */
static pm_outcome look_passively(pm_coroutine *co, PyObject **out)
{
    wait_frame *frame = co->frame;
    pm_status status = PM_OK;
    bool listening = false;

    for (size_t i = 0; !listening && i < frame->addresses.count; i++) {
        pm_status one =
            pm_listeners_reach(&frame->addresses.items[i], (uint16_t)frame->port, &listening);
        status = one == PM_OK ? status : one;
    }
    if (listening) {
        *out = Py_NewRef(Py_True);
        return PM_DONE;
    }
    return pause_or_give_up(co, status, out);
}

/* One look: an override's, if there is one now, else ours, for which the host is resolved once.
 * A name without an address is waited for as if nothing listened. */
static pm_outcome look_for_listener(pm_coroutine *co, PyObject **out)
{
    wait_frame *frame = co->frame;
    int overridden = pm_manager_overrides_probe(manager_of(co));

    if (overridden) {
        co->state = ASKED;
        *out = overridden < 0 ? NULL : pm_manager_ask(manager_of(co), frame->port, co->vars[HOST]);
        return *out ? PM_AWAIT : PM_ERROR;
    }
    if (!frame->resolved) {
        frame->resolved = true;
        switch (pm_host_addresses(co->module_state, co->vars[HOST], &frame->addresses, out)) {
        case PM_HOST_ERROR:
            return PM_ERROR;
        case PM_HOST_WAIT:
            co->state = RESOLVED;
            return PM_AWAIT;
        default:
            break;
        }
    }
    return look_passively(co, out);
}

static pm_outcome wait_for_port_step(pm_coroutine *co, PyObject *received, PyObject **out)
{
    wait_frame *frame = co->frame;
    int available;

    if (co->state != BEGIN && !received) {
        return PM_ERROR;
    }
    switch (co->state) {
    case BEGIN:
        return read_wait(co, frame) && pm_manager_reconcile(manager_of(co)) == 0
                   ? look_for_listener(co, out)
                   : PM_ERROR;
    case RESOLVED:
        return pm_host_resolved(received, &frame->addresses) == PM_HOST_ERROR
                   ? PM_ERROR
                   : look_passively(co, out);
    case ASKED:
        available = PyObject_IsTrue(received);
        if (available == 0) {
            *out = Py_NewRef(Py_True);
        }
        return available < 0 ? PM_ERROR : available ? pause_or_give_up(co, PM_OK, out) : PM_DONE;
    default:
        return look_for_listener(co, out);
    }
}

const pm_coroutine_kind pm_wait_for_port = {.step = wait_for_port_step,
                                            .frame_size = sizeof(wait_frame)};
