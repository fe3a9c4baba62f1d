#include "proto/rpc_nng.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"

void
rpc_nng_mend(void)
{
}

ssize_t
sendmsg(int fd, const struct msghdr *message, int flags)
{
    const ssize_t n = syscall(SYS_sendmsg, fd, message, flags);
    if (n < 0 && errno == EPIPE && flags == MSG_NOSIGNAL) errno = ECONNRESET;
    return n;
}

/* Shared by the caller and the thread that closes; the last to leave frees it. */
typedef struct closing {
    nng_socket socket;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done, given_up;
} closing;

static void
closing_free(closing *c)
{
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static void *
close_main(void *arg)
{
    closing *c = arg;
    nng_close(c->socket);
    pthread_mutex_lock(&c->lock);
    c->done = true;
    const bool given_up = c->given_up;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
    if (given_up) closing_free(c);
    return NULL;
}

static bool
start_closing(closing *c)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, close_main, c) != 0) return false;
    pthread_detach(thread);
    return true;
}

/* nng's own exit handler would wait for the socket too: leave before it runs. */
static void
leave_now(int status, void *unused)
{
    (void)unused;
    fflush(NULL);
    _exit(status);
}

bool
rpc_nng_close(nng_socket socket)
{
    closing *c = calloc(1, sizeof *c);
    if (c == NULL) return nng_close(socket) == 0;
    c->socket = socket;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    if (!start_closing(c)) {
        closing_free(c);
        return nng_close(socket) == 0;
    }
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += RPC_NNG_CLOSE_MS / 1000;
    pthread_mutex_lock(&c->lock);
    int wait = 0;
    while (!c->done && wait == 0)
        wait = pthread_cond_timedwait(&c->changed, &c->lock, &end);
    const bool done = c->done;
    c->given_up = !done;
    pthread_mutex_unlock(&c->lock);
    if (done) {
        closing_free(c);
    } else {
        LOG_WARN("rpc", "a socket could not be closed: it is left behind");
        on_exit(leave_now, NULL);
    }
    return done;
}
