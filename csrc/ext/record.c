#include "ext/record.h"

#include <stdbool.h>

#include "ext/function.h"

typedef enum {
    STR,
    INT,
    FLOAT,
    BOOL,
    OPTIONAL_STR,
    OPTIONAL_INT,
    OPTIONAL_RANGE,
    DATETIME,
    OPTIONAL_DATETIME
} field_type;

typedef enum { REQUIRED, NONE, FALSE, TRUE, TEN, TENTH } field_default;

typedef struct {
    const char *name;
    field_type type;
    field_default value;
} field;

typedef struct {
    const char *name;
    const char *doc;
    field fields[PM_FIELDS_MAX + 1]; /* a NULL name ends them */
} record_spec;

#define PORT_CONFIG_FIELDS(X)                                                                      \
    X(service, STR, REQUIRED)                                                                      \
    X(default_port, INT, REQUIRED)                                                                 \
    X(range, OPTIONAL_RANGE, NONE)                                                                 \
    X(description, OPTIONAL_STR, NONE)                                                             \
    X(required, BOOL, FALSE)

#define PORT_ALLOCATION_FIELDS(X)                                                                  \
    X(service, STR, REQUIRED)                                                                      \
    X(requested_port, INT, REQUIRED)                                                               \
    X(allocated_port, INT, REQUIRED)                                                               \
    X(status, STR, REQUIRED)                                                                       \
    X(message, OPTIONAL_STR, NONE)

#define PORT_STATUS_FIELDS(X)                                                                      \
    X(port, INT, REQUIRED)                                                                         \
    X(service, STR, REQUIRED)                                                                      \
    X(in_use, BOOL, REQUIRED)                                                                      \
    X(pid, OPTIONAL_INT, NONE)                                                                     \
    X(allocated_at, OPTIONAL_DATETIME, NONE)

#define PORT_RESERVATION_FIELDS(X)                                                                 \
    X(port, INT, REQUIRED)                                                                         \
    X(service, OPTIONAL_STR, REQUIRED)                                                             \
    X(pid, OPTIONAL_INT, REQUIRED)                                                                 \
    X(since, DATETIME, REQUIRED)

#define PORT_MANAGER_CONFIG_FIELDS(X)                                                              \
    X(port_config_path, OPTIONAL_STR, NONE)                                                        \
    X(enable_auto_allocation, BOOL, TRUE)                                                          \
    X(max_retries, INT, TEN)                                                                       \
    X(retry_delay, FLOAT, TENTH)

#define FIELD(name, type, value) {#name, type, value},
#define FIELD_NAME(name, type, value) #name,
#define FIELD_REQUIRED(name, type, value) +((value) == REQUIRED)

static const record_spec records[PM_RECORDS] = {
    [PM_RECORD_PORT_CONFIG] =
        {"PortConfig",
                                 "Configuration of a service's port.\n\n"
         "service: the service's name.\n"
         "default_port: the preferred port, 1..65535; 0 means any free port.\n"
         "range: (first, last), both included: where to look when the default is taken.\n"
         "description: free text.\n"
         "required: does allocate_all_ports() allocate it?",                                   {PORT_CONFIG_FIELDS(FIELD)}        },
    [PM_RECORD_PORT_ALLOCATION] =
        {"PortAllocation",
                                 "Result of allocating a port.\n\n"
         "service: the service's name.\n"
         "requested_port: the configured default port.\n"
         "allocated_port: the port to use; 0 unless status is 'allocated'.\n"
         "status: 'allocated', 'in_use' or 'error'.\n"
         "message: the same for people.",                                                      {PORT_ALLOCATION_FIELDS(FIELD)}    },
    [PM_RECORD_PORT_STATUS] = {"PortStatus",
                                 "Status of an allocated port.\n\n"
                               "port: the port.\n"
                               "service: the service's name.\n"
                               "in_use: does something listen on it?\n"
                               "pid: the process that does, None where that is not known.\n"
                               "allocated_at: when it was allocated, a naive local datetime.", {PORT_STATUS_FIELDS(FIELD)}        },
    [PM_RECORD_PORT_RESERVATION] =
        {"PortReservation",
                                 "A port that somebody on this machine holds.\n\n"
         "port: the port.\n"
         "service: what it is held for; None for one without a name.\n"
         "pid: the process that holds it, None where that is not known.\n"
         "since: when it was reserved, a naive local datetime.",                               {PORT_RESERVATION_FIELDS(FIELD)}   },
    [PM_RECORD_PORT_MANAGER_CONFIG] =
        {"PortManagerConfig",
                                 "Configuration of a PortManager.\n\n"
         "port_config_path: the JSON file that is loaded at construction and saved by cleanup().\n"
         "enable_auto_allocation: may a service get another port of its range?\n"
         "max_retries: how many more rounds, when every port was busy.\n"
         "retry_delay: the pause between two rounds, in seconds.",                             {PORT_MANAGER_CONFIG_FIELDS(FIELD)}},
};

