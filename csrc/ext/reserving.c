#include "ext/reserving.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/reserve.h"
#include "ext/log.h"
#include "ext/module.h"

/* As in allocating.c. */
enum { WITH_GIL = 32, WITHOUT_GIL = 8192 };

typedef struct {
    PyObject_HEAD
    pm_holder holder;
    uint16_t *ports; /* `count` of them */
    uint32_t count;  /* 0: none, or given back */
    PyObject *numbers;
    unsigned int found;
    int wanted; /* 0: nothing was fit */
    unsigned int ephemeral;
    char borrowed;
    char forbidden;
} pm_ports;

/* ---- the search ---------------------------------------------------------------------------- */

static pm_status search(pm_reservation *reservation)
{
    /* System calls that never block: the GIL stays for as long as one port usually takes. */
    pm_status status = pm_reservation_run(reservation, WITH_GIL, false);

    while (status == PM_AGAIN) {
        Py_BEGIN_ALLOW_THREADS status = pm_reservation_run(reservation, WITHOUT_GIL, true);
        Py_END_ALLOW_THREADS
    }
    return status;
}

static PyObject *make_numbers(const uint16_t *ports, uint32_t count)
{
    PyObject *numbers = PyTuple_New((Py_ssize_t)count);

    for (uint32_t i = 0; numbers && i < count; i++) {
        PyObject *number = PyLong_FromLong(ports[i]);
        if (!number || PyTuple_SetItem(numbers, (Py_ssize_t)i, number) < 0) {
            Py_CLEAR(numbers);
        }
    }
    return numbers;
}

/* Searches for what was asked; -1 with an exception. */
static int fill(pm_state *state, pm_ports *self, pm_reserve_request *request)
{
    pm_reservation reservation;
    int result = -1;

    request->holder = self->holder = pm_ledger_enroll();
    self->ports = calloc(request->count, sizeof *self->ports);
    if (!self->ports) {
        PyErr_NoMemory();
        return -1;
    }
    pm_status status = pm_reservation_begin(&reservation, request, self->ports);
    if (status == PM_OK) {
        status = search(&reservation);
        int error = errno;
        pm_reservation_end(&reservation);
        errno = error;
        self->found = reservation.found;
        self->wanted = reservation.wanted;
        self->borrowed = reservation.borrowed;
        self->ephemeral = reservation.ephemeral;
        self->forbidden = (char)(reservation.forbidden > 0);
    }
    if (status == PM_OK) {
        self->count = request->count;
    }
    if (status == PM_OK || status == PM_BUSY) {
        self->numbers = make_numbers(self->ports, self->count);
        result = self->numbers ? 0 : -1;
    } else {
        PyErr_SetFromErrno(PyExc_OSError);
    }
    pm_log_ledger(state);
    return result;
}

PyObject *pm_reserve(PyObject *module, PyObject *arguments)
{
    pm_state *state = pm_state_of_module(module);
    pm_reserve_request request = {0};
    const char *key;
    Py_ssize_t key_size, label_size;
    unsigned int count;
    int consecutive;
    pm_ports *self;

    if (!PyArg_ParseTuple(arguments, "Ipz#z#HH", &count, &consecutive, &key, &key_size,
                          &request.name.label, &label_size, &request.first, &request.last)) {
        return NULL;
    }
    request.count = count;
    request.consecutive = consecutive;
    request.name.key = key ? pm_name_key(0, key, (size_t)key_size) : 0;
    self = (pm_ports *)PyType_GenericAlloc(state->held_type, 0);
    if (self && fill(state, self, &request) < 0) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

/* ---- the type ------------------------------------------------------------------------------ */

static void give_back(pm_ports *self)
{
    uint32_t count = self->count;

    self->count = 0;
    for (uint32_t i = 0; i < count; i++) {
        pm_ledger_release(self->holder, self->ports[i]);
    }
}

static PyObject *held_release(pm_ports *self, PyObject *unused)
{
    (void)unused;
    give_back(self);
    Py_RETURN_NONE;
}

static void held_dealloc(pm_ports *self)
{
    PyTypeObject *type = Py_TYPE(self);

    give_back(self);
    free(self->ports);
    Py_XDECREF(self->numbers);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef held_methods[] = {
    {"release", (PyCFunction)(void (*)(void))held_release, METH_NOARGS, "Gives the ports back."},
    {0},
};

static PyMemberDef held_members[] = {
    {"ports", T_OBJECT_EX, offsetof(pm_ports, numbers), READONLY, NULL},
    {"found", T_UINT, offsetof(pm_ports, found), READONLY, NULL},
    {"wanted", T_INT, offsetof(pm_ports, wanted), READONLY, NULL},
    {"borrowed", T_BOOL, offsetof(pm_ports, borrowed), READONLY, NULL},
    {"forbidden", T_BOOL, offsetof(pm_ports, forbidden), READONLY, NULL},
    {"ephemeral", T_UINT, offsetof(pm_ports, ephemeral), READONLY, NULL},
    {0},
};

static PyType_Slot held_slots[] = {
    {Py_tp_methods, held_methods},
    {Py_tp_members, held_members},
    {Py_tp_dealloc, held_dealloc},
    {0,             NULL        },
};

/* No garbage collection: it has references to numbers alone. */
PyType_Spec pm_held_type_spec = {
    .name = "portmanager._native._Held",
    .basicsize = sizeof(pm_ports),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = held_slots,
};

/* ---- who holds what ------------------------------------------------------------------------ */

static PyObject *describe(const pm_held *held)
{
    PyObject *label =
        held->has_label
            ? PyUnicode_DecodeUTF8(held->label, (Py_ssize_t)strlen(held->label), "replace")
            : Py_NewRef(Py_None);
    PyObject *pid = held->pid ? PyLong_FromUnsignedLong(held->pid) : Py_NewRef(Py_None);

    return Py_BuildValue("(iNNd)", (int)held->port, label, pid, (double)held->since_ns / 1e9);
}

PyObject *pm_reserved_ports(PyObject *module, PyObject *arguments)
{
    pm_held_list list = {0};
    PyObject *result = NULL;
    uint16_t first, last;
    pm_status status;

    if (!PyArg_ParseTuple(arguments, "HH", &first, &last)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS status = pm_ledger_check();
    if (status == PM_OK) {
        status = pm_ledger_list(first, last, &list);
    }
    Py_END_ALLOW_THREADS if (status != PM_OK)
    {
        PyErr_SetFromErrno(PyExc_OSError);
        goto done;
    }
    pm_log_ledger(pm_state_of_module(module));
    result = PyList_New(0);
    for (size_t i = 0; result && i < list.count; i++) {
        PyObject *item = describe(&list.items[i]);
        if (!item || PyList_Append(result, item) < 0) {
            Py_CLEAR(result);
        }
        Py_XDECREF(item);
    }
done:
    pm_held_list_free(&list);
    return result;
}
