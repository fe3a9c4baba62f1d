/* rpc_wire: header checks, fingerprints, and the mapping of statuses. */
#include <criterion/criterion.h>

#include <string.h>

#include "echo.pb-c.h"
#include "proto/rpc_wire.h"

TestSuite(rpc_wire, .timeout = 10);

Test(rpc_wire, lays_the_header_out_as_documented)
{
    rpc_header header = rpc_header_make(RPC_KIND_CALL, 0);
    header.service = 0x0807060504030201;
    header.incarnation = 0x1807060504030211;
    header.request_id = 3;
    header.method = 4;
    header.timeout_ms = 0x100;
    const unsigned char want[48] = {'C',  'R', 'p', 'c', 1, 1, 0, 0,    1, 2, 3, 4, 5, 6, 7, 8,
                                    0x11, 2,   3,   4,   5, 6, 7, 0x18, 3, 0, 0, 0, 0, 0, 0, 0,
                                    4,    0,   0,   0,   0, 1, 0, 0,    0, 0, 0, 0, 0, 0, 0, 0};
    cr_expect_arr_eq(&header, want, 48);

    rpc_header found;
    size_t bytes;
    cr_expect_eq(rpc_frame_find(&found, want, 48, 0, &bytes, NULL), MOE_OK);
    cr_expect_eq(bytes, 48);
    cr_expect_arr_eq(&found, &header, sizeof header);
    cr_expect_eq(rpc_header_check(&found, NULL), MOE_OK);
}

Test(rpc_wire, finds_a_frame_once_all_of_it_is_there)
{
    unsigned char stream[48 + 100 + 48] = {0};
    rpc_header header = rpc_header_make(RPC_KIND_CALL, 100), found;
    size_t bytes;
    memcpy(stream, &header, sizeof header);
    for (size_t len = 0; len < 48; len++) {
        cr_expect_eq(rpc_frame_find(&found, stream, len, 100, &bytes, NULL), MOE_OK);
        cr_expect_eq(bytes, 0);
        cr_expect_eq(found.body_bytes, 0);
    }
    for (size_t len = 48; len <= sizeof stream; len++) {
        cr_expect_eq(rpc_frame_find(&found, stream, len, 100, &bytes, NULL), MOE_OK);
        cr_expect_eq(bytes, len < 148 ? 0 : 148);
        cr_expect_eq(found.body_bytes, 100);
    }
    errbuf eb;
    cr_expect_eq(rpc_frame_find(&found, stream, 48, 99, &bytes, &eb), MOE_ERANGE);
    cr_expect_str_eq(eb.text, "message of 100 bytes, at most 99 are read");
    stream[4]++;
    cr_expect_eq(rpc_frame_find(&found, stream, 48, 100, &bytes, &eb), MOE_EMISMATCH);
    stream[0]++;
    cr_expect_eq(rpc_frame_find(&found, stream, 48, 100, &bytes, &eb), MOE_EMISMATCH);
    cr_expect_eq(bytes, 0);
}

Test(rpc_wire, refuses_headers_that_promise_what_does_not_exist)
{
    const struct {
        size_t offset;
        unsigned char value;
    } cases[] = {
        {5, 0}, {5, RPC_KIND_END}, {6, 1}, {7, 1}, {16, 0}, {40, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        rpc_header header = rpc_header_make(RPC_KIND_CALL, 0);
        header.incarnation = 1;
        cr_expect_eq(rpc_header_check(&header, NULL), MOE_OK);
        ((unsigned char *)&header)[cases[i].offset] = cases[i].value;
        cr_expect_eq(rpc_header_check(&header, NULL), MOE_EINVAL, "case %zu", i);
    }
}

Test(rpc_wire, tells_services_apart_and_refuses_recursive_ones)
{
    errbuf eb;
    const uint64_t echo = rpc_service_fingerprint(&conclave__test__echo__descriptor);
    cr_expect_eq(echo, rpc_service_fingerprint(&conclave__test__echo__descriptor));
    cr_expect_neq(echo, rpc_service_fingerprint(&conclave__test__recursive__descriptor));
    ProtobufCServiceDescriptor shorter = conclave__test__echo__descriptor;
    shorter.n_methods--;
    cr_expect_neq(echo, rpc_service_fingerprint(&shorter));

    cr_expect_eq(rpc_service_check(&conclave__test__echo__descriptor, &eb), MOE_OK);
    cr_expect_eq(rpc_service_check(&conclave__test__recursive__descriptor, &eb), MOE_EINVAL);
    cr_expect_str_eq(eb.text,
                     "conclave.test.Recursive: message type conclave.test.Tree contains itself");
}

Test(rpc_wire, maps_every_error_to_a_status_and_back_to_the_same_class)
{
    for (int err = 0; err < MOE_ERR_COUNT; err++) {
        const rpc_status status = rpc_status_from_err((moe_err)err);
        cr_expect_eq(status == RPC_OK, err == MOE_OK);
        cr_expect_eq(rpc_status_from_err(rpc_status_to_err(status)), status);
        cr_expect_eq(rpc_status_from_wire((uint32_t)status), status);
    }
    cr_expect_str_eq(rpc_status_name(RPC_DEADLINE_EXCEEDED), "DEADLINE_EXCEEDED");
    cr_expect_str_eq(rpc_status_name((rpc_status)99), "UNKNOWN");
    cr_expect_eq(rpc_status_from_wire(2), RPC_INTERNAL);
}
