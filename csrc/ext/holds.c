#include "ext/holds.h"

#include <time.h>

#include "core/fork.h"
#include "ext/log.h"
#include "ext/values.h"

typedef struct {
    PyObject_HEAD
    PyObject *name; /* of the service, as the caller wrote it: the key in allocated_ports */
    PyObject *allocation;
    double allocated_at;
    uint16_t port;
    bool published;
    uint32_t made_in; /* pm_fork_count(): in a forked child it is the parent's hold */
} pm_hold;

static void lock(pm_manager *self)
{
    /* Under a GIL nobody else can be inside. Without one, a thread that waits must not keep the
     * interpreter from stopping the one that is. */
    if (!PyThread_acquire_lock(self->lock, NOWAIT_LOCK)) {
        Py_BEGIN_ALLOW_THREADS PyThread_acquire_lock(self->lock, WAIT_LOCK);
        Py_END_ALLOW_THREADS
    }
}

static void unlock(pm_manager *self)
{
    PyThread_release_lock(self->lock);
}

/* A new reference, or NULL with or without an exception. Keys are exact strs, so that no lookup
 * here runs Python code. */
static pm_hold *find(pm_manager *self, PyObject *service)
{
    PyObject *hold = NULL;
    pm_mapping_get(self->holds, service, &hold);
    return (pm_hold *)hold;
}

int pm_hold_add(pm_manager *self, PyObject *service, PyObject *name, uint16_t port,
                PyObject *allocation, PyObject **standing)
{
    struct timespec now;
    pm_hold *hold = (pm_hold *)PyType_GenericAlloc(self->state->hold_type, 0), *other;
    int result = -1;

    if (!hold) {
        return -1;
    }
    clock_gettime(CLOCK_REALTIME, &now);
    hold->name = Py_NewRef(name);
    hold->allocation = Py_NewRef(allocation);
    hold->allocated_at = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
    hold->port = port;
    hold->made_in = pm_fork_count();
    lock(self);
    other = find(self, service);
    if (!other && !PyErr_Occurred()) {
        result = PyDict_SetItem(self->holds, service, (PyObject *)hold) < 0 ? -1 : 1;
    }
    unlock(self);
    if (other) {
        *standing = Py_NewRef(other->allocation);
        Py_DECREF(other);
        result = 0;
    }
    Py_DECREF(hold);
    return result;
}

void pm_hold_publish(pm_manager *self, PyObject *service, PyObject *allocation)
{
    pm_hold *hold;

    lock(self);
    hold = find(self, service);
    if (hold && hold->allocation == allocation) {
        hold->published = true;
    }
    unlock(self);
    Py_XDECREF(hold);
}

int pm_hold_find(pm_manager *self, PyObject *service, PyObject **allocation)
{
    pm_hold *hold;

    lock(self);
    hold = find(self, service);
    unlock(self);
    if (!hold) {
        return PyErr_Occurred() ? -1 : 0;
    }
    *allocation = Py_NewRef(hold->allocation);
    Py_DECREF(hold);
    return 1;
}

double pm_hold_time(pm_manager *self, PyObject *service, long port)
{
    pm_hold *hold;
    double at = 0;

    if (!PyUnicode_CheckExact(service)) {
        return 0;
    }
    lock(self);
    hold = find(self, service);
    unlock(self);
    if (hold && hold->port == port) {
        at = hold->allocated_at;
    }
    Py_XDECREF(hold);
    PyErr_Clear();
    return at;
}

/* In a forked child an inherited hold is forgotten, no more: its port may be another hold's of
 * this very manager by now. */
static void give_back(pm_manager *self, const pm_hold *hold)
{
    if (hold->made_in == pm_fork_count()) {
        pm_ledger_release(self->holder, hold->port);
    }
}

/* Takes a hold out and gives its port back, if it is `expected` or that is NULL. Whoever takes
 * it out is the one who gives back: nobody does so twice. */
