/* rpc under what the processes of a fleet do to each other all the time: servers that stop, are
 * killed and come back, and clients that close, while calls are under way.
 *
 * Checked in every round: each call ends, with its own answer or with an error that fits; no call
 * is carried out twice; each client reaches the new server.  That nothing hangs is the test's time
 * limit; that nothing leaks or races is for the sanitizers.
 *
 * A program of its own, not a Criterion test: the killed servers are processes, and forking must
 * come before nng's threads.
 *
 * usage: rpc_stress [ROUNDS]
 */
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "common/clock.h"
#include "common/log.h"
#include "echo_service.h"
#include "tests/support/tsan_nng.h"

#define CALLER_COUNT 4
#define CLIENT_COUNT 2
#define NUMBER_MAX (1u << 22)
#define PATIENCE_NS (20 * NS_PER_S)

static char url[128];
static rpc_client *clients[CLIENT_COUNT];
static echo_service echo;
static _Atomic bool ending;
static _Atomic uint32_t next_number;
static _Atomic unsigned char carried_out[NUMBER_MAX];
static _Atomic unsigned answered[CLIENT_COUNT];

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                        \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* ---- the service: Say answers at once, Hold later and from another thread ---- */

static void
stress_say(Conclave__Test__Echo_Service *base, const echo_request *request,
           Conclave__Test__EchoResponse_Closure closure, void *call)
{
    (void)base;
    (void)closure;
    CHECK(atomic_fetch_add(&carried_out[request->numbers[0]], 1) == 0, "call %u was repeated",
          request->numbers[0]);
    echo_answer(call, request, 1);
}

static void
stress_hold(Conclave__Test__Echo_Service *base, const echo_request *request,
            Conclave__Test__EchoResponse_Closure closure, void *call)
{
    (void)closure;
    echo_service *e = (echo_service *)base;
    pthread_mutex_lock(&e->mutex);
    CHECK(e->held_count < HELD_MAX, "more calls than the server's concurrency");
    e->held[e->held_count++] = (held_call){call, request};
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->mutex);
}

static void *
answer_held(void *arg)
{
    echo_service *e = arg;
    pthread_mutex_lock(&e->mutex);
    while (!atomic_load(&ending) || e->held_count != 0) {
        if (e->held_count == 0) {
            pthread_cond_wait(&e->changed, &e->mutex);
            continue;
        }
        const held_call held = e->held[--e->held_count];
        pthread_mutex_unlock(&e->mutex);
        echo_answer(held.call, held.request, 1);
        pthread_mutex_lock(&e->mutex);
    }
    pthread_mutex_unlock(&e->mutex);
    return NULL;
}

static rpc_server *
serve(void)
{
    rpc_server *server;
    errbuf eb;
    const rpc_server_options opt = {.url = url,
                                    .service = &echo.base.base,
                                    .concurrency = 6,
                                    .secret = "stress",
                                    .secret_bytes = 6};
    CHECK(rpc_server_start(&server, &opt, &eb) == MOE_OK, "%s", eb.text);
    return server;
}

static rpc_client *
connect_client(void)
{
    rpc_client *client;
    errbuf eb;
    const rpc_client_options opt = {.url = url,
                                    .service = &conclave__test__echo__descriptor,
                                    .concurrency = 4,
                                    .secret = "stress",
                                    .secret_bytes = 6};
    CHECK(rpc_client_open(&client, &opt, &eb) == MOE_OK, "%s", eb.text);
    return client;
}

/* ---- callers ---- */

static bool
fits(rpc_status status)
{
    return status == RPC_OK || status == RPC_UNAVAILABLE || status == RPC_DEADLINE_EXCEEDED ||
           status == RPC_CANCELLED || status == RPC_RESOURCE_EXHAUSTED;
}

/* One call in one of four ways.  true: it was answered. */
static bool
call_once(rpc_client *client, unsigned way)
{
    uint32_t number = atomic_fetch_add(&next_number, 1);
    CHECK(number < NUMBER_MAX, "out of numbers");
    char text[32];
    snprintf(text, sizeof text, "call %" PRIu32, number);
    echo_request request = CONCLAVE__TEST__ECHO_REQUEST__INIT;
    request.text = text;
    request.numbers = &number;
    request.n_numbers = 1;
    ProtobufCMessage *response = NULL;
    rpc_status status = RPC_OK;
    errbuf eb = {.text = ""};
    const unsigned method = way % 2 == 0 ? ECHO_SAY : ECHO_HOLD;
    if (way < 2) {
        rpc_call_sync(client, method, &request.base, way == 0 ? 2000 : 40, &response, &status, &eb);
    } else {
        rpc_pending *pending = rpc_call_begin(client, method, &request.base, 1000, NULL);
        CHECK(pending != NULL, "out of memory");
        if (way == 2) rpc_pending_wait(pending, clock_now_ns() + NS_PER_MS / 10);
        rpc_pending_finish(pending, &response, &status, &eb);
    }
    CHECK(fits(status), "%s: %s", rpc_status_name(status), eb.text);
    CHECK((status == RPC_OK) == (response != NULL), "%s", rpc_status_name(status));
    if (response == NULL) return false;
    const echo_response *r = (const echo_response *)response;
    CHECK(strcmp(r->text, text) == 0 && r->sum == number, "'%s' answered to '%s'", r->text, text);
    rpc_response_free(response);
    return true;
}

