/* fetch: experts that are copied from another worker have its bytes; whatever that worker does
 * instead (another hash, a short block, a refusal, silence, its end), they come from files. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/run_dir.h"
#include "exchange/wire.h"
#include "expert_worker/fetcher.h"
#include "tests/support/paths.h"

#define FINGERPRINT 77u
#define EXPERTS 8u

/* What the peer does with a block. */
typedef enum conduct { GIVES, SPOILS, CUTS, REFUSES, IS_SILENT } conduct;

typedef struct fake_peer {
    Conclave__Worker_Service base; /* first */
    rpc_server *server;
    char url[128];
    conduct conduct;
    uint32_t good_blocks;    /* that come before it does so */
    _Atomic uint32_t served; /* blocks */
    rpc_call *silent[16];
    _Atomic uint32_t silent_count;
    char block[FETCH_BLOCK_BYTES];
} fake_peer;

static checkpoint *ckpt;
static const model_config *model;
static pool *threads;
static expert_layout layout;
static expert_store *store, *all; /* the one under test; what peers host: everything */
static run_dir run;
static fake_peer peers[2];
static fetcher *f;
static Conclave__HostRequest request;
static store_growth growth;
static uint32_t block_bytes;
static bool far_only;
static char *urls[2];
static uint32_t ids[] = {1, 2, 4, 5, 6}, peer_of[] = {1, 1, 1, 1, 1};
static uint64_t hashes[5];
static errbuf eb;

static void
on_fetch(Conclave__Worker_Service *base, const Conclave__FetchRequest *r,
         Conclave__FetchReply_Closure closure, void *call)
{
    fake_peer *p = (fake_peer *)base;
    conduct now = p->served++ < p->good_blocks ? GIVES : p->conduct;
    Conclave__FetchReply reply = CONCLAVE__FETCH_REPLY__INIT;
    if (now == GIVES) {
        fetch_serve(all, FINGERPRINT, r, p->block, call);
    } else if (now == REFUSES) {
        rpc_fail(call, RPC_UNAVAILABLE, "told to refuse");
    } else if (now == IS_SILENT) {
        if (p->silent_count < 16) p->silent[p->silent_count++] = call;
    } else {
        cr_assert(expert_store_read(all, r->expert, r->offset, r->bytes, p->block));
        if (now == SPOILS) p->block[r->bytes / 2] ^= 1;
        reply.data =
            (ProtobufCBinaryData){now == CUTS ? r->bytes - 1 : r->bytes, (uint8_t *)p->block};
        closure(&reply, call);
    }
}

static void
start_peer(fake_peer *p, uint32_t index)
{
    conclave__worker__init(&p->base, NULL);
    p->base.fetch = on_fetch;
    snprintf(p->url, sizeof p->url, "ipc://%s/p%u", run.path, index);
    const rpc_server_options options = {
        .url = p->url, .service = &p->base.base, .message_bytes_max = 16u << 20};
    cr_assert_eq(rpc_server_start(&p->server, &options, &eb), MOE_OK, "%s", eb.text);
    urls[index] = p->url;
}

static void
setup(void)
{
    char path[512], dir[64] = "/tmp/conclave-fetch-XXXXXX";
    static const uint32_t every[] = {0, 1, 2, 3, 4, 5, 6, 7}, first[] = {0, 3};
    memset(peers, 0, sizeof peers);
    for (size_t i = 0; i < sizeof peer_of / sizeof peer_of[0]; i++)
        peer_of[i] = 1;
    block_bytes = 0;
    far_only = false;
    f = NULL;
    cr_assert_not_null(mkdtemp(dir));
    cr_assert_eq(run_dir_open(&run, dir, &eb), MOE_OK, "%s", eb.text);
    golden_path(path, sizeof path, "models/base");
    cr_assert_eq(checkpoint_open(&ckpt, path, &eb), MOE_OK, "%s", eb.text);
    model = checkpoint_config(ckpt);
    cr_assert_eq(model->num_layers * model->num_experts, EXPERTS);
    cr_assert_eq(pool_create(&threads, 1), MOE_OK);
    expert_layout_init(&layout, DTYPE_F32, model, 0, model->intermediate_size);
    cr_assert_eq(expert_store_create(&all, ckpt, &layout, every, 8, threads, NULL, &eb), MOE_OK);
    cr_assert_eq(expert_store_create(&store, ckpt, &layout, first, 2, threads, NULL, &eb), MOE_OK);
    start_peer(&peers[0], 0);
    start_peer(&peers[1], 1);
    conclave__host_request__init(&request);
    request.experts = ids;
    request.peers = urls;
    request.n_peers = 2;
    request.peer_of = peer_of;
    request.hashes = hashes;
    request.n_experts = request.n_peer_of = request.n_hashes = sizeof ids / sizeof ids[0];
    for (size_t i = 0; i < request.n_experts; i++)
        cr_assert(expert_store_hash(all, ids[i], &hashes[i]));
    growth = (store_growth){.checkpoint = ckpt, .pool = threads};
}

