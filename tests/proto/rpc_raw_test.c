/* rpc server against a peer that speaks nng but not our protocol, or speaks it wrongly. */
#include <criterion/criterion.h>

#include <nng/nng.h>
#include <nng/protocol/reqrep0/req.h>

#include "common/hash.h"
#include "echo_service.h"
#include "proto/rpc_wire.h"

static echo_service echo;
static rpc_server *server;
static nng_socket raw;
static char url[128];

static void
setup(void)
{
    errbuf eb;
    echo_service_init(&echo);
    const rpc_server_options opt = {
        .url = echo_ipc_url(url, sizeof url), .service = &echo.base.base, .concurrency = 2};
    cr_assert_eq(rpc_server_start(&server, &opt, &eb), MOE_OK, "%s", eb.text);
    cr_assert_eq(nng_req0_open(&raw), 0);
    nng_socket_set_ms(raw, NNG_OPT_RECVTIMEO, 20000);
    nng_socket_set_ms(raw, NNG_OPT_SENDTIMEO, 20000);
    nng_socket_set_ms(raw, NNG_OPT_RECONNMINT, 5);
    cr_assert_eq(nng_dial(raw, url, NULL, 0), 0);
}

static void
teardown(void)
{
    nng_close(raw);
    rpc_server_stop(server);
    server = NULL;
}

TestSuite(rpc_raw, .init = setup, .fini = teardown, .timeout = 60);

typedef struct answer {
    rpc_header header;
    char text[256];
} answer;

static answer
exchange(const void *bytes, size_t len)
{
    nng_msg *msg;
    answer a = {0};
    cr_assert_eq(nng_msg_alloc(&msg, 0), 0);
    nng_msg_append(msg, bytes, len);
    cr_assert_eq(nng_sendmsg(raw, msg, 0), 0);
    cr_assert_eq(nng_recvmsg(raw, &msg, 0), 0);
    errbuf eb;
    const moe_err err = rpc_header_parse(&a.header, nng_msg_body(msg), nng_msg_len(msg), &eb);
    if (a.header.incarnation != 0) cr_assert_eq(err, MOE_OK, "%s", eb.text);
    const size_t body = nng_msg_len(msg) - sizeof(rpc_header);
    memcpy(a.text, (char *)nng_msg_body(msg) + sizeof(rpc_header),
           body < sizeof a.text - 1 ? body : sizeof a.text - 1);
    nng_msg_free(msg);
    return a;
}

static size_t
make_call(unsigned char *buf, uint64_t request_id, unsigned method, const char *text)
{
    echo_request request = CONCLAVE__TEST__ECHO_REQUEST__INIT;
    request.text = (char *)text;
    const size_t body = protobuf_c_message_pack(&request.base, buf + sizeof(rpc_header));
    rpc_header header = rpc_header_make(RPC_KIND_CALL, (uint32_t)body);
    header.service = rpc_service_fingerprint(&conclave__test__echo__descriptor);
    header.incarnation = 7;
    header.request_id = request_id;
    header.method = method;
    header.timeout_ms = 1000;
    memcpy(buf, &header, sizeof header);
    return sizeof header + body;
}

static uint64_t
times_called(const unsigned char *call, size_t len)
{
    const answer a = exchange(call, len);
    cr_assert_eq(a.header.status, RPC_OK, "%s", a.text);
    echo_response *response =
        conclave__test__echo_response__unpack(NULL, a.header.body_bytes, (const uint8_t *)a.text);
    cr_assert_not_null(response);
    const uint64_t times = response->times_called;
    conclave__test__echo_response__free_unpacked(response, NULL);
    return times;
}

