/* rpc: what a server and a client promise each other (rpc.h), over real sockets. */
#include <criterion/criterion.h>

#include <sched.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "common/clock.h"
#include "echo_service.h"
#include "tests/support/tsan_nng.h"

#define LONG_MS 20000

static echo_service echo;
static rpc_server *server;
static rpc_client *client;
static char url[128];
static errbuf eb;

static void
setup(void)
{
    echo_service_init(&echo);
    echo_ipc_url(url, sizeof url);
}

static void
teardown(void)
{
    rpc_client_close(client);
    rpc_server_stop(server);
    client = NULL;
    server = NULL;
}

TestSuite(rpc, .init = setup, .fini = teardown, .timeout = 60);

static void
serve_with(rpc_server_options opt)
{
    if (opt.url == NULL) opt.url = url;
    opt.service = &echo.base.base;
    cr_assert_eq(rpc_server_start(&server, &opt, &eb), MOE_OK, "%s", eb.text);
}

static void
serve(void)
{
    serve_with((rpc_server_options){.concurrency = 8});
}

static void
connect_with(rpc_client_options opt)
{
    if (opt.url == NULL) opt.url = url;
    opt.service = &conclave__test__echo__descriptor;
    cr_assert_eq(rpc_client_open(&client, &opt, &eb), MOE_OK, "%s", eb.text);
}

static echo_request
say(const char *text)
{
    echo_request request = CONCLAVE__TEST__ECHO_REQUEST__INIT;
    request.text = (char *)text;
    return request;
}

static rpc_status
call(unsigned method, const echo_request *request, uint32_t timeout_ms, echo_response **response)
{
    rpc_status status;
    const moe_err err = rpc_call_sync(client, method, &request->base, timeout_ms,
                                      (ProtobufCMessage **)response, &status, &eb);
    cr_assert_eq(err, rpc_status_to_err(status));
    return status;
}

static void
drop(echo_response *response)
{
    if (response != NULL) rpc_response_free(&response->base);
}

static void
expect_echo(const char *text)
{
    uint32_t numbers[] = {1, 2, 39};
    echo_request request = say(text);
    request.numbers = numbers;
    request.n_numbers = 3;
    echo_response *response;
    cr_assert_eq(call(ECHO_SAY, &request, LONG_MS, &response), RPC_OK, "%s", eb.text);
    cr_expect_str_eq(response->text, text);
    cr_expect_eq(response->sum, 42);
    drop(response);
}

/* Calls that answer later: what their callbacks were given. */
typedef struct outcome {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned count;
    rpc_status status[HELD_MAX];
    char text[HELD_MAX][64];
} outcome;

static outcome results = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void
on_done(void *arg, rpc_status status, ProtobufCMessage *response, const char *error)
{
    outcome *o = arg;
    pthread_mutex_lock(&o->mutex);
    o->status[o->count] = status;
    snprintf(o->text[o->count], sizeof o->text[0], "%s",
             response != NULL ? ((echo_response *)response)->text : error);
    o->count++;
    pthread_cond_broadcast(&o->changed);
    pthread_mutex_unlock(&o->mutex);
    rpc_response_free(response);
}

static void
wait_results(unsigned count)
{
    pthread_mutex_lock(&results.mutex);
    while (results.count < count)
        pthread_cond_wait(&results.changed, &results.mutex);
    pthread_mutex_unlock(&results.mutex);
}

static void
hold_async(unsigned count, uint32_t timeout_ms)
{
    results.count = 0;
    for (unsigned i = 0; i < count; i++) {
        char text[8];
        snprintf(text, sizeof text, "%u", i);
        echo_request request = say(text);
        rpc_call_async(client, ECHO_HOLD, &request.base, timeout_ms, on_done, &results);
    }
}

Test(rpc, echoes_over_ipc_with_a_private_socket_that_is_gone_afterwards)
{
    serve();
    connect_with((rpc_client_options){0});
    expect_echo("hello");
    expect_echo("");

    struct stat st;
    cr_assert_eq(stat(url + strlen("ipc://"), &st), 0);
    cr_expect_eq(st.st_mode & 0777, 0600);
    rpc_server_stop(server);
    server = NULL;
    cr_expect_neq(stat(url + strlen("ipc://"), &st), 0);
}

