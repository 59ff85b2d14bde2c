/* allocate_port and allocate_all_ports.
 *
 * An attempt is rounds of core's walk with pauses between them. Where one of the methods that it
 * is built on is overridden, a round asks those instead, with the port claimed while it asks:
 *
 *     BEGIN --> ROUND ----------------------------------+--> grant or fail
 *                 |                                     |
 *                 +--> ASKED_DEFAULT --> FOUND (again) -+
 *                                                       |
 *     ROUND <-- PAUSED <-- all were busy ---------------+
 *
 * Who asks for a service that a task of the same loop is attempting already waits for its
 * answer: FOLLOWING. If that task ends without one, the first who waits attempts. */
#include <errno.h>
#include <string.h>

#include "core/allocate.h"

#include "ext/garbage.h"
#include "ext/holds.h"
#include "ext/log.h"
#include "ext/loop.h"
#include "ext/manager.h"
#include "ext/record.h"
#include "ext/service.h"
#include "ext/values.h"

enum { WITH_GIL = 32, WITHOUT_GIL = 8192 };

/* vars */
enum { SELF, NAME, EXACT_NAME, REQUESTED, ATTEMPT };

enum { BEGIN, FOLLOWING, ROUND, PAUSED, ASKED_ANY, ASKED_DEFAULT, FOUND };

/* Of so many free ports an override is asked in a round, when any port will do. */
enum { ASKED_ANY_MAX = 100 };

typedef struct {
    pm_service service;
    long retries; /* rounds that may still follow */
    bool collected;
    bool find_overridden;
    uint16_t claimed;  /* held for this attempt alone while an override is asked; 0: none */
    int asked;         /* how many free ports an override has refused in this round */
    uint16_t fallback; /* a port of the browsers' list, for want of a better one; 0: none */
    long next;         /* where the search in the range goes on */
} allocate_frame;

static pm_manager *manager_of(pm_coroutine *co)
{
    return (pm_manager *)co->vars[SELF];
}

/* ---- the answer --------------------------------------------------------------------------- */

static PyObject *make_allocation(pm_coroutine *co, PyObject *status, long port, PyObject *message)
{
    pm_state *state = co->module_state;
    PyObject *number = PyLong_FromLong(port), *allocation = NULL;
    PyObject *zero = co->vars[REQUESTED] ? NULL : PyLong_FromLong(0);

    if (number && (zero || co->vars[REQUESTED])) {
        PyObject *values[] = {co->vars[NAME], co->vars[REQUESTED] ? co->vars[REQUESTED] : zero,
                              number, status, message};
        allocation = pm_record_new(state, PM_RECORD_PORT_ALLOCATION, values);
    }
    Py_XDECREF(zero);
    Py_XDECREF(number);
    return allocation;
}

static int store(pm_coroutine *co, PyObject *allocation)
{
    PyObject *entries = PyObject_GetAttr(co->vars[SELF], co->module_state->names.allocated_ports);
    int result = entries ? PyObject_SetItem(entries, co->vars[NAME], allocation) : -1;
    Py_XDECREF(entries);
    return result;
}

/* Takes the attempt off the list and hands its followers the allocation; None tells them that
 * there is none. */
static void settle_followers(pm_coroutine *co, PyObject *allocation)
{
    PyObject *key = co->vars[ATTEMPT], *followers;

    if (!key) {
        return;
    }
    co->vars[ATTEMPT] = NULL;
    if (pm_mapping_get(manager_of(co)->attempts, key, &followers) == 1) {
        pm_mapping_remove(manager_of(co)->attempts, key);
        for (Py_ssize_t i = 0; i < PyList_Size(followers); i++) {
            pm_loop_settle(co->module_state, PyList_GetItem(followers, i), allocation);
        }
        Py_DECREF(followers);
    }
    PyErr_Clear();
    Py_DECREF(key);
}

static pm_outcome done(pm_coroutine *co, PyObject *allocation, PyObject **out)
{
    settle_followers(co, allocation);
    *out = allocation;
    return PM_DONE;
}

