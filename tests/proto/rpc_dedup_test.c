/* rpc_dedup: what is remembered, and what is refused once it was forgotten. */
#include <criterion/criterion.h>

#include <string.h>

#include "proto/rpc_dedup.h"

static rpc_dedup *seen;
static const void *reply;
static size_t len;

static void
teardown(void)
{
    rpc_dedup_free(seen);
    seen = NULL;
}

TestSuite(rpc_dedup, .fini = teardown, .timeout = 10);

static rpc_dedup_verdict
begin(uint64_t incarnation, uint64_t id)
{
    return rpc_dedup_begin(seen, incarnation, id, &reply, &len);
}

Test(rpc_dedup, repeats_the_reply_of_what_was_carried_out)
{
    cr_assert_eq(rpc_dedup_create(&seen, 4, 8), MOE_OK);
    cr_expect_eq(begin(1, 1), RPC_DEDUP_NEW);
    cr_expect_eq(begin(1, 1), RPC_DEDUP_RUNNING);
    cr_expect_null(reply);
    rpc_dedup_finish(seen, 1, 1, "answer", 6);
    cr_assert_eq(begin(1, 1), RPC_DEDUP_DONE);
    cr_expect_eq(len, 6);
    cr_expect_arr_eq(reply, "answer", 6);

    cr_expect_eq(begin(2, 1), RPC_DEDUP_NEW);
    rpc_dedup_finish(seen, 2, 1, "nine byte", 9); /* one more than is kept */
    cr_expect_eq(begin(2, 1), RPC_DEDUP_DONE);
    cr_expect_null(reply);
}

Test(rpc_dedup, refuses_what_it_has_forgotten_and_never_forgets_what_runs)
{
    cr_assert_eq(rpc_dedup_create(&seen, 4, 8), MOE_OK);
    cr_assert_eq(begin(1, 1), RPC_DEDUP_NEW); /* stays running */
    for (uint64_t id = 2; id < 20; id++) {
        cr_assert_eq(begin(1, id), RPC_DEDUP_NEW);
        rpc_dedup_finish(seen, 1, id, "", 0);
    }
    cr_expect_eq(begin(1, 1), RPC_DEDUP_RUNNING);
    cr_expect_eq(begin(1, 3), RPC_DEDUP_STALE);
    cr_expect_eq(begin(1, 19), RPC_DEDUP_DONE);
    cr_expect_eq(begin(2, 3), RPC_DEDUP_NEW);
}

Test(rpc_dedup, serves_more_clients_than_it_remembers)
{
    cr_assert_eq(rpc_dedup_create(&seen, 16, 8), MOE_OK);
    for (uint64_t client = 1; client < 10 * RPC_DEDUP_CLIENT_MAX; client++) {
        cr_assert_eq(begin(client, 5), RPC_DEDUP_NEW);
        rpc_dedup_finish(seen, client, 5, "", 0);
        cr_assert_eq(begin(client, 5), RPC_DEDUP_DONE);
    }
    cr_expect_eq(rpc_dedup_create(&(rpc_dedup *){NULL}, 0, 8), MOE_ERANGE);
}