Test(rpc, echoes_over_tcp_on_a_port_the_system_chose)
{
    serve_with((rpc_server_options){.url = "tcp://127.0.0.1:0"});
    cr_expect_neq(strcmp(rpc_server_url(server), "tcp://127.0.0.1:0"), 0);
    connect_with((rpc_client_options){.url = rpc_server_url(server)});
    expect_echo("hello");
}

static void
on_stub(const Conclave__Test__EchoResponse *response, void *data)
{
    on_done(data, response != NULL ? RPC_OK : RPC_INTERNAL, NULL, response ? response->text : "-");
}

Test(rpc, serves_generated_stubs)
{
    serve();
    connect_with((rpc_client_options){0});
    echo_request request = say("stub");
    results.count = 0;
    conclave__test__echo__say(rpc_client_service(client), &request, on_stub, &results);
    wait_results(1);
    cr_expect_str_eq(results.text[0], "stub");
    conclave__test__echo__refuse(rpc_client_service(client), &request, on_stub, &results);
    wait_results(2);
    cr_expect_str_eq(results.text[1], "-");
}

Test(rpc, reports_the_handlers_status_and_text_with_url_and_method)
{
    serve();
    connect_with((rpc_client_options){0});
    echo_request request = say("bob");
    echo_response *response;
    cr_expect_eq(call(ECHO_REFUSE, &request, LONG_MS, &response), RPC_NOT_FOUND);
    cr_expect_null(response);
    char want[256];
    snprintf(want, sizeof want, "%s: Refuse: NOT_FOUND: nothing is called bob", url);
    cr_expect_str_eq(eb.text, want);
}

/* Other threads count what went wrong; asserting is for the test's own. */
static _Atomic unsigned wrong_count;

static void *
call_often(void *arg)
{
    for (unsigned i = 0; i < 50; i++) {
        char text[32];
        snprintf(text, sizeof text, "thread %u call %u", *(unsigned *)arg, i);
        echo_request request = say(text);
        echo_response *response;
        const moe_err err = rpc_call_sync(client, ECHO_SAY, &request.base, LONG_MS,
                                          (ProtobufCMessage **)&response, NULL, NULL);
        if (err != MOE_OK || strcmp(response->text, text) != 0) wrong_count++;
        drop(response);
    }
    return NULL;
}

