/* parking: suspends a connection until there is something to do for it, without losing a wake-up.
 *
 * The connection's thread finds nothing to send and parks; another thread produces something and
 * wakes.  A wake that comes first is remembered, and the next park() returns at once instead.
 *
 * Threads: park() and close() inside libmicrohttpd's callbacks for that connection; wake() from any
 * thread.  libmicrohttpd's own locks are taken under `lock`, never the other way round.
 */
#ifndef MOE_FRONTEND_PARKING_H
#define MOE_FRONTEND_PARKING_H

#include <pthread.h>
#include <stdbool.h>

struct MHD_Connection;

typedef struct parking {
    pthread_mutex_t lock;        /* guards what follows */
    struct MHD_Connection *conn; /* NULL: closed */
    bool parked;
    bool woken; /* since the last park() */
} parking;

void parking_init(parking *p, struct MHD_Connection *conn);
void parking_fini(parking *p);

/* True: the connection is suspended, return to libmicrohttpd.  False: woken meanwhile, look again.
 */
bool parking_park(parking *p);
void parking_wake(parking *p);
/* The connection is about to go away: wake() does nothing from now on. */
void parking_close(parking *p);

#endif
