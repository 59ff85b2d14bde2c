/* allocate_port.
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
 * FOLLOWING: another task of the loop leads, see attempt.h. */
#include <errno.h>

#include "core/allocate.h"
#include "ext/attempt.h"
#include "ext/garbage.h"
#include "ext/holds.h"
#include "ext/log.h"
#include "ext/loop.h"
#include "ext/values.h"

enum { WITH_GIL = 32, WITHOUT_GIL = 8192 };

enum { BEGIN, FOLLOWING, ROUND, PAUSED, ASKED_ANY, ASKED_DEFAULT, FOUND };

/* Of so many free ports an override is asked in a round, when any port will do. */
enum { ASKED_ANY_MAX = 100 };

/* ---- beginning and waiting ---------------------------------------------------------------- */

/* Looks the service up: PM_DONE with what is known already, PM_AWAIT to follow another task, or
 * ROUND to come. */
static pm_outcome begin(pm_coroutine *co, PyObject **out)
{
    pm_manager *manager = pm_attempt_manager(co);
    pm_state *state = co->module_state;
    pm_attempt *frame = co->frame;
    PyObject *entries = pm_manager_allocated_ports(manager), *entry, *configs = NULL;
    PyObject *config = NULL, *message = NULL;
    pm_outcome outcome = PM_ERROR;
    long port;
    int found;

    if (!entries) {
        return PM_ERROR;
    }
    found = pm_mapping_get(entries, co->vars[PM_ATTEMPT_NAME], &entry);
    if (found < 0) {
        goto done;
    }
    if (found) {
        found = pm_allocated_port(state, entry, &port);
        if (found == 1) {
            *out = entry;
            outcome = PM_DONE;
            goto done;
        }
        Py_DECREF(entry);
        if (found < 0) {
            goto done;
        }
    }
    configs = PyObject_GetAttr((PyObject *)manager, state->names.port_configs);
    found = configs ? pm_mapping_get(configs, co->vars[PM_ATTEMPT_NAME], &config) : -1;
    if (found < 0) {
        goto done;
    }
    if (!found) {
        message = PyUnicode_FromFormat("No port configuration found for service: %S",
                                       co->vars[PM_ATTEMPT_NAME]);
        outcome = pm_attempt_fail(co, state->statuses.error, message, out);
        goto done;
    }
    found = pm_service_read(manager, co->vars[PM_ATTEMPT_NAME], config, &frame->service, &message);
    pm_set(&co->vars[PM_ATTEMPT_REQUESTED], frame->service.default_port);
    frame->service.default_port = NULL;
    if (found == 0) {
        outcome = pm_attempt_fail(co, state->statuses.error, message, out);
    } else if (found > 0) {
        /* A subclass of str could run Python code while it is compared: ours is exact. */
        pm_set(&co->vars[PM_ATTEMPT_EXACT_NAME], PyUnicode_FromObject(co->vars[PM_ATTEMPT_NAME]));
        if (co->vars[PM_ATTEMPT_EXACT_NAME]) {
            pm_set(&co->vars[PM_ATTEMPT_LABEL], pm_service_label(co->vars[PM_ATTEMPT_EXACT_NAME]));
        }
        found = co->vars[PM_ATTEMPT_LABEL] ? pm_attempt_follow(co, out) : -1;
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
    pm_attempt *frame = co->frame;

    if (frame->retries > 0) {
        frame->retries--;
        return pm_attempt_wait(co, pm_loop_sleep(co->module_state, frame->service.retry_delay),
                               PAUSED, out);
    }
    return pm_attempt_fail_busy(co, out);
}

/* ---- a round of core ---------------------------------------------------------------------- */

static pm_outcome conclude(pm_coroutine *co, pm_status status, const pm_allocation *allocation,
                           PyObject **out)
{
    pm_attempt *frame = co->frame;

    frame->default_forbidden = allocation->default_forbidden;
    switch (status) {
    case PM_OK:
        if (allocation->ephemeral) {
            pm_log(co->module_state, PM_WARNING,
                   "Service %S: only the ephemeral range had a free port; an outgoing connection "
                   "may take port %d while nothing listens on it",
                   co->vars[PM_ATTEMPT_NAME], (int)allocation->port);
        }
        return pm_attempt_grant(co, allocation->port, out);
    case PM_BUSY:
        return pause_or_fail(co, out);
    case PM_FORBIDDEN:
        return pm_attempt_fail_forbidden(co, out);
    default:
        return pm_attempt_fail_unknown(co, out);
    }
}

/* Runs a walk to its end; PM_HELD with an exception set if collecting garbage failed. */
static pm_status walk(pm_coroutine *co, pm_allocation *allocation)
{
    pm_attempt *frame = co->frame;
    pm_status status;

    /* System calls that never block: the GIL stays for as long as a walk usually takes. */
    status = pm_allocation_run(allocation, WITH_GIL, false);
    while (status == PM_AGAIN || status == PM_HELD) {
        if (status == PM_HELD) {
            if (pm_collect_garbage() < 0) {
                return PM_HELD;
            }
            frame->collected = allocation->request.refuse_held = true;
            status = pm_allocation_run(allocation, WITH_GIL, false);
            continue;
        }
        Py_BEGIN_ALLOW_THREADS status = pm_allocation_run(allocation, WITHOUT_GIL, true);
        Py_END_ALLOW_THREADS
    }
    return status;
}

static pm_request make_request(pm_coroutine *co, bool with_range)
{
    pm_attempt *frame = co->frame;
    const pm_service *service = &frame->service;

    return (pm_request){
        .holder = pm_attempt_manager(co)->holder,
        .name = pm_attempt_name(co),
        .default_port = service->port,
        .has_range = with_range && service->may_fall_back && service->has_range,
        .first = service->first,
        .last = service->last,
        .refuse_held = frame->collected,
    };
}

static pm_status run_walk(pm_coroutine *co, bool with_range, pm_allocation *allocation)
{
    pm_request request = make_request(co, with_range);
    pm_status status = pm_allocation_begin(allocation, &request);

    if (status == PM_OK) {
        status = walk(co, allocation);
        pm_allocation_end(allocation);
    }
    pm_log_ledger(co->module_state);
    return status;
}

/* A port that an ancestor process holds for the service, about which no override is asked.
 * PM_AWAIT: there is none. */
static pm_outcome borrow(pm_coroutine *co, PyObject **out)
{
    pm_allocation allocation;
    pm_request request = make_request(co, true);
    pm_status status = pm_allocation_begin(&allocation, &request);

    if (status == PM_OK) {
        status = pm_allocation_run(&allocation, 0, false); /* that comes before any candidate */
        pm_allocation_end(&allocation);
    }
    return status == PM_OK ? pm_attempt_grant(co, allocation.port, out) : PM_AWAIT;
}

static pm_outcome core_round(pm_coroutine *co, PyObject **out)
{
    pm_allocation allocation;
    pm_status status = run_walk(co, true, &allocation);
    return status == PM_HELD ? PM_ERROR : conclude(co, status, &allocation, out);
}

/* ---- a round of overrides ----------------------------------------------------------------- */

/* Claims a port for the attempt. PM_HELD: somebody has it; PM_FAILED: with an exception set. */
static pm_status claim(pm_coroutine *co, uint16_t port)
{
    pm_attempt *frame = co->frame;
    pm_holder me = pm_attempt_manager(co)->holder;
    pm_name name = pm_attempt_name(co);
    pm_claim claimed = {PM_NOBODY, false};
    pm_status status = pm_ledger_check();

    if (status == PM_OK) {
        status = pm_ledger_claim(me, port, &name, &claimed);
    }
    if (status == PM_HELD && claimed.holder != me && claimed.holder != PM_NOBODY &&
        !frame->collected) {
        frame->collected = true;
        if (pm_collect_garbage() < 0) {
            return PM_FAILED;
        }
        status = pm_ledger_claim(me, port, &name, &claimed);
    }
    int error = errno;
    pm_log_ledger(co->module_state);
    errno = error;
    if (status == PM_OK) {
        pm_attempt_note_claim(co, port);
    }
    return status;
}

/* After a claim(), unless it said PM_HELD. */
static pm_outcome conclude_claim(pm_coroutine *co, pm_status status, uint16_t port, PyObject **out)
{
    switch (status) {
    case PM_OK:
        return pm_attempt_grant(co, port, out);
    case PM_FAILED:
        return PM_ERROR;
    default:
        return pm_attempt_fail_unknown(co, out);
    }
}

/* self.find_available_port(next, last), whichever attribute lookup finds. */
static pm_outcome find_next(pm_coroutine *co, PyObject **out)
{
    pm_attempt *frame = co->frame;
    PyObject *method =
        PyObject_GetAttr(co->vars[PM_ATTEMPT_MANAGER], co->module_state->names.find_available_port);
    PyObject *awaitable =
        method ? PyObject_CallFunction(method, "ll", frame->next, (long)frame->service.last) : NULL;
    Py_XDECREF(method);
    return pm_attempt_wait(co, awaitable, FOUND, out);
}

/* An override has no other port. Where the default needs a privilege, waiting does not help. */
static pm_outcome end_asking(pm_coroutine *co, PyObject **out)
{
    const pm_attempt *frame = co->frame;
    return frame->default_forbidden ? pm_attempt_fail_forbidden(co, out) : pause_or_fail(co, out);
}

static pm_outcome begin_range(pm_coroutine *co, PyObject **out)
{
    pm_attempt *frame = co->frame;
    if (!frame->service.may_fall_back || !frame->service.has_range) {
        return end_asking(co, out);
    }
    frame->next = frame->service.first;
    frame->fallback = 0;
    return find_next(co, out);
}

/* The search found nothing more. */
static pm_outcome end_range(pm_coroutine *co, PyObject **out)
{
    pm_attempt *frame = co->frame;
    if (frame->fallback) {
        pm_status status = claim(co, frame->fallback);
        if (status != PM_HELD) {
            return conclude_claim(co, status, frame->fallback, out);
        }
    }
    return end_asking(co, out);
}

static pm_outcome found(pm_coroutine *co, PyObject *received, PyObject **out)
{
    pm_attempt *frame = co->frame;
    long port;

    if (received == Py_None) {
        return end_range(co, out);
    }
    if (!pm_port_from(received, "what find_available_port() returned", 1, &port)) {
        return PM_ERROR;
    }
    bool wait_for_better = pm_port_is_blocked((uint16_t)port) && !frame->find_overridden;
    pm_status status = wait_for_better ? PM_HELD : claim(co, (uint16_t)port);
    if (status != PM_HELD) {
        return conclude_claim(co, status, (uint16_t)port, out);
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
    pm_attempt *frame = co->frame;
    uint16_t port = frame->service.port;

    if (!overridden) {
        pm_allocation allocation;
        pm_status status = run_walk(co, false, &allocation);
        if (status == PM_HELD) {
            return PM_ERROR;
        }
        frame->default_forbidden = status == PM_FORBIDDEN;
        return status == PM_BUSY || status == PM_FORBIDDEN ? begin_range(co, out)
                                                           : conclude(co, status, &allocation, out);
    }
    pm_status status = claim(co, port);
    if (status != PM_OK) {
        return status == PM_HELD ? begin_range(co, out) : conclude_claim(co, status, port, out);
    }
    return pm_attempt_wait(co, pm_manager_ask(pm_attempt_manager(co), port, NULL), ASKED_DEFAULT,
                           out);
}

static pm_outcome asked_default(pm_coroutine *co, PyObject *received, PyObject **out)
{
    pm_attempt *frame = co->frame;
    int available = PyObject_IsTrue(received);

    if (available < 0) {
        return PM_ERROR;
    }
    if (available) {
        return pm_attempt_grant(co, frame->claimed, out);
    }
    pm_attempt_unclaim(co);
    return begin_range(co, out);
}

/* Any port: a free one is found first, then the override is asked about it. */
static pm_outcome ask_any(pm_coroutine *co, PyObject **out)
{
    pm_allocation allocation;
    pm_status status = run_walk(co, false, &allocation);

    if (status != PM_OK) {
        return status == PM_HELD ? PM_ERROR : conclude(co, status, &allocation, out);
    }
    pm_attempt_note_claim(co, allocation.port);
    return pm_attempt_wait(co, pm_manager_ask(pm_attempt_manager(co), allocation.port, NULL),
                           ASKED_ANY, out);
}

static pm_outcome asked_any(pm_coroutine *co, PyObject *received, PyObject **out)
{
    pm_attempt *frame = co->frame;
    int available = PyObject_IsTrue(received);

    if (available) {
        return available < 0 ? PM_ERROR : pm_attempt_grant(co, frame->claimed, out);
    }
    pm_attempt_unclaim(co);
    return ++frame->asked < ASKED_ANY_MAX ? ask_any(co, out) : pause_or_fail(co, out);
}

static pm_outcome run_round(pm_coroutine *co, PyObject **out)
{
    pm_attempt *frame = co->frame;
    int probed = pm_manager_overrides_probe(pm_attempt_manager(co));
    int searched = probed < 0 ? -1 : pm_manager_overrides_search(pm_attempt_manager(co));

    if (searched < 0) {
        return PM_ERROR;
    }
    frame->find_overridden = searched;
    if (probed || searched) {
        pm_outcome outcome = borrow(co, out);
        if (outcome != PM_AWAIT) {
            return outcome;
        }
    }
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
        int found_one =
            pm_hold_find(pm_attempt_manager(co), co->vars[PM_ATTEMPT_EXACT_NAME], &standing);
        if (found_one) { /* another thread's attempt was successful meanwhile */
            return found_one < 0 ? PM_ERROR : pm_attempt_done(co, standing, out);
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

const pm_coroutine_kind pm_allocate_port = {
    .step = allocate_port_step, .frame_size = sizeof(pm_attempt), .end = pm_attempt_end};
