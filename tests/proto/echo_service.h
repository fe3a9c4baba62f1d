/* echo_service: the Echo service of echo.proto, and a place to run it, for tests. */
#ifndef MOE_TESTS_PROTO_ECHO_SERVICE_H
#define MOE_TESTS_PROTO_ECHO_SERVICE_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "echo.pb-c.h"
#include "proto/rpc.h"

enum { ECHO_SAY, ECHO_HOLD, ECHO_REFUSE, ECHO_GROW };

#define HELD_MAX 32

typedef Conclave__Test__EchoRequest echo_request;
typedef Conclave__Test__EchoResponse echo_response;

typedef struct held_call {
    rpc_call *call;
    const echo_request *request;
} held_call;

typedef struct echo_service {
    Conclave__Test__Echo_Service base; /* first: methods get a pointer to it */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    held_call held[HELD_MAX]; /* calls of Hold, in order of arrival */
    unsigned held_count;
    unsigned say_count;
} echo_service;

static inline void
echo_answer(rpc_call *call, const echo_request *request, unsigned times)
{
    echo_response response = CONCLAVE__TEST__ECHO_RESPONSE__INIT;
    response.text = request->text;
    response.times_called = times;
    for (size_t i = 0; i < request->n_numbers; i++)
        response.sum += request->numbers[i];
    rpc_reply(call, &response.base);
}

static inline void
echo_say(Conclave__Test__Echo_Service *base, const echo_request *request,
         Conclave__Test__EchoResponse_Closure closure, void *call)
{
    (void)closure;
    echo_service *e = (echo_service *)base;
    pthread_mutex_lock(&e->mutex);
    const unsigned times = ++e->say_count;
    pthread_mutex_unlock(&e->mutex);
    echo_answer(call, request, times);
}

static inline void
echo_hold(Conclave__Test__Echo_Service *base, const echo_request *request,
          Conclave__Test__EchoResponse_Closure closure, void *call)
{
    (void)closure;
    echo_service *e = (echo_service *)base;
    pthread_mutex_lock(&e->mutex);
    e->held[e->held_count++] = (held_call){call, request};
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->mutex);
}

static inline void
echo_refuse(Conclave__Test__Echo_Service *base, const echo_request *request,
            Conclave__Test__EchoResponse_Closure closure, void *call)
{
    (void)base;
    (void)closure;
    rpc_fail(call, RPC_NOT_FOUND, "nothing is called %s", request->text);
}

static inline void
echo_grow(Conclave__Test__Echo_Service *base, const echo_request *request,
          Conclave__Test__EchoResponse_Closure closure, void *call)
{
    (void)base;
    echo_response response = CONCLAVE__TEST__ECHO_RESPONSE__INIT;
    response.blob.len = request->numbers[0];
    response.blob.data = calloc(1, response.blob.len + 1);
    closure(&response, call);
    free(response.blob.data);
}

static inline void
echo_service_init(echo_service *e)
{
    *e = (echo_service){.base = CONCLAVE__TEST__ECHO__INIT(echo_)};
    e->base.say = echo_say;
    e->base.hold = echo_hold;
    e->base.refuse = echo_refuse;
    e->base.grow = echo_grow;
    pthread_mutex_init(&e->mutex, NULL);
    pthread_cond_init(&e->changed, NULL);
}

static inline void
echo_wait_held(echo_service *e, unsigned count)
{
    pthread_mutex_lock(&e->mutex);
    while (e->held_count < count)
        pthread_cond_wait(&e->changed, &e->mutex);
    pthread_mutex_unlock(&e->mutex);
}

/* A fresh "ipc://" url of this process. */
static inline const char *
echo_ipc_url(char *buf, size_t size)
{
    const char *dir = getenv("TMPDIR");
    static int serial;
    snprintf(buf, size, "ipc://%s/conclave-rpc-%d-%d.sock", dir != NULL ? dir : "/tmp",
             (int)getpid(), serial++);
    return buf;
}

#endif