static void
teardown(void)
{
    fetcher_free(f);
    for (uint32_t i = 0; i < 2; i++) {
        rpc_server_stop(peers[i].server);
        for (uint32_t c = 0; c < peers[i].silent_count; c++)
            rpc_fail(peers[i].silent[c], RPC_UNAVAILABLE, "the test is over");
    }
    expert_store_free(store);
    expert_store_free(all);
    pool_free(threads);
    checkpoint_close(ckpt);
    cr_expect_eq(rmdir(run.path), 0, "something is left in %s", run.path);
}

TestSuite(fetch, .init = setup, .fini = teardown, .timeout = 60);

static const char *
slot(const expert_store *s, uint32_t id)
{
    return expert_store_slot(s, id / model->num_experts, id % model->num_experts);
}

/* Host all that is asked for; bytes are right wherever they came from. */
static void
host(void)
{
    const fetcher_config config = {.request = &request,
                                   .layout = layout,
                                   .fingerprint = FINGERPRINT,
                                   .far_only = far_only,
                                   .block_bytes = block_bytes};
    cr_assert_eq(fetcher_create(&f, &config, &eb), MOE_OK, "%s", eb.text);
    growth.source = (weight_source){fetcher_fill, f, true};
    cr_assert_eq(expert_store_host(store, &growth, ids, (uint32_t)request.n_experts, &eb), MOE_OK,
                 "%s", eb.text);
    for (uint32_t id = 0; id < EXPERTS; id++) {
        if (id == 7) continue;
        cr_assert_not_null(slot(store, id), "expert %u", id);
        cr_expect_eq(memcmp(slot(store, id), slot(all, id), layout.slot_bytes), 0, "expert %u", id);
    }
}

static void
expect_report(uint32_t copied, uint32_t failures)
{
    uint64_t bytes;
    uint32_t failed;
    fetcher_get_report(f, &bytes, &failed);
    cr_expect_eq(bytes, copied * layout.slot_bytes, "%llu bytes", (unsigned long long)bytes);
    cr_expect_eq(failed, failures, "%u failures", failed);
}

Test(fetch, copies_what_peers_host)
{
    peer_of[2] = 2;
    peer_of[4] = 0; /* nobody has it */
    host();
    expect_report(4, 0);
    cr_expect_eq(peers[0].served, 3);
    cr_expect_eq(peers[1].served, 1);
}

Test(fetch, copies_experts_of_many_blocks)
{
    block_bytes = (uint32_t)layout.slot_bytes / 7; /* and a short one */
    host();
    expect_report(5, 0);
    cr_expect_eq(peers[0].served, 5 * 8, "%u blocks", peers[0].served);
}

Test(fetch, takes_files_when_the_end_of_an_expert_is_another)
{
    block_bytes = (uint32_t)layout.slot_bytes / 4;
    peers[0].good_blocks = 6;
    peers[0].conduct = SPOILS; /* of the second expert, the third and fourth block */
    host();
    expect_report(1, 4);
}

Test(fetch, asks_no_peer_of_this_host_when_only_others_are_worth_it)
{
    far_only = true;
    host();
    expect_report(0, 0);
    cr_expect_eq(peers[0].served, 0);
}

/* A peer that gave one expert and then does as told is not asked for another. */
static void
expect_falls_back(conduct what)
{
    peers[0].conduct = what;
    peers[0].good_blocks = 1;
    host();
    expect_report(1, 4);
    cr_expect_eq(peers[0].served, 2, "%u blocks were asked for", peers[0].served);
}

Test(fetch, takes_files_when_a_block_was_spoiled)
{
    expect_falls_back(SPOILS);
}

Test(fetch, takes_files_when_a_block_is_short)
{
    expect_falls_back(CUTS);
}

Test(fetch, takes_files_when_the_peer_refuses)
{
    expect_falls_back(REFUSES);
}

Test(fetch, takes_files_when_the_peer_hangs)
{
    expect_falls_back(IS_SILENT);
}

Test(fetch, takes_files_when_the_peer_is_gone_and_asks_the_others)
{
    rpc_server_stop(peers[0].server);
    peers[0].server = NULL;
    peer_of[3] = 2;
    host();
    expect_report(1, 4);
}

static void
nothing_to_wait_for(void *arg)
{
    (void)arg;
}

Test(fetch, takes_files_when_the_peer_hosts_other_ones)
{
    expert_store_release(all, ids, 1, nothing_to_wait_for, NULL);
    request.n_experts = request.n_peer_of = request.n_hashes = 1;
    const fetcher_config config = {
        .request = &request, .layout = layout, .fingerprint = FINGERPRINT};
    cr_assert_eq(fetcher_create(&f, &config, &eb), MOE_OK, "%s", eb.text);
    growth.source = (weight_source){fetcher_fill, f, true};
    cr_assert_eq(expert_store_host(store, &growth, ids, 1, &eb), MOE_OK, "%s", eb.text);
    expect_report(0, 1);
    cr_expect_not_null(slot(store, 1));
}