static void *
call_all_the_time(void *arg)
{
    const unsigned which = *(const unsigned *)arg % CLIENT_COUNT;
    for (unsigned i = 0; !atomic_load(&ending); i++) {
        if (call_once(clients[which], i % 4)) atomic_fetch_add(&answered[which], 1);
    }
    return NULL;
}

/* Until every client was answered by the server that runs now. */
static void
wait_until_answered(void)
{
    const uint64_t until = clock_now_ns() + PATIENCE_NS;
    for (unsigned i = 0; i < CLIENT_COUNT; i++)
        atomic_store(&answered[i], 0);
    for (unsigned i = 0; i < CLIENT_COUNT; i++) {
        while (atomic_load(&answered[i]) == 0) {
            CHECK(clock_now_ns() < until, "client %u does not reach the server", i);
            sched_yield();
        }
    }
}

/* ---- rounds ---- */

static void
stop_and_start(unsigned rounds)
{
    for (unsigned i = 0; i < rounds; i++) {
        rpc_server *server = serve();
        if (i % 4 != 3) wait_until_answered();
        rpc_server_stop(server);
    }
}

static void
open_and_close_clients(unsigned rounds)
{
    rpc_server *server = serve();
    for (unsigned i = 0; i < rounds; i++) {
        rpc_client *client = connect_client();
        rpc_pending *pending[3];
        echo_request request = CONCLAVE__TEST__ECHO_REQUEST__INIT;
        request.text = (char *)"left";
        for (unsigned k = 0; k < 3; k++)
            pending[k] = rpc_call_begin(client, ECHO_HOLD, &request.base, 5000, NULL);
        if (i % 2 == 0) call_once(client, 0);
        rpc_client_close(client);
        for (unsigned k = 0; k < 3; k++) {
            ProtobufCMessage *response;
            rpc_status status;
            CHECK(rpc_pending_done(pending[k]), "a call outlived its client");
            rpc_pending_finish(pending[k], &response, &status, NULL);
            CHECK(fits(status), "%s", rpc_status_name(status));
            rpc_response_free(response);
        }
    }
    rpc_server_stop(server);
}

/* A process of its own starts and kills servers: commands come over `commands`, each is answered
 * by one byte. */
static int commands[2], confirmations[2];

static void
server_process(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pthread_t answerer;
    rpc_server *server = serve();
    pthread_create(&answerer, NULL, answer_held, &echo);
    if (write(confirmations[1], "s", 1) != 1 || server == NULL) _exit(1);
    while (true)
        pause();
}

static void
killer_process(void)
{
    char command;
    pid_t server = 0;
    close(commands[1]);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (read(commands[0], &command, 1) == 1) {
        if (command == 's') {
            server = fork();
            if (server == 0) server_process(); /* confirms by itself */
        } else {
            kill(server, SIGKILL);
            waitpid(server, NULL, 0);
            if (write(confirmations[1], "k", 1) != 1) break;
        }
    }
    _exit(0);
}

static void
tell_killer(char command)
{
    char confirmation;
    CHECK(write(commands[1], &command, 1) == 1 && read(confirmations[0], &confirmation, 1) == 1,
          "the process that kills servers is gone");
}

static void
kill_and_start(unsigned rounds)
{
    for (unsigned i = 0; i < rounds; i++) {
        tell_killer('s');
        if (i % 4 != 3) wait_until_answered();
        tell_killer('k');
    }
}

int
main(int argc, char **argv)
{
    const unsigned rounds = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 500;
    pthread_t callers[CALLER_COUNT], answerer;
    unsigned ids[CALLER_COUNT];
    log_init("rpc_stress", LOG_LEVEL_ERROR);
    echo_ipc_url(url, sizeof url);
    echo_service_init(&echo);
    echo.base.say = stress_say;
    echo.base.hold = stress_hold;
    CHECK(pipe(commands) == 0 && pipe(confirmations) == 0, "no pipes");
    const pid_t killer = fork();
    if (killer == 0) killer_process();

    for (unsigned i = 0; i < CLIENT_COUNT; i++)
        clients[i] = connect_client();
    pthread_create(&answerer, NULL, answer_held, &echo);
    for (unsigned i = 0; i < CALLER_COUNT; i++) {
        ids[i] = i;
        pthread_create(&callers[i], NULL, call_all_the_time, &ids[i]);
    }
    stop_and_start(rounds);
    open_and_close_clients(rounds / 2);
    kill_and_start(rounds / 5);

    atomic_store(&ending, true);
    for (unsigned i = 0; i < CALLER_COUNT; i++)
        pthread_join(callers[i], NULL);
    for (unsigned i = 0; i < CLIENT_COUNT; i++)
        rpc_client_close(clients[i]);
    pthread_mutex_lock(&echo.mutex);
    pthread_cond_broadcast(&echo.changed);
    pthread_mutex_unlock(&echo.mutex);
    pthread_join(answerer, NULL);
    close(commands[1]);
    waitpid(killer, NULL, 0);
    unlink(url + strlen("ipc://"));
    printf("%u rounds, %u calls\n", rounds, (unsigned)atomic_load(&next_number));
    return 0;
}