/* count <= 8 threads that make 50 calls each. */
static void
call_from_threads(unsigned count)
{
    pthread_t threads[8];
    unsigned ids[8];
    wrong_count = 0;
    for (unsigned i = 0; i < count; i++) {
        ids[i] = i;
        pthread_create(&threads[i], NULL, call_often, &ids[i]);
    }
    for (unsigned i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    cr_expect_eq(wrong_count, 0);
}

Test(rpc, answers_more_callers_than_it_has_slots_each_with_its_own_reply)
{
    serve_with((rpc_server_options){.concurrency = 2});
    connect_with((rpc_client_options){.concurrency = 3});
    call_from_threads(6);
    cr_expect_eq(echo.say_count, 300);
}

Test(rpc, lets_handlers_answer_later_in_any_order)
{
    serve();
    connect_with((rpc_client_options){0});
    hold_async(5, LONG_MS);
    echo_wait_held(&echo, 5);
    expect_echo("in between");
    for (unsigned i = 5; i-- > 0;) {
        char text[8];
        snprintf(text, sizeof text, "%s", echo.held[i].request->text);
        echo_answer(echo.held[i].call, echo.held[i].request, 1);
        wait_results(5 - i);
        cr_expect_str_eq(results.text[4 - i], text);
        cr_expect_eq(results.status[4 - i], RPC_OK);
    }
}

Test(rpc, hands_calls_over_in_the_order_they_were_made_also_when_slots_are_short)
{
    enum { CALL_COUNT = 16 };
    connect_with((rpc_client_options){.concurrency = CALL_COUNT});
    hold_async(CALL_COUNT, LONG_MS);
    serve_with((rpc_server_options){.concurrency = 2});
    for (unsigned i = 0; i < CALL_COUNT; i++) {
        char text[8];
        snprintf(text, sizeof text, "%u", i);
        echo_wait_held(&echo, i + 1);
        cr_expect_str_eq(echo.held[i].request->text, text);
        pthread_mutex_lock(&echo.mutex);
        cr_expect_leq(echo.held_count, i + 2);
        pthread_mutex_unlock(&echo.mutex);
        echo_answer(echo.held[i].call, echo.held[i].request, 1);
    }
    wait_results(CALL_COUNT);
    for (unsigned i = 0; i < CALL_COUNT; i++)
        cr_expect_eq(results.status[i], RPC_OK, "%s", results.text[i]);
}

Test(rpc, ends_a_call_at_its_deadline_and_drops_the_late_reply)
{
    serve();
    connect_with((rpc_client_options){0});
    echo_request request = say("late");
    echo_response *response;
    cr_expect_eq(call(ECHO_HOLD, &request, 30, &response), RPC_DEADLINE_EXCEEDED);
    char want[256];
    snprintf(want, sizeof want, "%s: Hold: deadline of 30 ms passed", url);
    cr_expect_str_eq(eb.text, want);
    echo_wait_held(&echo, 1);
    cr_expect_leq(rpc_call_deadline_ns(echo.held[0].call), clock_now_ns() + 30 * NS_PER_MS);
    echo_answer(echo.held[0].call, echo.held[0].request, 1);
    expect_echo("next");
}

Test(rpc, waits_within_the_deadline_for_a_server_that_starts_later)
{
    connect_with((rpc_client_options){.default_timeout_ms = 20});
    echo_request request = say("anyone?");
    echo_response *response;
    cr_expect_eq(call(ECHO_SAY, &request, 0, &response), RPC_DEADLINE_EXCEEDED);
    cr_expect(strstr(eb.text, "no connection") != NULL, "%s", eb.text);

    results.count = 0;
    rpc_call_async(client, ECHO_SAY, &request.base, LONG_MS, on_done, &results);
    serve();
    wait_results(1);
    cr_expect_eq(results.status[0], RPC_OK, "%s", results.text[0]);
}

/* A call that is sent just when the connection goes fails with RPC_UNAVAILABLE: wait until the
 * loss was noticed. */
static void
wait_disconnected(void)
{
    while (rpc_client_connected(client))
        sched_yield();
}

Test(rpc, reconnects_after_the_server_was_replaced)
{
    serve();
    connect_with((rpc_client_options){0});
    for (unsigned i = 0; i < 3; i++) {
        expect_echo("before");
        cr_expect(rpc_client_connected(client));
        rpc_server_stop(server);
        wait_disconnected();
        serve();
    }
    expect_echo("after");
}

Test(rpc, accepts_connections_after_peers_that_left_while_connecting)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", url + strlen("ipc://"));
    serve();
    for (unsigned i = 0; i < 100; i++) {
        const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        cr_assert_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
        close(fd);
    }
    connect_with((rpc_client_options){0});
    expect_echo("still accepting");
}

Test(rpc, stopping_ends_pending_calls_and_keeps_them_valid_for_their_handlers)
{
    serve();
    connect_with((rpc_client_options){0});
    hold_async(4, LONG_MS);
    echo_wait_held(&echo, 4);
    rpc_server_stop(server);
    server = NULL;
    wait_results(4);
    for (unsigned i = 0; i < 4; i++) {
        cr_expect_eq(results.status[i], RPC_UNAVAILABLE, "%s", results.text[i]);
        cr_expect_eq(strlen(echo.held[i].request->text), 1);
        if (i % 2 == 0)
            echo_answer(echo.held[i].call, echo.held[i].request, 1);
        else
            rpc_fail(echo.held[i].call, RPC_INTERNAL, "too late");
    }
}

Test(rpc, closing_a_client_cancels_its_pending_calls)
{
    serve();
    connect_with((rpc_client_options){.concurrency = 3});
    hold_async(4, LONG_MS); /* one more than may be under way */
    echo_wait_held(&echo, 3);
    cr_expect_eq(results.status[0], RPC_RESOURCE_EXHAUSTED);
    rpc_client_close(client);
    client = NULL;
    cr_expect_eq(results.count, 4);
    for (unsigned i = 1; i < 4; i++)
        cr_expect_eq(results.status[i], RPC_CANCELLED, "%s", results.text[i]);
    for (unsigned i = 0; i < 3; i++)
        echo_answer(echo.held[i].call, echo.held[i].request, 1);
}

static rpc_status
send_blob(size_t len)
{
    echo_request request = say("blob");
    echo_response *response;
    request.blob.len = len;
    request.blob.data = calloc(1, len);
    const rpc_status status = call(ECHO_SAY, &request, LONG_MS, &response);
    free(request.blob.data);
    drop(response);
    return status;
}

