/* rpc server against a peer that speaks our protocol wrongly, or another one. */
#include <criterion/criterion.h>

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "common/hash.h"
#include "echo_service.h"
#include "proto/rpc_wire.h"

static echo_service echo;
static rpc_server *server;
static int raw = -1;
static char url[128];

static void
dial(const char *where)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", where + strlen(RPC_IPC_PREFIX));
    if (raw >= 0) close(raw);
    raw = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(connect(raw, (struct sockaddr *)&address, sizeof address), 0);
}

static void
setup(void)
{
    errbuf eb;
    echo_service_init(&echo);
    const rpc_server_options opt = {
        .url = echo_ipc_url(url, sizeof url), .service = &echo.base.base, .concurrency = 2};
    cr_assert_eq(rpc_server_start(&server, &opt, &eb), MOE_OK, "%s", eb.text);
    dial(url);
}

static void
teardown(void)
{
    close(raw);
    raw = -1;
    rpc_server_stop(server);
    server = NULL;
}

TestSuite(rpc_raw, .init = setup, .fini = teardown, .timeout = 60);

/* The server may have hung up: false. */
static bool
send_bytes(const void *bytes, size_t len)
{
    return send(raw, bytes, len, MSG_NOSIGNAL) == (ssize_t)len;
}

/* false: the server has hung up. */
static bool
receive_bytes(void *out, size_t len)
{
    for (size_t got = 0; got < len;) {
        const ssize_t n = recv(raw, (char *)out + got, len - got, 0);
        if (n <= 0) return false;
        got += (size_t)n;
    }
    return true;
}

typedef struct answer {
    rpc_header header;
    char text[8192];
} answer;

static bool
receive_answer(answer *a)
{
    memset(a, 0, sizeof *a);
    if (!receive_bytes(&a->header, sizeof a->header)) return false;
    cr_assert_eq(a->header.magic, RPC_MAGIC);
    cr_assert_eq(a->header.version, RPC_VERSION);
    cr_assert_lt(a->header.body_bytes, sizeof a->text);
    return receive_bytes(a->text, a->header.body_bytes);
}

static answer
exchange(const void *bytes, size_t len)
{
    static answer a;
    cr_assert(send_bytes(bytes, len));
    cr_assert(receive_answer(&a));
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
        rpc_status want;
    } cases[] = {
        {5, 77, RPC_INVALID_ARGUMENT}, /* kind */
        {5, RPC_KIND_REPLY, RPC_INVALID_ARGUMENT},
        {6, 1, RPC_INVALID_ARGUMENT},     /* reserved */
        {8, 0, RPC_UNIMPLEMENTED},        /* another service */
        {16, 0, RPC_INVALID_ARGUMENT},    /* incarnation 0 */
        {32, 200, RPC_UNIMPLEMENTED},     /* method */
        {40, 1, RPC_INVALID_ARGUMENT},    /* status in a call */
        {48, 0xff, RPC_INVALID_ARGUMENT}, /* body is no protobuf */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        memcpy(bad, call, len);
        bad[cases[i].offset] = cases[i].value;
        const answer a = exchange(bad, len);
        cr_expect_eq(a.header.status, cases[i].want, "case %zu: %s: %s", i,
                     rpc_status_name(a.header.status), a.text);
        cr_expect_neq(a.text[0], '\0');
    }
    cr_expect_eq(times_called(call, len), 1);
}

Test(rpc_raw, hangs_up_with_a_last_word_when_it_can_not_tell_where_a_message_ends)
{
    unsigned char call[512], bad[512];
    const size_t len = make_call(call, 1, ECHO_SAY, "hi");
    const struct {
        size_t offset;
        unsigned char value;
        rpc_status want;
    } cases[] = {
        {0, 'X', RPC_FAILED_PRECONDITION}, /* magic */
        {4, 99, RPC_FAILED_PRECONDITION},  /* version */
        {47, 0xff, RPC_INVALID_ARGUMENT},  /* body length */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        answer a;
        memcpy(bad, call, len);
        bad[cases[i].offset] = cases[i].value;
        cr_assert(send_bytes(bad, len));
        cr_expect(receive_answer(&a));
        cr_expect_eq(a.header.status, cases[i].want, "case %zu: %s: %s", i,
                     rpc_status_name(a.header.status), a.text);
        cr_expect_eq(a.header.request_id, 0);
        cr_expect_neq(a.text[0], '\0');
        cr_expect_not(receive_answer(&a));
        dial(url);
    }
    cr_expect_eq(times_called(call, len), 1);
}

