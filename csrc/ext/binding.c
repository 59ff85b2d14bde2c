/* bind_port: allocate_port, and a socket that listens on the port at once. */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "core/listen.h"
#include "ext/hosts.h"
#include "ext/manager.h"
#include "ext/raise.h"
#include "ext/values.h"

/* vars */
enum { SELF, SERVICE, HOST, BACKLOG };
enum { BEGIN, ALLOCATED, RESOLVED };

enum { DEFAULT_BACKLOG = 128 };

typedef struct {
    int backlog;
    long port;
} bind_frame;

/* Whatever can be said against the arguments is said before a port is allocated. */
static bool read_arguments(pm_coroutine *co)
{
    bind_frame *frame = co->frame;
    long backlog = DEFAULT_BACKLOG;

    if (co->vars[BACKLOG] && !pm_count_from(co->vars[BACKLOG], "backlog", &backlog)) {
        return false;
    }
    frame->backlog = backlog < 0 ? 0 : backlog > INT_MAX ? INT_MAX : (int)backlog;
    return !co->vars[HOST] || pm_host_text(co->vars[HOST]);
}

/* OSError with the allocation's own message. */
static pm_outcome refuse(pm_coroutine *co, PyObject *allocation)
{
    pm_state *state = co->module_state;
    PyObject *status = PyObject_GetAttr(allocation, state->names.status);
    PyObject *message = status ? PyObject_GetAttrString(allocation, "message") : NULL;
    int busy = message ? PyObject_RichCompareBool(status, state->statuses.in_use, Py_EQ) : -1;

    if (busy < 0) {
        Py_CLEAR(message);
    }
    pm_raise_os_error(busy ? EADDRINUSE : EINVAL, message);
    Py_XDECREF(status);
    return PM_ERROR;
}

/* The port of an allocation that an override or a caller may have written. */
static bool read_port(pm_coroutine *co, PyObject *allocation)
{
    bind_frame *frame = co->frame;
    PyObject *port = PyObject_GetAttr(allocation, co->module_state->names.allocated_port);
    bool good = port && pm_port_from(port, "allocated_port", 1, &frame->port);

    Py_XDECREF(port);
    return good;
}

static pm_outcome refuse_to_listen(pm_coroutine *co, int error, const char *why)
{
    const bind_frame *frame = co->frame;
    PyObject *host = co->vars[HOST], *message;

    message =
        host ? PyUnicode_FromFormat("%s (cannot listen on %R, port %ld)", why, host, frame->port)
             : PyUnicode_FromFormat("%s (cannot listen on port %ld)", why, frame->port);
    pm_raise_os_error(error, message);
    return PM_ERROR;
}

/* socket.socket(fileno=fd), which takes the descriptor over. */
static PyObject *make_socket(int fd)
{
    PyObject *module = PyImport_ImportModule("socket");
    PyObject *type = module ? PyObject_GetAttrString(module, "socket") : NULL;
    PyObject *none = PyTuple_New(0), *keywords = Py_BuildValue("{si}", "fileno", fd);
    PyObject *made = type && none && keywords ? PyObject_Call(type, none, keywords) : NULL;

    if (!made) {
        close(fd);
    }
    Py_XDECREF(keywords);
    Py_XDECREF(none);
    Py_XDECREF(type);
    Py_XDECREF(module);
    return made;
}

static pm_outcome listen_on(pm_coroutine *co, const pm_addresses *addresses, PyObject **out)
{
    const bind_frame *frame = co->frame;
    int fd;

    if (pm_listen(addresses, (uint16_t)frame->port, frame->backlog, &fd) != PM_OK) {
        int error = errno;
        return refuse_to_listen(co, error, strerror(error));
    }
    *out = make_socket(fd);
    return *out ? PM_DONE : PM_ERROR;
}

static pm_outcome allocate(pm_coroutine *co, PyObject **out)
{
    PyObject *method = PyObject_GetAttr(co->vars[SELF], co->module_state->names.allocate_port);

    *out = method ? PyObject_CallFunctionObjArgs(method, co->vars[SERVICE], NULL) : NULL;
    Py_XDECREF(method);
    co->state = ALLOCATED;
    return *out ? PM_AWAIT : PM_ERROR;
}

static pm_outcome bind_port_step(pm_coroutine *co, PyObject *received, PyObject **out)
{
    pm_addresses addresses;
    pm_host host = PM_HOST_ERROR;

    if (co->state == BEGIN) {
        return read_arguments(co) ? allocate(co, out) : PM_ERROR;
    }
    if (received && co->state == RESOLVED) {
        host = pm_host_resolved(received, &addresses);
    } else if (received) {
        long port;
        int allocated = pm_allocated_port(co->module_state, received, &port);
        if (allocated != 1) {
            return allocated < 0 ? PM_ERROR : refuse(co, received);
        }
        if (!read_port(co, received)) {
            return PM_ERROR;
        }
        host = pm_host_addresses(co->module_state, co->vars[HOST], &addresses, out);
    }
    switch (host) {
    case PM_HOST_KNOWN:
        return listen_on(co, &addresses, out);
    case PM_HOST_WAIT:
        co->state = RESOLVED;
        return PM_AWAIT;
    case PM_HOST_NOWHERE:
        return refuse_to_listen(co, EADDRNOTAVAIL, "The name has no address");
    default:
        return PM_ERROR;
    }
}

const pm_coroutine_kind pm_bind_port = {.step = bind_port_step, .frame_size = sizeof(bind_frame)};