Test(rpc, refuses_messages_above_the_limit_on_both_sides_and_lives)
{
    serve_with((rpc_server_options){.message_bytes_max = 10000});
    connect_with((rpc_client_options){.message_bytes_max = 100000});
    cr_expect_eq(send_blob(9900), RPC_OK);
    cr_expect_eq(send_blob(12000), RPC_RESOURCE_EXHAUSTED);
    cr_expect(strstr(eb.text, "exceeds the limit of 10000") != NULL, "%s", eb.text);
    cr_expect_eq(send_blob(50000), RPC_UNAVAILABLE); /* the connection is dropped */
    cr_expect_eq(send_blob(100001), RPC_RESOURCE_EXHAUSTED);
    expect_echo("still there");

    uint32_t bytes = 20000;
    echo_request request = say("");
    echo_response *response;
    request.numbers = &bytes;
    request.n_numbers = 1;
    cr_expect_eq(call(ECHO_GROW, &request, LONG_MS, &response), RPC_RESOURCE_EXHAUSTED);
    bytes = 9000;
    cr_expect_eq(call(ECHO_GROW, &request, LONG_MS, &response), RPC_OK);
    cr_expect_eq(response->blob.len, 9000);
    drop(response);
}

Test(rpc, bounds_what_a_small_message_unpacks_to)
{
    enum { EMPTY_COUNT = 4000 };
    serve_with((rpc_server_options){.unpacked_bytes_max = 65536});
    connect_with((rpc_client_options){0});
    Conclave__Test__EchoRequest__Empty empty = CONCLAVE__TEST__ECHO_REQUEST__EMPTY__INIT;
    static Conclave__Test__EchoRequest__Empty *empties[EMPTY_COUNT];
    for (unsigned i = 0; i < EMPTY_COUNT; i++)
        empties[i] = &empty;
    echo_request request = say("");
    echo_response *response;
    request.empties = empties;
    request.n_empties = EMPTY_COUNT; /* 8 kB on the wire */
    cr_expect_eq(call(ECHO_SAY, &request, LONG_MS, &response), RPC_INVALID_ARGUMENT);
    request.n_empties = 10;
    cr_expect_eq(call(ECHO_SAY, &request, LONG_MS, &response), RPC_OK, "%s", eb.text);
    drop(response);
}

Test(rpc, refuses_wrong_options_and_unknown_methods)
{
    serve();
    rpc_server_options opt = {.url = url, .service = &echo.base.base};
    cr_expect_eq(rpc_server_start(&(rpc_server *){NULL}, &opt, &eb), MOE_EIO);
    cr_expect(strstr(eb.text, url) != NULL, "%s", eb.text);
    opt.url = "nowhere";
    cr_expect_eq(rpc_server_start(&(rpc_server *){NULL}, &opt, &eb), MOE_EIO);
    opt.url = NULL;
    cr_expect_eq(rpc_server_start(&(rpc_server *){NULL}, &opt, &eb), MOE_EINVAL);
    opt.url = "ipc:///tmp/"
              "0123456789012345678901234567890123456789012345678901234567890123456789"
              "0123456789012345678901234567890123456789";
    cr_expect_eq(rpc_server_start(&(rpc_server *){NULL}, &opt, &eb), MOE_EINVAL);
    opt.url = url;
    opt.concurrency = RPC_CONCURRENCY_MAX + 1;
    cr_expect_eq(rpc_server_start(&(rpc_server *){NULL}, &opt, &eb), MOE_ERANGE);

    const rpc_client_options recursive = {.url = url,
                                          .service = &conclave__test__recursive__descriptor};
    cr_expect_eq(rpc_client_open(&client, &recursive, &eb), MOE_EINVAL);
    cr_expect(strstr(eb.text, "contains itself") != NULL, "%s", eb.text);

    connect_with((rpc_client_options){0});
    echo_request request = say("");
    echo_response *response;
    cr_expect_eq(call(17, &request, LONG_MS, &response), RPC_UNIMPLEMENTED);
}

static rpc_status
say_with_secret(const char *secret)
{
    connect_with(
        (rpc_client_options){.secret = secret, .secret_bytes = secret ? strlen(secret) : 0});
    echo_request request = say("let me in");
    echo_response *response;
    const rpc_status status = call(ECHO_SAY, &request, LONG_MS, &response);
    drop(response);
    rpc_client_close(client);
    client = NULL;
    return status;
}