Test(rpc_raw, survives_random_bytes)
{
    unsigned char bytes[300];
    for (uint64_t i = 0; i < 200; i++) {
        for (uint64_t j = 0; j < sizeof bytes; j++)
            bytes[j] = (unsigned char)hash_combine(i, j);
        answer a;
        send_bytes(bytes, sizeof(rpc_header) + hash_mix(i) % (sizeof bytes - sizeof(rpc_header)));
        while (receive_answer(&a))
            cr_expect_neq(a.header.status, RPC_OK);
        dial(url);
    }
    unsigned char call[512];
    cr_expect_eq(times_called(call, make_call(call, 1, ECHO_SAY, "hi")), 1);
}

Test(rpc_raw, reads_calls_however_they_are_cut_and_answers_them_in_order)
{
    enum { CALL_COUNT = 40 };
    static unsigned char stream[CALL_COUNT * 256];
    for (size_t step = 1; step < 200; step += 23) {
        size_t len = 0;
        answer a;
        for (uint64_t i = 0; i < CALL_COUNT; i++) {
            char text[64] = "";
            memset(text, 'x', i);
            len += make_call(stream + len, step * CALL_COUNT + i, ECHO_SAY, text);
        }
        for (size_t at = 0; at < len; at += step)
            cr_assert(send_bytes(stream + at, at + step < len ? step : len - at));
        for (uint64_t i = 0; i < CALL_COUNT; i++) {
            cr_assert(receive_answer(&a));
            cr_expect_eq(a.header.status, RPC_OK);
            cr_expect_eq(a.header.request_id, step * CALL_COUNT + i);
        }
    }
}

Test(rpc_raw, stops_reading_a_peer_that_does_not_read_its_replies_and_serves_others)
{
    /* Each reply is large: were they kept without a bound, all calls would be read. */
    enum { CALL_MAX = 20000, STALL_MS = 300 };
    unsigned char call[512];
    uint32_t bytes = 100000;
    echo_request request = CONCLAVE__TEST__ECHO_REQUEST__INIT;
    request.text = (char *)"";
    request.numbers = &bytes;
    request.n_numbers = 1;
    rpc_header header;
    make_call(call, 1, ECHO_GROW, "");
    memcpy(&header, call, sizeof header);
    header.body_bytes = (uint32_t)protobuf_c_message_pack(&request.base, call + sizeof header);
    const size_t len = sizeof header + header.body_bytes;
    struct pollfd writable = {.fd = raw, .events = POLLOUT};
    unsigned sent = 0;
    while (sent < CALL_MAX && poll(&writable, 1, STALL_MS) == 1) {
        header.request_id = ++sent;
        memcpy(call, &header, sizeof header);
        cr_assert(send_bytes(call, len));
    }
    cr_expect_lt(sent, CALL_MAX);
    const int greedy = raw;
    raw = -1;
    dial(url);
    cr_expect_eq(times_called(call, make_call(call, sent + 1, ECHO_SAY, "other")), 1);
    close(greedy);
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
    answer a;
    cr_assert(send_bytes(call, len));
    echo_wait_held(&echo, 1);
    a = exchange(call, len);
    cr_expect_eq(a.header.status, RPC_FAILED_PRECONDITION);
    cr_expect(strstr(a.text, "is being carried out") != NULL, "%s", a.text);
    echo_answer(echo.held[0].call, echo.held[0].request, 1);
    cr_assert(receive_answer(&a));
    cr_expect_eq(a.header.status, RPC_OK);

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
    dial(guarded_url);

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