/* Ends without a port: the outcome is stored, unless another thread was successful. */
static pm_outcome fail(pm_coroutine *co, PyObject *status, PyObject *message, PyObject **out)
{
    PyObject *allocation = NULL;
    int standing = 0;

    if (!message) {
        return PM_ERROR;
    }
    if (co->vars[EXACT_NAME]) {
        standing = pm_hold_find(manager_of(co), co->vars[EXACT_NAME], &allocation);
    }
    if (standing == 0) {
        pm_log(co->module_state, PM_LOG_ERROR, "Service %S: %U", co->vars[NAME], message);
        allocation = make_allocation(co, status, 0, message);
        if (allocation && store(co, allocation) < 0) {
            Py_CLEAR(allocation);
        }
    }
    Py_DECREF(message);
    return allocation ? done(co, allocation, out) : PM_ERROR;
}

static PyObject *granted_message(pm_coroutine *co, uint16_t port, bool forbidden)
{
    const pm_service *service = &((allocate_frame *)co->frame)->service;

    if (service->port == 0) {
        return PyUnicode_FromFormat("Allocated port %d", (int)port);
    }
    if (service->port == port) {
        return PyUnicode_FromFormat("Allocated default port %d", (int)port);
    }
    return PyUnicode_FromFormat("Default port %d %s. Allocated alternative port %d",
                                (int)service->port,
                                forbidden ? "needs a privilege that this process does not have"
                                          : "was in use",
                                (int)port);
}

/* Ends with a port that is claimed for this manager. */
static pm_outcome grant(pm_coroutine *co, uint16_t port, bool default_forbidden, PyObject **out)
{
    pm_manager *manager = manager_of(co);
    pm_state *state = co->module_state;
    allocate_frame *frame = co->frame;
    PyObject *message, *allocation, *standing = NULL;
    int added = -1;

    frame->claimed = port; /* given back by the end, unless it becomes a hold */
    message = granted_message(co, port, default_forbidden);
    allocation =
        message ? make_allocation(co, state->statuses.allocated, port, message) : NULL;
    if (allocation) {
        added = pm_hold_add(manager, co->vars[EXACT_NAME], port, allocation, &standing);
    }
    if (added == 0) { /* another thread was first */
        pm_set(&allocation, standing);
    }
    if (added == 1) {
        frame->claimed = 0;
        if (store(co, allocation) < 0) {
            pm_hold_release(manager, co->vars[EXACT_NAME]);
            added = -1;
        } else {
            pm_hold_publish(manager, co->vars[EXACT_NAME], allocation);
            pm_log(state, PM_INFO, "Service %S: %U", co->vars[NAME], message);
            if (pm_port_is_blocked(port)) {
                pm_log(state, PM_WARNING,
                       "Service %S: browsers, Node's fetch and Deno refuse to connect to port %d",
                       co->vars[NAME], (int)port);
            }
        }
    }
    Py_XDECREF(message);
    if (added < 0) {
        Py_XDECREF(allocation);
        return PM_ERROR;
    }
    return done(co, allocation, out);
}

static pm_outcome fail_forbidden(pm_coroutine *co, PyObject **out)
{
    const pm_service *service = &((allocate_frame *)co->frame)->service;
    pm_port_policy policy;

    pm_port_policy_read(&policy);
    PyObject *message = PyUnicode_FromFormat(
        "Port %d needs a privilege that this process does not have (ports below %d do here): "
        "configure a port from %d up, or give the process CAP_NET_BIND_SERVICE",
        (int)service->port, (int)policy.unprivileged_start, (int)policy.unprivileged_start);
    return fail(co, co->module_state->statuses.error, message, out);
}

/* Out of descriptors, say: errno tells. */
static pm_outcome fail_unknown(pm_coroutine *co, PyObject **out)
{
    const pm_service *service = &((allocate_frame *)co->frame)->service;
    PyObject *message = PyUnicode_FromFormat("Cannot tell whether port %d is free: %s",
                                             (int)service->port, strerror(errno));
    return fail(co, co->module_state->statuses.error, message, out);
}

/* ---- beginning and waiting ---------------------------------------------------------------- */

/* What is to be known of the attempt of another task of this loop: 1 with a future of its
 * answer, 0 if there is none, -1. */
