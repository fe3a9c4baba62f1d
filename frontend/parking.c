#include "frontend/parking.h"

#include <microhttpd.h>

void
parking_init(parking *p, struct MHD_Connection *conn)
{
    *p = (parking){.conn = conn};
    pthread_mutex_init(&p->lock, NULL);
}

void
parking_fini(parking *p)
{
    pthread_mutex_destroy(&p->lock);
}

bool
parking_park(parking *p)
{
    pthread_mutex_lock(&p->lock);
    const bool park = !p->woken && p->conn != NULL;
    p->woken = false;
    if (park) {
        p->parked = true;
        MHD_suspend_connection(p->conn);
    }
    pthread_mutex_unlock(&p->lock);
    return park;
}

void
parking_wake(parking *p)
{
    pthread_mutex_lock(&p->lock);
    if (p->parked) {
        p->parked = false;
        MHD_resume_connection(p->conn);
    } else {
        p->woken = true;
    }
    pthread_mutex_unlock(&p->lock);
}

void
parking_close(parking *p)
{
    pthread_mutex_lock(&p->lock);
    p->conn = NULL;
    p->parked = false;
    pthread_mutex_unlock(&p->lock);
}
