/* What a call of core may answer. A platform's errno is told apart once, in
 * pm_status_of_errno; PM_EXHAUSTED and PM_FAILED leave errno set for the caller's message. */
#ifndef PM_STATUS_H
#define PM_STATUS_H

typedef enum {
    PM_OK = 0,
    PM_AGAIN,       /* the budget of this call is used up: call again */
    PM_BUSY,        /* EADDRINUSE: a socket has the port */
    PM_HELD,        /* a reservation in the ledger has the port */
    PM_FORBIDDEN,   /* EACCES, EPERM: the port needs a privilege */
    PM_NOT_LOCAL,   /* EADDRNOTAVAIL: the address is not one of this machine's */
    PM_UNSUPPORTED, /* EAFNOSUPPORT and kin: no such address family on this machine */
    PM_UNRESOLVED,  /* the host is a name, or a name that has no address */
    PM_EXHAUSTED,   /* EMFILE, ENFILE, ENOBUFS, ENOMEM: the answer is not known */
    PM_FAILED,      /* anything else: the answer is not known */
} pm_status;

/* The status that an errno of socket, setsockopt, bind or open stands for. */
pm_status pm_status_of_errno(int error);

#endif