static int follow(pm_coroutine *co, PyObject **future)
{
    PyObject *attempts = manager_of(co)->attempts, *loop, *key, *followers = NULL;
    int result;

    if (PyDict_Size(attempts) == 0) {
        return 0;
    }
    result = pm_loop_running(co->module_state, &loop);
    if (result <= 0) {
        return result;
    }
    key = PyTuple_Pack(2, co->vars[EXACT_NAME], loop);
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

    if (co->vars[ATTEMPT]) {
        return 0;
    }
    result = pm_loop_running(co->module_state, &loop);
    if (result <= 0) {
        return result;
    }
    followers = PyList_New(0);
    co->vars[ATTEMPT] = PyTuple_Pack(2, co->vars[EXACT_NAME], loop);
    result = followers && co->vars[ATTEMPT]
                 ? PyDict_SetItem(manager_of(co)->attempts, co->vars[ATTEMPT], followers)
                 : -1;
    Py_XDECREF(followers);
    Py_DECREF(loop);
    return result;
}

/* Awaits `awaitable`, whose reference is taken over, and goes on in `state`. */
static pm_outcome wait_for(pm_coroutine *co, PyObject *awaitable, int state, PyObject **out)
{
    if (!awaitable || announce(co) < 0) {
        Py_XDECREF(awaitable);
        return PM_ERROR;
    }
    co->state = state;
    *out = awaitable;
    return PM_AWAIT;
}

/* Looks the service up: PM_DONE with what is known already, PM_AWAIT to follow another task, or
 * ROUND to come. */
static pm_outcome begin(pm_coroutine *co, PyObject **out)
{
    pm_manager *manager = manager_of(co);
    pm_state *state = co->module_state;
    allocate_frame *frame = co->frame;
    PyObject *entries = pm_manager_allocated_ports(manager), *entry, *configs = NULL;
    PyObject *config = NULL, *message = NULL;
    pm_outcome outcome = PM_ERROR;
    long port;
    int found;

    if (!entries) {
        return PM_ERROR;
    }
    found = pm_mapping_get(entries, co->vars[NAME], &entry);
    if (found < 0) {
        goto done;
    }
    if (found) {
        found = pm_allocated_port(state, entry, &port);
        if (found) {
            *out = entry;
            outcome = found > 0 ? PM_DONE : PM_ERROR;
            goto done;
        }
        Py_DECREF(entry);
    }
    configs = PyObject_GetAttr((PyObject *)manager, state->names.port_configs);
    found = configs ? pm_mapping_get(configs, co->vars[NAME], &config) : -1;
    if (found < 0) {
        goto done;
    }
    if (!found) {
        message =
            PyUnicode_FromFormat("No port configuration found for service: %S", co->vars[NAME]);
        outcome = fail(co, state->statuses.error, message, out);
        goto done;
    }
    found = pm_service_read(manager, co->vars[NAME], config, &frame->service, &message);
    pm_set(&co->vars[REQUESTED], frame->service.default_port);
    frame->service.default_port = NULL;
    if (found == 0) {
        outcome = fail(co, state->statuses.error, message, out);
    } else if (found > 0) {
        /* A subclass of str could run Python code while it is compared: ours is exact. */
        pm_set(&co->vars[EXACT_NAME], PyUnicode_FromObject(co->vars[NAME]));
        found = co->vars[EXACT_NAME] ? follow(co, out) : -1;
        frame->retries = frame->service.max_retries;
        co->state = found ? FOLLOWING : ROUND;
        outcome = found < 0 ? PM_ERROR : PM_AWAIT;
    }
done:
    Py_XDECREF(config);
    Py_XDECREF(configs);
    Py_DECREF(entries);
    return outcome;
}

/* After a round in which something was busy. */
static pm_outcome pause_or_fail(pm_coroutine *co, PyObject **out)
{
    allocate_frame *frame = co->frame;

    if (frame->retries > 0) {
        frame->retries--;
        return wait_for(co, pm_loop_sleep(co->module_state, frame->service.retry_delay), PAUSED,
                        out);
    }
    PyObject *message =
        frame->service.port == 0
            ? PyUnicode_FromString("No free port is left")
            : PyUnicode_FromFormat("Port %d is in use and no alternatives available",
                                   (int)frame->service.port);
    return fail(co, co->module_state->statuses.in_use, message, out);
}