Test(fetch, reads_no_faster_than_it_is_told)
{
    request.bytes_per_s = growth.bytes_per_s = 25 * layout.slot_bytes; /* 5 of them: 200 ms */
    const uint64_t start = clock_now_ns();
    host();
    cr_expect_geq(clock_now_ns() - start, 200 * NS_PER_MS);
    expect_report(5, 0);
}

Test(fetch, gives_up_when_it_is_cancelled)
{
    _Atomic bool cancel = true;
    const fetcher_config config = {
        .request = &request, .layout = layout, .fingerprint = FINGERPRINT, .cancel = &cancel};
    cr_assert_eq(fetcher_create(&f, &config, &eb), MOE_OK, "%s", eb.text);
    growth.source = (weight_source){fetcher_fill, f, true};
    growth.cancel = &cancel;
    cr_expect_eq(expert_store_host(store, &growth, ids, 5, &eb), MOE_ECLOSED);
    expect_report(0, 0);
    cr_expect_eq(peers[0].served, 0);
}

/* ---- what is not accepted ---- */

static Conclave__FetchRequest
good_request(void)
{
    Conclave__FetchRequest r;
    fetch_describe(&r, &layout, FINGERPRINT);
    r.expert = 1;
    r.bytes = 100;
    return r;
}

static void
expect_unfit(const Conclave__FetchRequest *r, moe_err err, const char *text)
{
    eb.text[0] = '\0';
    cr_expect_eq(fetch_check(r, &layout, FINGERPRINT, &eb), err, "%s: %s", text, eb.text);
    cr_expect_not_null(strstr(eb.text, text), "\"%s\" is not said: %s", text, eb.text);
}

Test(fetch, gives_nothing_that_would_mean_something_else)
{
    Conclave__FetchRequest r = good_request();
    cr_expect_eq(fetch_check(&r, &layout, FINGERPRINT, &eb), MOE_OK, "%s", eb.text);
    r.fingerprint++;
    expect_unfit(&r, MOE_EMISMATCH, "model");
    r = good_request();
    r.pack_version++;
    expect_unfit(&r, MOE_EMISMATCH, "pack_version");
    r = good_request();
    r.width_begin++;
    expect_unfit(&r, MOE_EMISMATCH, "width_begin");
    r = good_request();
    r.width_end--;
    expect_unfit(&r, MOE_EMISMATCH, "width_end");
    r = good_request();
    r.slot_bytes *= 2;
    expect_unfit(&r, MOE_EMISMATCH, "slot_bytes");
    r = good_request();
    r.dtype = (char *)(uintptr_t) "int8";
    expect_unfit(&r, MOE_EMISMATCH, "dtype");
    r = good_request();
    r.bytes = 0;
    expect_unfit(&r, MOE_EINVAL, "0 bytes");
    r.bytes = FETCH_BLOCK_BYTES + 1;
    expect_unfit(&r, MOE_EINVAL, "1048577 bytes");
    r.bytes = 2;
    r.offset = layout.slot_bytes - 1;
    expect_unfit(&r, MOE_EINVAL, "2 bytes at");
    r.offset = UINT64_MAX;
    expect_unfit(&r, MOE_EINVAL, "2 bytes at");
    r.bytes = 1;
    r.offset = layout.slot_bytes - 1;
    cr_expect_eq(fetch_check(&r, &layout, FINGERPRINT, &eb), MOE_OK, "%s", eb.text);
}

static void
expect_bad_lists(const char *text)
{
    const fetcher_config config = {
        .request = &request, .layout = layout, .fingerprint = FINGERPRINT};
    eb.text[0] = '\0';
    cr_expect_eq(fetcher_create(&f, &config, &eb), MOE_EINVAL);
    cr_expect_null(f);
    cr_expect_not_null(strstr(eb.text, text), "\"%s\" is not said: %s", text, eb.text);
}

Test(fetch, refuses_lists_that_do_not_fit_each_other)
{
    static char overlong[RPC_URL_MAX + 1];
    memset(overlong, 'x', RPC_URL_MAX);
    request.n_hashes--;
    expect_bad_lists("hashes of 4");
    request.n_hashes++;
    request.n_peer_of = 0;
    expect_bad_lists("peers of 0");
    request.n_peer_of = request.n_experts;
    peer_of[2] = 3;
    expect_bad_lists("peer 3 of 2");
    peer_of[2] = 1;
    urls[1] = overlong;
    expect_bad_lists("URL of peer 1");
    urls[1] = peers[1].url;
    request.n_peers = WORKER_MAX + 1;
    expect_bad_lists("257 peers");
}

Test(fetch, reads_parts_of_what_is_hosted_only)
{
    char part[64];
    cr_expect(expert_store_read(all, 2, layout.slot_bytes - 64, 64, part));
    cr_expect_arr_eq(part, slot(all, 2) + layout.slot_bytes - 64, 64);
    cr_expect_not(expert_store_read(all, 2, layout.slot_bytes - 63, 64, part));
    cr_expect_not(expert_store_read(all, 2, UINT64_MAX, 64, part));
    cr_expect_not(expert_store_read(all, EXPERTS, 0, 64, part));
    cr_expect_not(expert_store_read(store, 1, 0, 64, part), "it is not hosted");
}