Test(rpc_raw, answers_malformed_messages_with_an_error_and_lives)
{
    unsigned char call[512], bad[512];
    const size_t len = make_call(call, 1, ECHO_SAY, "hi");
    const struct {
        size_t offset;
        unsigned char value;
        size_t len;
        rpc_status want;
    } cases[] = {
        {0, 'X', len, RPC_FAILED_PRECONDITION}, /* magic */
        {4, 99, len, RPC_FAILED_PRECONDITION},  /* version */
        {5, 77, len, RPC_INVALID_ARGUMENT},     /* kind */
        {5, RPC_KIND_REPLY, len, RPC_INVALID_ARGUMENT},
        {6, 1, len, RPC_INVALID_ARGUMENT},     /* reserved */
        {8, 0, len, RPC_UNIMPLEMENTED},        /* another service */
        {16, 0, len, RPC_INVALID_ARGUMENT},    /* incarnation 0 */
        {32, 200, len, RPC_UNIMPLEMENTED},     /* method */
        {40, 1, len, RPC_INVALID_ARGUMENT},    /* status in a call */
        {44, 1, len, RPC_INVALID_ARGUMENT},    /* body length */
        {48, 0xff, len, RPC_INVALID_ARGUMENT}, /* body is no protobuf */
        {0, 'C', 0, RPC_INVALID_ARGUMENT},     /* empty message */
        {0, 'C', 47, RPC_INVALID_ARGUMENT},
        {0, 'C', len - 1, RPC_INVALID_ARGUMENT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        memcpy(bad, call, len);
        bad[cases[i].offset] = cases[i].value;
        const answer a = exchange(bad, cases[i].len);
        cr_expect_eq(a.header.status, cases[i].want, "case %zu: %s: %s", i,
                     rpc_status_name(a.header.status), a.text);
        cr_expect_neq(a.text[0], '\0');
    }
    cr_expect_eq(times_called(call, len), 1);
}

Test(rpc_raw, survives_random_bytes)
{
    unsigned char bytes[300];
    for (uint64_t i = 0; i < 200; i++) {
        for (uint64_t j = 0; j < sizeof bytes; j++)
            bytes[j] = (unsigned char)hash_combine(i, j);
        const answer a = exchange(bytes, hash_mix(i) % sizeof bytes);
        cr_expect_neq(a.header.status, RPC_OK);
    }
    unsigned char call[512];
    cr_expect_eq(times_called(call, make_call(call, 1, ECHO_SAY, "hi")), 1);
}

Test(rpc_raw, carries_out_a_repeated_request_once_and_repeats_its_answer)
{
    unsigned char call[512];
    size_t len = make_call(call, 5, ECHO_SAY, "once");
    cr_expect_eq(times_called(call, len), 1);
    cr_expect_eq(times_called(call, len), 1);
    len = make_call(call, 6, ECHO_SAY, "another");
    cr_expect_eq(times_called(call, len), 2);
    call[16] = 8; /* another client's request 6 */
    cr_expect_eq(times_called(call, len), 3);
    cr_expect_eq(echo.say_count, 3);
}

Test(rpc_raw, refuses_a_repeated_request_whose_answer_is_not_there)
{
    unsigned char call[512], large[8192];
    size_t len = make_call(call, 1, ECHO_HOLD, "held");
    nng_ctx ctx;
    nng_aio *aio;
    nng_msg *msg;
    cr_assert_eq(nng_ctx_open(&ctx, raw), 0);
    cr_assert_eq(nng_aio_alloc(&aio, NULL, NULL), 0);
    nng_msg_alloc(&msg, 0);
    nng_msg_append(msg, call, len);
    nng_aio_set_msg(aio, msg);
    nng_ctx_send(ctx, aio);
    nng_aio_wait(aio);
    echo_wait_held(&echo, 1);
    answer a = exchange(call, len);
    cr_expect_eq(a.header.status, RPC_FAILED_PRECONDITION);
    cr_expect(strstr(a.text, "is being carried out") != NULL, "%s", a.text);
    echo_answer(echo.held[0].call, echo.held[0].request, 1);
    nng_aio_free(aio);
    nng_ctx_close(ctx);

    char text[6000];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    len = make_call(large, 2, ECHO_SAY, text);
    cr_expect_eq(exchange(large, len).header.status, RPC_OK);
    a = exchange(large, len);
    cr_expect_eq(a.header.status, RPC_FAILED_PRECONDITION);
    cr_expect(strstr(a.text, "no longer kept") != NULL, "%s", a.text);
    cr_expect_eq(echo.say_count, 1);
}

Test(rpc_raw, refuses_proofs_that_are_made_up_or_overheard)
{
    /* A second server, with a secret. */
    rpc_server *guarded;
    errbuf eb;
    char guarded_url[128];
    const rpc_server_options opt = {.url = echo_ipc_url(guarded_url, sizeof guarded_url),
                                    .service = &echo.base.base,
                                    .secret = "secret",
                                    .secret_bytes = 6};
    cr_assert_eq(rpc_server_start(&guarded, &opt, &eb), MOE_OK, "%s", eb.text);
    nng_close(raw);
    cr_assert_eq(nng_req0_open(&raw), 0);
    cr_assert_eq(nng_dial(raw, guarded_url, NULL, 0), 0);

    unsigned char call[512], message[sizeof(rpc_header) + 64] = {0};
    const size_t len = make_call(call, 1, ECHO_SAY, "hi");
    cr_expect_eq(exchange(call, len).header.status, RPC_UNAUTHENTICATED);

    rpc_header header = rpc_header_make(RPC_KIND_PROOF, 64);
    header.incarnation = 7;
    memcpy(message, &header, sizeof header);
    cr_expect_eq(exchange(message, sizeof message).header.status, RPC_PERMISSION_DENIED);

    header = rpc_header_make(RPC_KIND_HELLO, 32);
    header.incarnation = 7;
    memcpy(message, &header, sizeof header);
    const answer challenge = exchange(message, sizeof header + 32);
    cr_assert_eq(challenge.header.kind, RPC_KIND_CHALLENGE);
    /* The server's own proof, thrown back at it. */
    header = rpc_header_make(RPC_KIND_PROOF, 64);
    header.incarnation = 7;
    memcpy(message, &header, sizeof header);
    memcpy(message + sizeof header + 32, challenge.text + 32, 32);
    cr_expect_eq(exchange(message, sizeof message).header.status, RPC_PERMISSION_DENIED);
    cr_expect_eq(exchange(call, len).header.status, RPC_UNAUTHENTICATED);
    cr_expect_eq(echo.say_count, 0);
    rpc_server_stop(guarded);
}