/* ---- a round of core ---------------------------------------------------------------------- */

static pm_outcome conclude(pm_coroutine *co, pm_status status, const pm_allocation *allocation,
                           PyObject **out)
{
    switch (status) {
    case PM_OK:
        if (allocation->ephemeral) {
            pm_log(co->module_state, PM_WARNING,
                   "Service %S: only the ephemeral range had a free port; an outgoing connection "
                   "may take port %d while nothing listens on it",
                   co->vars[NAME], (int)allocation->port);
        }
        return grant(co, allocation->port, allocation->default_forbidden, out);
    case PM_BUSY:
        return pause_or_fail(co, out);
    case PM_FORBIDDEN:
        return fail_forbidden(co, out);
    default:
        return fail_unknown(co, out);
    }
}

/* Runs a walk to its end; PM_HELD with an exception set if collecting garbage failed. */
static pm_status walk(pm_coroutine *co, pm_allocation *allocation)
{
    allocate_frame *frame = co->frame;
    pm_status status;

    /* System calls that never block: the GIL stays for as long as a walk usually takes. */
    status = pm_allocation_run(allocation, WITH_GIL);
    while (status == PM_AGAIN || status == PM_HELD) {
        if (status == PM_HELD) {
            if (pm_collect_garbage() < 0) {
                return PM_HELD;
            }
            frame->collected = allocation->request.refuse_held = true;
            status = pm_allocation_run(allocation, WITH_GIL);
            continue;
        }
        Py_BEGIN_ALLOW_THREADS
        status = pm_allocation_run(allocation, WITHOUT_GIL);
        Py_END_ALLOW_THREADS
    }
    return status;
}

static pm_status run_walk(pm_coroutine *co, bool with_range, pm_allocation *allocation)
{
    allocate_frame *frame = co->frame;
    const pm_service *service = &frame->service;
    pm_request request = {
        .holder = manager_of(co)->holder,
        .default_port = service->port,
        .has_range = with_range && service->may_fall_back && service->has_range,
        .first = service->first,
        .last = service->last,
        .refuse_held = frame->collected,
    };

    pm_allocation_begin(allocation, &request);
    pm_status status = walk(co, allocation);
    pm_allocation_end(allocation);
    return status;
}

static pm_outcome core_round(pm_coroutine *co, PyObject **out)
{
    pm_allocation allocation;
    pm_status status = run_walk(co, true, &allocation);
    return status == PM_HELD ? PM_ERROR : conclude(co, status, &allocation, out);
}

/* ---- a round of overrides ----------------------------------------------------------------- */

/* Claims a port for the attempt: 1, 0 if somebody holds it, -1. */
static int claim(pm_coroutine *co, uint16_t port)
{
    allocate_frame *frame = co->frame;
    pm_holder me = manager_of(co)->holder, holder;
    pm_status status = pm_ledger_claim(me, port, &holder);

    if (status == PM_HELD && holder != me && !frame->collected) {
        frame->collected = true;
        if (pm_collect_garbage() < 0) {
            return -1;
        }
        status = pm_ledger_claim(me, port, &holder);
    }
    if (status != PM_OK) {
        return 0;
    }
    frame->claimed = port;
    return 1;
}

static void unclaim(pm_coroutine *co)
{
    allocate_frame *frame = co->frame;
    if (frame->claimed) {
        pm_ledger_release(manager_of(co)->holder, frame->claimed);
        frame->claimed = 0;
    }
}

/* self.find_available_port(next, last), whichever attribute lookup finds. */
static pm_outcome find_next(pm_coroutine *co, PyObject **out)
{
    allocate_frame *frame = co->frame;
    PyObject *method =
        PyObject_GetAttr(co->vars[SELF], co->module_state->names.find_available_port);
    PyObject *awaitable =
        method ? PyObject_CallFunction(method, "ll", frame->next, (long)frame->service.last)
               : NULL;
    Py_XDECREF(method);
    return wait_for(co, awaitable, FOUND, out);
}

