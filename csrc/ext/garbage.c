#include "ext/garbage.h"

#include "ext/python.h"

int pm_collect_garbage(void)
{
    PyObject *gc = PyImport_ImportModule("gc"), *found;
    found = gc ? PyObject_CallMethod(gc, "collect", NULL) : NULL;
    Py_XDECREF(gc);
    Py_XDECREF(found);
    return found ? 0 : -1;
}