/* ---- making the field's objects ----------------------------------------------------------- */

static PyObject *make_default(field_default value)
{
    switch (value) {
    case REQUIRED: /* never read */
    case NONE:
        return Py_NewRef(Py_None);
    case FALSE:
        return Py_NewRef(Py_False);
    case TRUE:
        return Py_NewRef(Py_True);
    case TEN:
        return PyLong_FromLong(10);
    case TENTH:
        return PyFloat_FromDouble(0.1);
    }
    return NULL;
}

/* `type | None`, the reference to `type` taken over. */
static PyObject *optional(PyObject *type)
{
    PyObject *either = type ? PyNumber_Or(type, Py_None) : NULL;
    Py_XDECREF(type);
    return either;
}

static PyObject *make_range_type(void)
{
    PyObject *items = PyTuple_Pack(2, &PyLong_Type, &PyLong_Type), *type;
    type = items ? Py_GenericAlias((PyObject *)&PyTuple_Type, items) : NULL;
    Py_XDECREF(items);
    return type;
}

static PyObject *make_annotation(field_type type)
{
    switch (type) {
    case STR:
        return Py_NewRef((PyObject *)&PyUnicode_Type);
    case INT:
        return Py_NewRef((PyObject *)&PyLong_Type);
    case FLOAT:
        return Py_NewRef((PyObject *)&PyFloat_Type);
    case BOOL:
        return Py_NewRef((PyObject *)&PyBool_Type);
    case OPTIONAL_STR:
        return optional(Py_NewRef((PyObject *)&PyUnicode_Type));
    case OPTIONAL_INT:
        return optional(Py_NewRef((PyObject *)&PyLong_Type));
    case OPTIONAL_RANGE:
        return optional(make_range_type());
    case DATETIME:
        return PyUnicode_FromString("__import__('datetime').datetime");
    case OPTIONAL_DATETIME:
        /* get_type_hints() evaluates it. The type itself would import datetime, which not every
         * subinterpreter of CPython 3.12 survives. */
        return PyUnicode_FromString("__import__('datetime').datetime | None");
    }
    return NULL;
}

/* ---- the three methods -------------------------------------------------------------------- */

