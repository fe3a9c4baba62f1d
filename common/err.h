/* err: one enum for every result, and a buffer for the sentence that explains it.
 *
 * A function that can fail for a reason its caller can't know (a file, a peer, a user's request)
 * takes an errbuf, owned by the caller, and writes one line naming what is wrong and where.  The
 * code says which kind of trouble it is; the text is for people.
 *
 * Threads: no shared state.
 */
#ifndef MOE_COMMON_ERR_H
#define MOE_COMMON_ERR_H

#include <stddef.h>

#define MOE_ERR_TEXT_MAX 512

typedef enum moe_err {
    MOE_OK = 0,
    MOE_EINVAL,       /* input from a file, peer or user breaks a rule */
    MOE_ERANGE,       /* a value is outside a named limit */
    MOE_ENOMEM,       /* out of memory, or of a bounded resource's memory */
    MOE_EIO,          /* the operating system refused: open, read, map, socket */
    MOE_ENOTFOUND,    /* a file, tensor, worker or slot does not exist */
    MOE_EMISMATCH,    /* versions, fingerprints or numeric classes differ */
    MOE_ETIMEDOUT,    /* a deadline passed */
    MOE_ECLOSED,      /* the peer is gone, or this object is stopping */
    MOE_EBUSY,        /* a bounded queue is full */
    MOE_EUNSUPPORTED, /* valid, but not something this build does */
    MOE_EPERM,        /* not authenticated, or not allowed */
    MOE_EINTERNAL,    /* a peer reported a fault of its own */
    MOE_ERR_COUNT
} moe_err;

typedef struct errbuf {
    char text[MOE_ERR_TEXT_MAX];
} errbuf;

/* Short stable name ("EINVAL"); "E?" for a value outside the enum.  Static storage. */
const char *moe_err_name(moe_err err);

/* Write the explanation (cut to MOE_ERR_TEXT_MAX - 1 bytes) and return code, so that
 * `return err_set(eb, MOE_EINVAL, "%s: ...", path);` is one statement.  eb may be NULL; the
 * arguments must not point into it. */
moe_err err_set(errbuf *eb, moe_err code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Put "context: " in front of the text already in eb, and return code unchanged. */
moe_err err_wrap(errbuf *eb, moe_err code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