static int release(pm_manager *self, PyObject *service, pm_hold *expected)
{
    pm_hold *hold;
    int result = 0;

    lock(self);
    hold = find(self, service);
    if (hold && (!expected || hold == expected)) {
        result = PyDict_DelItem(self->holds, service) < 0 ? -1 : 1;
        if (result > 0) {
            give_back(self, hold);
        }
    }
    unlock(self);
    Py_XDECREF(hold);
    return PyErr_Occurred() ? -1 : result;
}

int pm_hold_release(pm_manager *self, PyObject *service)
{
    return release(self, service, NULL);
}

void pm_holds_release_all(pm_manager *self)
{
    PyObject *service, *hold, *old = NULL, *fresh = PyDict_New();
    Py_ssize_t at = 0;

    lock(self);
    while (PyDict_Next(self->holds, &at, &service, &hold)) {
        give_back(self, (pm_hold *)hold);
    }
    if (fresh) {
        old = self->holds;
        self->holds = fresh;
    } else {
        PyErr_Clear();
        PyDict_Clear(self->holds);
    }
    unlock(self);
    Py_XDECREF(old); /* outside the lock: an allocation's end may run Python code */
}

/* Does allocated_ports still have the hold's port under its service? 1, 0 or -1. */
static int stands(pm_manager *self, PyObject *allocated_ports, const pm_hold *hold)
{
    PyObject *entry;
    long port;
    int result;

    if (!hold->published) {
        return 1;
    }
    result = pm_mapping_get(allocated_ports, hold->name, &entry);
    if (result == 1) {
        result = pm_allocated_port(self->state, entry, &port);
        Py_DECREF(entry);
        return result == 1 ? port == hold->port : result;
    }
    return result;
}

static void stop_monitor(pm_manager *self, uint16_t port)
{
    PyObject *number = PyLong_FromLong(port);
    if (number) {
        pm_manager_stop_monitor(self, number);
        Py_DECREF(number);
    }
}

bool pm_holds_any(pm_manager *self)
{
    lock(self);
    bool any = PyDict_Size(self->holds) > 0;
    unlock(self);
    return any;
}

int pm_holds_reconcile(pm_manager *self, PyObject *allocated_ports)
{
    PyObject *holds, *items;
    int result = 0;

    lock(self);
    holds = PyDict_Size(self->holds) ? Py_NewRef(self->holds) : NULL;
    unlock(self);
    if (!holds) {
        return 0;
    }
    /* Outside the lock: making a list may set off the garbage collector. */
    items = PyDict_Items(holds);
    Py_DECREF(holds);
    for (Py_ssize_t i = 0; items && result == 0 && i < PyList_Size(items); i++) {
        PyObject *item = PyList_GetItem(items, i), *service = PyTuple_GetItem(item, 0);
        pm_hold *hold = (pm_hold *)PyTuple_GetItem(item, 1);
        int still = stands(self, allocated_ports, hold);
        if (still == 0 && release(self, service, hold) == 1) {
            stop_monitor(self, hold->port);
            pm_log(self->state, PM_INFO,
                   "Gave back port %d: allocated_ports no longer has it for service %U",
                   (int)hold->port, service);
        }
        if (still < 0 || PyErr_Occurred()) {
            result = -1;
        }
    }
    Py_XDECREF(items);
    return items ? result : -1;
}

/* ---- the type ----------------------------------------------------------------------------- */

static int hold_traverse(pm_hold *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->name);
    Py_VISIT(self->allocation);
    return 0;
}

static int hold_clear(pm_hold *self)
{
    Py_CLEAR(self->name);
    Py_CLEAR(self->allocation);
    return 0;
}

static void hold_dealloc(pm_hold *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    hold_clear(self);
    freefunc release_memory = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release_memory(self);
    Py_DECREF(type);
}

static PyType_Slot hold_slots[] = {
    {Py_tp_traverse, hold_traverse},
    {Py_tp_clear,    hold_clear   },
    {Py_tp_dealloc,  hold_dealloc },
    {0,              NULL         },
};

PyType_Spec pm_hold_type_spec = {
    .name = "portmanager._native.hold",
    .basicsize = sizeof(pm_hold),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = hold_slots,
};