Test(rpc, lets_in_only_clients_that_know_the_secret)
{
    serve_with((rpc_server_options){.secret = "open sesame", .secret_bytes = 11});
    cr_expect_eq(say_with_secret(NULL), RPC_UNAUTHENTICATED, "%s", eb.text);
    cr_expect_eq(say_with_secret("open sesam"), RPC_PERMISSION_DENIED, "%s", eb.text);
    cr_expect_eq(echo.say_count, 0);
    cr_expect_eq(say_with_secret("open sesame"), RPC_OK, "%s", eb.text);
    cr_expect_eq(echo.say_count, 1);
}

Test(rpc, tells_a_client_that_the_server_can_not_prove_itself)
{
    serve();
    cr_expect_eq(say_with_secret("open sesame"), RPC_FAILED_PRECONDITION, "%s", eb.text);
    cr_expect_eq(echo.say_count, 0);
}

Test(rpc, proves_the_secret_again_after_a_reconnect_and_from_many_threads)
{
    const rpc_server_options opt = {.secret = "open sesame", .secret_bytes = 11};
    connect_with((rpc_client_options){.secret = "open sesame", .secret_bytes = 11});
    for (unsigned round = 0; round < 2; round++) {
        serve_with(opt);
        call_from_threads(4);
        expect_echo("done");
        rpc_server_stop(server);
        server = NULL;
        wait_disconnected();
    }
    cr_expect_eq(echo.say_count, 2 * (4 * 50 + 1));
}

static bool
say_gone(void *arg)
{
    return atomic_load((_Atomic bool *)arg);
}

Test(rpc, a_watched_call_is_answered_like_any_other_or_left_when_its_watcher_says_so)
{
    serve();
    connect_with((rpc_client_options){0});
    _Atomic bool gone = false;
    rpc_status status;
    echo_response *response;
    const echo_request request = say("watched");
    cr_assert_eq(rpc_call_watched(client, ECHO_SAY, &request.base, LONG_MS, say_gone, &gone, 10,
                                  (ProtobufCMessage **)&response, &status, &eb),
                 MOE_OK);
    cr_expect_str_eq(response->text, "watched");
    drop(response);

    cr_expect_eq(rpc_call_watched(client, ECHO_REFUSE, &request.base, LONG_MS, say_gone, &gone, 10,
                                  (ProtobufCMessage **)&response, &status, &eb),
                 MOE_ENOTFOUND);
    cr_expect_eq(status, RPC_NOT_FOUND);
    cr_expect_not_null(strstr(eb.text, "nothing is called watched"), "%s", eb.text);

    atomic_store(&gone, true);
    cr_expect_eq(rpc_call_watched(client, ECHO_HOLD, &request.base, LONG_MS, say_gone, &gone, 10,
                                  (ProtobufCMessage **)&response, &status, &eb),
                 MOE_ECLOSED);
    cr_expect_eq(status, RPC_CANCELLED);
    cr_expect_null(response);

    /* The answer that comes after all is dropped, not leaked. */
    echo_wait_held(&echo, 1);
    echo_answer(echo.held[0].call, echo.held[0].request, 1);
    cr_expect_eq(call(ECHO_SAY, &request, LONG_MS, &response), RPC_OK);
    drop(response);
}

static void
count_done(void *arg, rpc_status status, ProtobufCMessage *response, const char *error)
{
    (void)status;
    (void)error;
    rpc_response_free(response);
    atomic_fetch_add((_Atomic unsigned *)arg, 1);
}

/* The last answer is there before nng's threads have let go of the call. */
Test(rpc, a_client_may_be_closed_as_soon_as_its_calls_have_ended)
{
    serve();
    const echo_request request = say("hello");
    for (unsigned i = 0; i < 100; i++) {
        _Atomic unsigned done = 0;
        connect_with((rpc_client_options){.concurrency = 4});
        for (unsigned k = 0; k < 4; k++) {
            rpc_call_async(client, ECHO_SAY, &request.base, LONG_MS, count_done, &done);
        }
        while (atomic_load(&done) < 4) {
            sched_yield();
        }
        rpc_client_close(client);
        client = NULL;
    }
}
