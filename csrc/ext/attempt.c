#include "ext/attempt.h"

#include <errno.h>
#include <string.h>

#include "core/candidates.h"
#include "core/fork.h"
#include "ext/holds.h"
#include "ext/log.h"
#include "ext/loop.h"
#include "ext/record.h"
#include "ext/values.h"

static PyObject *make_allocation(pm_coroutine *co, PyObject *status, long port, PyObject *message)
{
    pm_state *state = co->module_state;
    PyObject *number = PyLong_FromLong(port), *allocation = NULL;
    PyObject *zero = co->vars[PM_ATTEMPT_REQUESTED] ? NULL : PyLong_FromLong(0);

    if (number && (zero || co->vars[PM_ATTEMPT_REQUESTED])) {
        PyObject *values[] = {co->vars[PM_ATTEMPT_NAME],
                              co->vars[PM_ATTEMPT_REQUESTED] ? co->vars[PM_ATTEMPT_REQUESTED]
                                                             : zero,
                              number, status, message};
        allocation = pm_record_new(state, PM_RECORD_PORT_ALLOCATION, values);
    }
    Py_XDECREF(zero);
    Py_XDECREF(number);
    return allocation;
}

static int store(pm_coroutine *co, PyObject *allocation)
{
    PyObject *entries =
        PyObject_GetAttr(co->vars[PM_ATTEMPT_MANAGER], co->module_state->names.allocated_ports);
    int result = entries ? PyObject_SetItem(entries, co->vars[PM_ATTEMPT_NAME], allocation) : -1;
    Py_XDECREF(entries);
    return result;
}

/* Takes the attempt off the list and hands its followers the allocation; None tells them that
 * there is none. */
static void settle_followers(pm_coroutine *co, PyObject *allocation)
{
    PyObject *key = co->vars[PM_ATTEMPT_KEY], *followers;

    if (!key) {
        return;
    }
    co->vars[PM_ATTEMPT_KEY] = NULL;
    if (pm_mapping_get(pm_attempt_manager(co)->attempts, key, &followers) == 1) {
        pm_mapping_remove(pm_attempt_manager(co)->attempts, key);
        for (Py_ssize_t i = 0; i < PyList_Size(followers); i++) {
            pm_loop_settle(co->module_state, PyList_GetItem(followers, i), allocation);
        }
        Py_DECREF(followers);
    }
    PyErr_Clear();
    Py_DECREF(key);
}

pm_outcome pm_attempt_done(pm_coroutine *co, PyObject *allocation, PyObject **out)
{
    settle_followers(co, allocation);
    *out = allocation;
    return PM_DONE;
}

/* Another thread's success, or one that came while we failed, is everyone's answer: 1 with the
 * allocation, in allocated_ports for sure; 0 or -1. */
static int find_success(pm_coroutine *co, PyObject **allocation)
{
    int found =
        co->vars[PM_ATTEMPT_EXACT_NAME]
            ? pm_hold_find(pm_attempt_manager(co), co->vars[PM_ATTEMPT_EXACT_NAME], allocation)
            : 0;
    if (found == 1 && store(co, *allocation) < 0) {
        Py_CLEAR(*allocation);
        return -1;
    }
    return found;
}

pm_outcome pm_attempt_fail(pm_coroutine *co, PyObject *status, PyObject *message, PyObject **out)
{
    PyObject *failure, *allocation = NULL;
    int found;

    if (!message) {
        return PM_ERROR;
    }
    found = find_success(co, &allocation);
    failure = found == 0 ? make_allocation(co, status, 0, message) : NULL;
    if (failure && store(co, failure) == 0) {
        /* Looked at again: what came in between must not be overwritten. */
        found = find_success(co, &allocation);
        if (found == 0) {
            pm_log(co->module_state, PM_LOG_ERROR, "Service %S: %U", co->vars[PM_ATTEMPT_NAME],
                   message);
            allocation = Py_NewRef(failure);
        }
    }
    Py_XDECREF(failure);
    Py_DECREF(message);
    return allocation ? pm_attempt_done(co, allocation, out) : PM_ERROR;
}

#define NEEDS_PRIVILEGE "needs a privilege that this process does not have"

static PyObject *granted_message(pm_coroutine *co, uint16_t port)
{
    const pm_attempt *frame = co->frame;
    const pm_service *service = &frame->service;

    if (service->port == 0) {
        return PyUnicode_FromFormat("Allocated port %d", (int)port);
    }
    if (service->port == port) {
        return PyUnicode_FromFormat("Allocated default port %d", (int)port);
    }
    return PyUnicode_FromFormat(
        "Default port %d %s. Allocated alternative port %d", (int)service->port,
        frame->default_forbidden ? NEEDS_PRIVILEGE : "was in use", (int)port);
}

pm_outcome pm_attempt_grant(pm_coroutine *co, uint16_t port, PyObject **out)
{
    pm_manager *manager = pm_attempt_manager(co);
    pm_state *state = co->module_state;
    pm_attempt *frame = co->frame;
    PyObject *message, *allocation, *standing = NULL;
    int added = -1;

    pm_attempt_note_claim(co, port); /* given back by the end, unless it becomes a hold */
    message = granted_message(co, port);
    allocation = message ? make_allocation(co, state->statuses.allocated, port, message) : NULL;
    if (allocation) {
        added = pm_hold_add(manager, co->vars[PM_ATTEMPT_EXACT_NAME], co->vars[PM_ATTEMPT_NAME],
                            port, allocation, &standing);
    }
    if (added == 0) { /* another thread was first */
        pm_set(&allocation, standing);
    }
    if (added == 1) {
        frame->claimed = 0;
        if (store(co, allocation) < 0) {
            pm_hold_release(manager, co->vars[PM_ATTEMPT_EXACT_NAME]);
            added = -1;
        } else {
            pm_hold_publish(manager, co->vars[PM_ATTEMPT_EXACT_NAME], allocation);
            pm_log(state, PM_INFO, "Service %S: %U", co->vars[PM_ATTEMPT_NAME], message);
            if (pm_port_is_blocked(port)) {
                pm_log(state, PM_WARNING,
                       "Service %S: browsers, Node's fetch and Deno refuse to connect to port %d",
                       co->vars[PM_ATTEMPT_NAME], (int)port);
            }
        }
    }
    Py_XDECREF(message);
    if (added < 0) {
        Py_XDECREF(allocation);
        return PM_ERROR;
    }
    return pm_attempt_done(co, allocation, out);
}

