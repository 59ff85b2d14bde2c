/* Lines for the logger `portmanager`. */
#ifndef PM_LOG_H
#define PM_LOG_H

#include "ext/module.h"

enum { PM_DEBUG = 10, PM_INFO = 20, PM_WARNING = 30, PM_LOG_ERROR = 40 };

/* Logs `[PortManager] ` and the text, formatted as by PyUnicode_FromFormat, if the level is
 * enabled. A program that never imported logging cannot have asked for debug and info, so those
 * do not import it. What a handler raises is reported as unraisable, and Ctrl-C comes again;
 * the exception that is set stays set. */
void pm_log(pm_state *state, int level, const char *format, ...);

/* _log(level: int, text: str) -> None */
PyObject *pm_log_text(PyObject *module, PyObject *arguments);

/* Logs what the ledger of reservations has to say for the first time. */
void pm_log_ledger(pm_state *state);

#endif