static PyObject *record_init(pm_state *state, const pm_function_spec *spec,
                             PyObject *const *arguments)
{
    const record_spec *record = spec->data;
    PyObject *defaults = state->record_defaults[record - records];
    PyObject *names = state->record_fields[record - records];

    for (Py_ssize_t i = 0; i < PyTuple_Size(names); i++) {
        PyObject *value = arguments[i + 1] ? arguments[i + 1] : PyTuple_GetItem(defaults, i);
        if (PyObject_SetAttr(arguments[0], PyTuple_GetItem(names, i), value) < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

/* `service='web', default_port=5050`; a new reference. */
static PyObject *format_fields(PyObject *self, PyObject *names)
{
    PyObject *parts = PyList_New(0), *separator = NULL, *text = NULL;

    for (Py_ssize_t i = 0; parts && i < PyTuple_Size(names); i++) {
        PyObject *name = PyTuple_GetItem(names, i);
        PyObject *value = PyObject_GetAttr(self, name);
        PyObject *part = value ? PyUnicode_FromFormat("%U=%R", name, value) : NULL;
        Py_XDECREF(value);
        if (!part || PyList_Append(parts, part) < 0) {
            Py_CLEAR(parts);
        }
        Py_XDECREF(part);
    }
    separator = PyUnicode_FromString(", ");
    if (parts && separator) {
        text = PyUnicode_Join(separator, parts);
    }
    Py_XDECREF(separator);
    Py_XDECREF(parts);
    return text;
}

static PyObject *record_repr(pm_state *state, const pm_function_spec *spec,
                             PyObject *const *arguments)
{
    const record_spec *record = spec->data;
    PyObject *self = arguments[0], *class = NULL, *name = NULL, *fields = NULL, *text = NULL;
    int entered = Py_ReprEnter(self);

    if (entered != 0) {
        return entered > 0 ? PyUnicode_FromString("...") : NULL;
    }
    class = PyObject_GetAttr(self, state->dunders.class);
    name = class ? PyObject_GetAttrString(class, "__qualname__") : NULL;
    fields = name ? format_fields(self, state->record_fields[record - records]) : NULL;
    text = fields ? PyUnicode_FromFormat("%S(%U)", name, fields) : NULL;
    Py_XDECREF(class);
    Py_XDECREF(name);
    Py_XDECREF(fields);
    Py_ReprLeave(self);
    return text;
}

/* Are two fields equal? dataclasses compared tuples before 3.13, for which what is identical is
 * equal; since then each field is compared by itself. */
static int field_equal(pm_state *state, PyObject *self, PyObject *other, PyObject *name)
{
    PyObject *left = PyObject_GetAttr(self, name), *right, *answer;
    int equal = -1;

    right = left ? PyObject_GetAttr(other, name) : NULL;
    if (right && state->minor < 13 && left == right) {
        equal = 1;
    } else if (right) {
        answer = PyObject_RichCompare(left, right, Py_EQ);
        equal = answer ? PyObject_IsTrue(answer) : -1;
        Py_XDECREF(answer);
    }
    Py_XDECREF(left);
    Py_XDECREF(right);
    return equal;
}

static PyObject *record_eq(pm_state *state, const pm_function_spec *spec,
                           PyObject *const *arguments)
{
    const record_spec *record = spec->data;
    PyObject *names = state->record_fields[record - records];
    PyObject *self = arguments[0], *other = arguments[1];
    PyObject *class = PyObject_GetAttr(self, state->dunders.class);
    PyObject *other_class = class ? PyObject_GetAttr(other, state->dunders.class) : NULL;
    bool same = class && class == other_class, failed = !other_class;
    int equal = 1;

    Py_XDECREF(class);
    Py_XDECREF(other_class);
    if (failed) {
        return NULL;
    }
    if (!same) {
        return Py_NewRef(Py_NotImplemented);
    }
    for (Py_ssize_t i = 0; equal == 1 && self != other && i < PyTuple_Size(names); i++) {
        equal = field_equal(state, self, other, PyTuple_GetItem(names, i));
    }
    return equal < 0 ? NULL : PyBool_FromLong(equal);
}

/* ---- the classes -------------------------------------------------------------------------- */

/* The pm_functions of each class. */
#define METHODS(kind, name, fields)                                                                \
    {                                                                                              \
        {name,                                                                                     \
         "__init__", {"self", fields(FIELD_NAME)},                                                                     \
         1 fields(FIELD_REQUIRED),                                                                 \
         record_init, NULL,                                                                                             \
         &records[kind]},                                                                          \
        {name, "__repr__", {"self"}, 1, record_repr, NULL, &records[kind]},                        \
        {name, "__eq__", {"self", "other"}, 2, record_eq, NULL, &records[kind]},                   \
        {0},                                                                                       \
}

static const pm_function_spec methods[PM_RECORDS][4] = {
    [PM_RECORD_PORT_CONFIG] = METHODS(PM_RECORD_PORT_CONFIG, "PortConfig", PORT_CONFIG_FIELDS),
    [PM_RECORD_PORT_ALLOCATION] =
        METHODS(PM_RECORD_PORT_ALLOCATION, "PortAllocation", PORT_ALLOCATION_FIELDS),
    [PM_RECORD_PORT_STATUS] = METHODS(PM_RECORD_PORT_STATUS, "PortStatus", PORT_STATUS_FIELDS),
    [PM_RECORD_PORT_MANAGER_CONFIG] =
        METHODS(PM_RECORD_PORT_MANAGER_CONFIG, "PortManagerConfig", PORT_MANAGER_CONFIG_FIELDS),
    [PM_RECORD_PORT_RESERVATION] =
        METHODS(PM_RECORD_PORT_RESERVATION, "PortReservation", PORT_RESERVATION_FIELDS),
};

/* The three things that a class knows of its fields: their names (as __match_args__ too), their
 * defaults, and their annotations. */
static int describe_fields(pm_state *state, pm_record_kind kind)
{
    PyObject *class = (PyObject *)state->record_types[kind], *annotations = PyDict_New();
    const field *fields = records[kind].fields;
    Py_ssize_t count = 0;
    int result = -1;

    while (count < PM_FIELDS_MAX && fields[count].name) {
        count++;
    }
    state->record_fields[kind] = PyTuple_New(count);
    state->record_defaults[kind] = PyTuple_New(count);
    if (!annotations || !state->record_fields[kind] || !state->record_defaults[kind]) {
        goto done;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyUnicode_InternFromString(fields[i].name);
        PyObject *value = make_default(fields[i].value);
        PyObject *annotation = make_annotation(fields[i].type);
        bool failed = !name || !value || !annotation ||
                      PyDict_SetItem(annotations, name, annotation) < 0 ||
                      (fields[i].value != REQUIRED && PyObject_SetAttr(class, name, value) < 0);
        Py_XDECREF(annotation);
        /* The tuples take the references over, NULL too. */
        if (PyTuple_SetItem(state->record_fields[kind], i, name) < 0 ||
            PyTuple_SetItem(state->record_defaults[kind], i, value) < 0 || failed) {
            goto done;
        }
    }
    if (PyObject_SetAttrString(class, "__annotations__", annotations) < 0 ||
        PyObject_SetAttrString(class, "__match_args__", state->record_fields[kind]) < 0) {
        goto done;
    }
    result = 0;
done:
    Py_XDECREF(annotations);
    return result;
}

/* type(name, (), {...}): an ordinary class, laid out by the interpreter itself. */
static PyObject *new_class(const record_spec *record)
{
    return PyObject_CallFunction((PyObject *)&PyType_Type, "s(){sssssO}", record->name,
                                 "__module__", "portmanager", "__doc__", record->doc, "__hash__",
                                 Py_None);
}

static int make_class(PyObject *module, pm_record_kind kind)
{
    /* copy.replace() came with CPython 3.13. */
    static const char *const declared[] = {"__dataclass_fields__", "__dataclass_params__",
                                           "__replace__"};
    pm_state *state = pm_state_of_module(module);
    const char *name = records[kind].name;
    PyObject *class = new_class(&records[kind]);

    if (!class) {
        return -1;
    }
    state->record_types[kind] = (PyTypeObject *)class;
    if (describe_fields(state, kind) < 0 || pm_functions_add(module, class, methods[kind]) < 0) {
        return -1;
    }
    for (size_t i = 0; i < (state->minor < 13 ? 2 : 3); i++) {
        if (pm_declared_add(module, class, name, declared[i]) < 0) {
            return -1;
        }
    }
    return PyModule_AddObjectRef(module, name, class);
}

int pm_records_init(PyObject *module)
{
    for (int kind = 0; kind < PM_RECORDS; kind++) {
        if (make_class(module, (pm_record_kind)kind) < 0) {
            return -1;
        }
    }
    return 0;
}

PyObject *pm_record_new(pm_state *state, pm_record_kind kind, PyObject *const *values)
{
    PyObject *names = state->record_fields[kind];
    PyObject *self = PyType_GenericAlloc(state->record_types[kind], 0);

    for (Py_ssize_t i = 0; self && i < PyTuple_Size(names); i++) {
        if (PyObject_SetAttr(self, PyTuple_GetItem(names, i), values[i]) < 0) {
            Py_CLEAR(self);
        }
    }
    return self;
}

PyObject *pm_record_new_default(pm_state *state, pm_record_kind kind)
{
    PyObject *defaults = state->record_defaults[kind], *values[PM_FIELDS_MAX] = {NULL};

    for (Py_ssize_t i = 0; i < PyTuple_Size(defaults); i++) {
        values[i] = PyTuple_GetItem(defaults, i);
    }
    return pm_record_new(state, kind, values);
}

PyObject *pm_record_copy(pm_state *state, pm_record_kind kind, PyObject *record)
{
    PyObject *module, *fields, *own, *copy = NULL;

    if (Py_TYPE(record) != state->record_types[kind]) {
        module = PyImport_ImportModule("copy");
        copy = module ? PyObject_CallMethod(module, "copy", "O", record) : NULL;
        Py_XDECREF(module);
        return copy;
    }
    fields = PyObject_GetAttrString(record, "__dict__");
    own = fields ? PyDict_Copy(fields) : NULL;
    if (own) {
        copy = PyType_GenericAlloc(state->record_types[kind], 0);
    }
    if (copy && PyObject_SetAttrString(copy, "__dict__", own) < 0) {
        Py_CLEAR(copy);
    }
    Py_XDECREF(own);
    Py_XDECREF(fields);
    return copy;
}
