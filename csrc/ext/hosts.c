#include "ext/hosts.h"

#include <string.h>

#include "ext/loop.h"
#include "ext/raise.h"
#include "ext/values.h"

bool pm_host_is_default(PyObject *host)
{
    return !host ||
           (PyUnicode_Check(host) && PyUnicode_CompareWithASCIIString(host, "127.0.0.1") == 0);
}

pm_host pm_host_addresses(pm_state *state, PyObject *host, pm_addresses *addresses,
                          PyObject **awaitable)
{
    const char *text;
    PyObject *arguments, *result;

    if (!host) {
        addresses->count = 1;
        addresses->items[0] = pm_address_loopback();
        return PM_HOST_KNOWN;
    }
    text = pm_host_text(host);
    if (!text) {
        return PM_HOST_ERROR;
    }
    if (pm_address_literal(text, addresses) == PM_OK) {
        return PM_HOST_KNOWN;
    }
    arguments = PyTuple_Pack(1, host);
    int waits = arguments ? pm_loop_run_in_thread(state, state->resolve, arguments, &result) : -1;
    Py_XDECREF(arguments);
    if (waits < 0) {
        return PM_HOST_ERROR;
    }
    if (waits) {
        *awaitable = result;
        return PM_HOST_WAIT;
    }
    pm_host answer = pm_host_resolved(result, addresses);
    Py_DECREF(result);
    return answer;
}

static bool are_addresses(const char *bytes, size_t size)
{
    pm_address address;

    if (size % sizeof address != 0 || size / sizeof address > PM_ADDRESSES_MAX) {
        return false;
    }
    for (; size > 0; bytes += sizeof address, size -= sizeof address) {
        memcpy(&address, bytes, sizeof address);
        if (address.any.sa_family != AF_INET && address.any.sa_family != AF_INET6) {
            return false;
        }
    }
    return true;
}

pm_host pm_host_resolved(PyObject *result, pm_addresses *addresses)
{
    char *bytes;
    Py_ssize_t size;

    if (PyBytes_AsStringAndSize(result, &bytes, &size) < 0) {
        return PM_HOST_ERROR;
    }
    if (!are_addresses(bytes, (size_t)size)) { /* an event loop may answer what it likes */
        PyErr_SetString(PyExc_TypeError, "the event loop did not return what _resolve() did");
        return PM_HOST_ERROR;
    }
    addresses->count = (size_t)size / sizeof *addresses->items;
    memcpy(addresses->items, bytes, (size_t)size);
    return addresses->count ? PM_HOST_KNOWN : PM_HOST_NOWHERE;
}

/* The name as the resolver takes it: IDNA where it is not ASCII. NULL with UnicodeError if it
 * cannot be a host's name. */
static PyObject *encode(PyObject *host)
{
    PyObject *ascii = PyUnicode_AsEncodedString(host, "ascii", "strict");
    if (ascii || !PyErr_ExceptionMatches(PyExc_UnicodeError)) {
        return ascii;
    }
    PyErr_Clear();
    return PyUnicode_AsEncodedString(host, "idna", "strict");
}

PyObject *pm_resolve(PyObject *module, PyObject *host)
{
    pm_addresses addresses;
    pm_status status;
    PyObject *name = encode(host);

    (void)module;
    if (!name) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeError)) {
            return NULL;
        }
        PyErr_Clear();
        return PyBytes_FromStringAndSize(NULL, 0);
    }
    const char *text = PyBytes_AsString(name);
    Py_BEGIN_ALLOW_THREADS status = pm_address_resolve(text, &addresses);
    Py_END_ALLOW_THREADS Py_DECREF(name);
    if (status == PM_EXHAUSTED) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    size_t count = status == PM_OK ? addresses.count : 0;
    return PyBytes_FromStringAndSize((const char *)addresses.items,
                                     (Py_ssize_t)(count * sizeof *addresses.items));
}
