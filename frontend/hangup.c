#include "frontend/hangup.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/log.h"

#define EVENTS_MAX 64
#define WAKE_HANDLE 0u /* the eventfd; handles of sockets are never 0 */

/* A handle is generation << 32 | (slot + 1): a slot used again gets another handle. */
typedef struct watch {
    int fd; /* -1: free */
    uint32_t generation;
    uint32_t next_free; /* slot + 1; 0 ends the list */
    hangup_target target;
} watch;

struct hangup {
    pthread_t thread;
    int epoll_fd, wake_fd;
    pthread_mutex_t lock; /* guards what follows */
    bool stopping;
    uint32_t watch_max;
    uint32_t first_free; /* slot + 1 */
    watch watches[];
};

static watch *
find_locked(hangup *h, uint64_t handle)
{
    const uint32_t slot = (uint32_t)handle;
    if (slot == 0 || slot > h->watch_max) return NULL;
    watch *w = &h->watches[slot - 1];
    return w->fd >= 0 && w->generation == (uint32_t)(handle >> 32) ? w : NULL;
}

static void
on_event(hangup *h, uint64_t handle)
{
    pthread_mutex_lock(&h->lock);
    const watch *w = find_locked(h, handle);
    const hangup_target target = w != NULL ? w->target : (hangup_target){0};
    if (w != NULL) target.retain(target.user);
    pthread_mutex_unlock(&h->lock);
    if (w != NULL) target.on_gone(target.user);
}

static void *
run(void *arg)
{
    hangup *h = arg;
    struct epoll_event events[EVENTS_MAX];
    for (;;) {
        const int n = epoll_wait(h->epoll_fd, events, EVENTS_MAX, -1);
        if (n < 0 && errno != EINTR) {
            LOG_ERROR("http", "the hang-up watcher stops: epoll_wait failed errno=%d", errno);
            return NULL;
        }
        for (int i = 0; i < n; i++)
            if (events[i].data.u64 != WAKE_HANDLE) on_event(h, events[i].data.u64);
        pthread_mutex_lock(&h->lock);
        const bool stopping = h->stopping;
        pthread_mutex_unlock(&h->lock);
        if (stopping) return NULL;
    }
}

moe_err
hangup_create(hangup **out, uint32_t watch_max)
{
    *out = NULL;
    hangup *h = calloc(1, sizeof *h + watch_max * sizeof h->watches[0]);
    if (h == NULL) return MOE_ENOMEM;
    h->watch_max = watch_max;
    h->first_free = watch_max != 0;
    for (uint32_t i = 0; i < watch_max; i++) {
        h->watches[i].fd = -1;
        h->watches[i].next_free = i + 1 < watch_max ? i + 2 : 0;
    }
    pthread_mutex_init(&h->lock, NULL);
    h->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    h->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = WAKE_HANDLE};
    if (h->epoll_fd >= 0 && h->wake_fd >= 0 &&
        epoll_ctl(h->epoll_fd, EPOLL_CTL_ADD, h->wake_fd, &event) == 0 &&
        pthread_create(&h->thread, NULL, run, h) == 0) {
        *out = h;
        return MOE_OK;
    }
    if (h->epoll_fd >= 0) close(h->epoll_fd);
    if (h->wake_fd >= 0) close(h->wake_fd);
    pthread_mutex_destroy(&h->lock);
    free(h);
    return MOE_EIO;
}

void
hangup_free(hangup *h)
{
    if (h == NULL) return;
    pthread_mutex_lock(&h->lock);
    h->stopping = true;
    pthread_mutex_unlock(&h->lock);
    const uint64_t one = 1;
    if (write(h->wake_fd, &one, sizeof one) < 0)
        LOG_ERROR("http", "the hang-up watcher can't be woken errno=%d", errno);
    pthread_join(h->thread, NULL);
    close(h->epoll_fd);
    close(h->wake_fd);
    pthread_mutex_destroy(&h->lock);
    free(h);
}

uint64_t
hangup_watch(hangup *h, int fd, hangup_target target)
{
    uint64_t handle = 0;
    pthread_mutex_lock(&h->lock);
    const uint32_t slot = h->first_free;
    if (slot != 0 && fd >= 0) {
        watch *w = &h->watches[slot - 1];
        w->generation++;
        handle = (uint64_t)w->generation << 32 | slot;
        struct epoll_event event = {.events = EPOLLRDHUP | EPOLLONESHOT, .data.u64 = handle};
        if (epoll_ctl(h->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0) {
            h->first_free = w->next_free;
            w->fd = fd;
            w->target = target;
        } else {
            handle = 0;
        }
    }
    pthread_mutex_unlock(&h->lock);
    return handle;
}

void
hangup_unwatch(hangup *h, uint64_t handle)
{
    pthread_mutex_lock(&h->lock);
    watch *w = find_locked(h, handle);
    if (w != NULL) {
        epoll_ctl(h->epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
        w->fd = -1;
        w->next_free = h->first_free;
        h->first_free = (uint32_t)handle;
    }
    pthread_mutex_unlock(&h->lock);
}

void
hangup_cut(hangup *h, uint64_t handle)
{
    pthread_mutex_lock(&h->lock);
    const watch *w = find_locked(h, handle);
    if (w != NULL) shutdown(w->fd, SHUT_RDWR);
    pthread_mutex_unlock(&h->lock);
}