static pm_outcome begin_range(pm_coroutine *co, PyObject **out)
{
    allocate_frame *frame = co->frame;
    if (!frame->service.may_fall_back || !frame->service.has_range) {
        return pause_or_fail(co, out);
    }
    frame->next = frame->service.first;
    frame->fallback = 0;
    return find_next(co, out);
}

/* The search found nothing more. */
static pm_outcome end_range(pm_coroutine *co, PyObject **out)
{
    allocate_frame *frame = co->frame;
    if (frame->fallback) {
        int claimed = claim(co, frame->fallback);
        if (claimed) {
            return claimed < 0 ? PM_ERROR : grant(co, frame->fallback, false, out);
        }
    }
    return pause_or_fail(co, out);
}

static pm_outcome found(pm_coroutine *co, PyObject *received, PyObject **out)
{
    allocate_frame *frame = co->frame;
    long port;

    if (received == Py_None) {
        return end_range(co, out);
    }
    if (!pm_port_from(received, "what find_available_port() returned", 1, &port)) {
        return PM_ERROR;
    }
    bool wait_for_better = pm_port_is_blocked((uint16_t)port) && !frame->find_overridden;
    int claimed = wait_for_better ? 0 : claim(co, (uint16_t)port);
    if (claimed) {
        return claimed < 0 ? PM_ERROR : grant(co, (uint16_t)port, false, out);
    }
    if (wait_for_better && !frame->fallback) {
        frame->fallback = (uint16_t)port;
    }
    /* Somebody holds it, or a better one may follow. An override that does not move on has no
     * other port to give. */
    if (port < frame->next || port >= frame->service.last) {
        return end_range(co, out);
    }
    frame->next = port + 1;
    return find_next(co, out);
}

/* The default port, by its override if there is one, else by core alone. */
static pm_outcome ask_default(pm_coroutine *co, bool overridden, PyObject **out)
{
    allocate_frame *frame = co->frame;
    uint16_t port = frame->service.port;

    if (!overridden) {
        pm_allocation allocation;
        pm_status status = run_walk(co, false, &allocation);
        if (status == PM_HELD) {
            return PM_ERROR;
        }
        return status == PM_BUSY || status == PM_FORBIDDEN
                   ? begin_range(co, out)
                   : conclude(co, status, &allocation, out);
    }
    int claimed = claim(co, port);
    if (claimed <= 0) {
        return claimed < 0 ? PM_ERROR : begin_range(co, out);
    }
    return wait_for(co, pm_manager_ask(manager_of(co), port, NULL), ASKED_DEFAULT, out);
}

static pm_outcome asked_default(pm_coroutine *co, PyObject *received, PyObject **out)
{
    allocate_frame *frame = co->frame;
    int available = PyObject_IsTrue(received);

    if (available < 0) {
        return PM_ERROR;
    }
    if (available) {
        return grant(co, frame->claimed, false, out);
    }
    unclaim(co);
    return begin_range(co, out);
}

/* Any port: a free one is found first, then the override is asked about it. */
static pm_outcome ask_any(pm_coroutine *co, PyObject **out)
{
    allocate_frame *frame = co->frame;
    pm_allocation allocation;
    pm_status status = run_walk(co, false, &allocation);

    if (status != PM_OK) {
        return status == PM_HELD ? PM_ERROR : conclude(co, status, &allocation, out);
    }
    frame->claimed = allocation.port;
    return wait_for(co, pm_manager_ask(manager_of(co), allocation.port, NULL), ASKED_ANY, out);
}

static pm_outcome asked_any(pm_coroutine *co, PyObject *received, PyObject **out)
{
    allocate_frame *frame = co->frame;
    int available = PyObject_IsTrue(received);

    if (available) {
        return available < 0 ? PM_ERROR : grant(co, frame->claimed, false, out);
    }
    unclaim(co);
    return ++frame->asked < ASKED_ANY_MAX ? ask_any(co, out) : pause_or_fail(co, out);
}

static pm_outcome run_round(pm_coroutine *co, PyObject **out)
{
    allocate_frame *frame = co->frame;
    int probed = pm_manager_overrides_probe(manager_of(co));
    int searched = probed < 0 ? -1 : pm_manager_overrides_search(manager_of(co));

    if (searched < 0) {
        return PM_ERROR;
    }
    frame->find_overridden = searched;
    if (frame->service.port == 0) {
        frame->asked = 0;
        return probed ? ask_any(co, out) : core_round(co, out);
    }
    return probed || searched ? ask_default(co, probed, out) : core_round(co, out);
}