pm_outcome pm_attempt_fail_forbidden(pm_coroutine *co, PyObject **out)
{
    const pm_service *service = &((pm_attempt *)co->frame)->service;
    pm_port_policy policy;

    pm_port_policy_read(&policy);
    PyObject *message = PyUnicode_FromFormat(
        "Port %d " NEEDS_PRIVILEGE " (ports below %d do here): "
        "configure a port from %d up, or give the process CAP_NET_BIND_SERVICE",
        (int)service->port, (int)policy.unprivileged_start, (int)policy.unprivileged_start);
    return pm_attempt_fail(co, co->module_state->statuses.error, message, out);
}

pm_outcome pm_attempt_fail_busy(pm_coroutine *co, PyObject **out)
{
    const pm_attempt *frame = co->frame;
    int port = frame->service.port;
    PyObject *message;

    if (port == 0) {
        message = PyUnicode_FromString("No free port is left");
    } else if (frame->default_forbidden) {
        message = PyUnicode_FromFormat(
            "Port %d " NEEDS_PRIVILEGE ", and its alternatives are in use", port);
    } else {
        message = PyUnicode_FromFormat("Port %d is in use and no alternatives available", port);
    }
    return pm_attempt_fail(co, co->module_state->statuses.in_use, message, out);
}

pm_outcome pm_attempt_fail_unknown(pm_coroutine *co, PyObject **out)
{
    const pm_service *service = &((pm_attempt *)co->frame)->service;
    PyObject *message = PyUnicode_FromFormat("Cannot tell whether port %d is free: %s",
                                             (int)service->port, strerror(errno));
    return pm_attempt_fail(co, co->module_state->statuses.error, message, out);
}

int pm_attempt_follow(pm_coroutine *co, PyObject **future)
{
    PyObject *attempts = pm_attempt_manager(co)->attempts, *loop, *key, *followers = NULL;
    int result;

    if (PyDict_Size(attempts) == 0) {
        return 0;
    }
    result = pm_loop_running(co->module_state, &loop);
    if (result <= 0) {
        return result;
    }
    key = PyTuple_Pack(2, co->vars[PM_ATTEMPT_EXACT_NAME], loop);
    result = key ? pm_mapping_get(attempts, key, &followers) : -1;
    if (result == 1) {
        *future = PyObject_CallMethodObjArgs(loop, co->module_state->names.create_future, NULL);
        result = *future && PyList_Append(followers, *future) == 0 ? 1 : -1;
        Py_DECREF(followers);
    }
    Py_XDECREF(key);
    Py_DECREF(loop);
    return result;
}

/* Before the first wait: from now on other tasks of the loop can find the attempt. */
static int announce(pm_coroutine *co)
{
    PyObject *loop, *followers;
    int result;

    if (co->vars[PM_ATTEMPT_KEY]) {
        return 0;
    }
    result = pm_loop_running(co->module_state, &loop);
    if (result <= 0) {
        return result;
    }
    followers = PyList_New(0);
    co->vars[PM_ATTEMPT_KEY] = PyTuple_Pack(2, co->vars[PM_ATTEMPT_EXACT_NAME], loop);
    result =
        followers && co->vars[PM_ATTEMPT_KEY]
            ? PyDict_SetItem(pm_attempt_manager(co)->attempts, co->vars[PM_ATTEMPT_KEY], followers)
            : -1;
    Py_XDECREF(followers);
    Py_DECREF(loop);
    return result;
}

/* A coroutine that will not be awaited after all, whose reference is taken over. */
static void close_quietly(PyObject *awaitable)
{
    PyObject *type, *value, *traceback, *closed;

    PyErr_Fetch(&type, &value, &traceback);
    closed = PyObject_CallMethod(awaitable, "close", NULL);
    Py_XDECREF(closed);
    Py_DECREF(awaitable);
    PyErr_Restore(type, value, traceback);
}

pm_outcome pm_attempt_wait(pm_coroutine *co, PyObject *awaitable, int state, PyObject **out)
{
    if (!awaitable) {
        return PM_ERROR;
    }
    if (announce(co) < 0) {
        close_quietly(awaitable);
        return PM_ERROR;
    }
    co->state = state;
    *out = awaitable;
    return PM_AWAIT;
}

void pm_attempt_note_claim(pm_coroutine *co, uint16_t port)
{
    pm_attempt *frame = co->frame;
    frame->claimed = port;
    frame->claimed_in = pm_fork_count();
}

void pm_attempt_unclaim(pm_coroutine *co)
{
    pm_attempt *frame = co->frame;
    if (frame->claimed && frame->claimed_in == pm_fork_count()) {
        pm_ledger_release(pm_attempt_manager(co)->holder, frame->claimed);
    }
    frame->claimed = 0;
}

void pm_attempt_end(pm_coroutine *co)
{
    pm_attempt_unclaim(co);
    settle_followers(co, Py_None);
}