static pm_outcome allocate_port_step(pm_coroutine *co, PyObject *received, PyObject **out)
{
    PyObject *standing;

    if (co->state != BEGIN && !received) {
        return PM_ERROR;
    }
    switch (co->state) {
    case FOLLOWING:
        if (received != Py_None) {
            *out = Py_NewRef(received);
            return PM_DONE;
        }
        /* fall through */
    case BEGIN: {
        pm_outcome outcome = begin(co, out);
        return outcome == PM_AWAIT && co->state == ROUND ? run_round(co, out) : outcome;
    }
    case PAUSED: {
        int found_one = pm_hold_find(manager_of(co), co->vars[EXACT_NAME], &standing);
        if (found_one) { /* another thread's attempt was successful meanwhile */
            return found_one < 0 ? PM_ERROR : done(co, standing, out);
        }
        return run_round(co, out);
    }
    case ASKED_ANY:
        return asked_any(co, received, out);
    case ASKED_DEFAULT:
        return asked_default(co, received, out);
    default:
        return found(co, received, out);
    }
}

static void allocate_port_end(pm_coroutine *co)
{
    unclaim(co);
    settle_followers(co, Py_None);
}

const pm_coroutine_kind pm_allocate_port = {.step = allocate_port_step,
                                            .frame_size = sizeof(allocate_frame),
                                            .end = allocate_port_end};

/* ---- allocate_all_ports ------------------------------------------------------------------- */

enum { NAMES = 1, RESULTS };

typedef struct {
    Py_ssize_t next;
} all_frame;

/* The names of the services whose configuration says required, in order: a new list. */
static PyObject *required_services(pm_coroutine *co)
{
    pm_state *state = co->module_state;
    PyObject *configs = PyObject_GetAttr(co->vars[SELF], state->names.port_configs);
    PyObject *items = configs ? PyMapping_Items(configs) : NULL;
    PyObject *names = items ? PyList_New(0) : NULL;

    for (Py_ssize_t i = 0; names && i < PyList_Size(items); i++) {
        PyObject *item = PyList_GetItem(items, i);
        PyObject *required = PyObject_GetAttr(PyTuple_GetItem(item, 1), state->names.required);
        int wanted = required ? PyObject_IsTrue(required) : -1;
        Py_XDECREF(required);
        if (wanted < 0 || (wanted && PyList_Append(names, PyTuple_GetItem(item, 0)) < 0)) {
            Py_CLEAR(names);
        }
    }
    Py_XDECREF(items);
    Py_XDECREF(configs);
    return names;
}

static pm_outcome allocate_all_ports_step(pm_coroutine *co, PyObject *received, PyObject **out)
{
    all_frame *frame = co->frame;
    PyObject *method;

    if (!co->vars[NAMES]) {
        co->vars[NAMES] = required_services(co);
        co->vars[RESULTS] = co->vars[NAMES] ? PyDict_New() : NULL;
        if (!co->vars[RESULTS]) {
            return PM_ERROR;
        }
    } else if (!received || PyDict_SetItem(co->vars[RESULTS],
                                           PyList_GetItem(co->vars[NAMES], frame->next++),
                                           received) < 0) {
        return PM_ERROR;
    }
    if (frame->next == PyList_Size(co->vars[NAMES])) {
        *out = Py_NewRef(co->vars[RESULTS]);
        return PM_DONE;
    }
    method = PyObject_GetAttr(co->vars[SELF], co->module_state->names.allocate_port);
    if (!method) {
        return PM_ERROR;
    }
    *out = PyObject_CallFunctionObjArgs(method, PyList_GetItem(co->vars[NAMES], frame->next), NULL);
    Py_DECREF(method);
    return *out ? PM_AWAIT : PM_ERROR;
}

const pm_coroutine_kind pm_allocate_all_ports = {.step = allocate_all_ports_step,
                                                 .frame_size = sizeof(all_frame)};
