/* Many clients that come and go: no error but 429, and nothing is left behind. */
#include <criterion/criterion.h>

#include <curl/curl.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "tests/integration/fleet.h"
#include "tests/integration/stream.h"

#define STREAMS 200

static fleet f;
static stream streams[STREAMS];

TestSuite(chaos, .timeout = 240, .fini = fleet_clean_up);

static unsigned
open_files(const fleet_process *p)
{
    char path[64];
    unsigned count = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)p->pid);
    DIR *d = opendir(path);
    cr_assert_not_null(d);
    while (readdir(d) != NULL)
        count++;
    closedir(d);
    return count;
}

static void
wait_for_quiet(void)
{
    fleet_wait_metric(&f, "vllm:num_requests_running", 0);
    fleet_wait_metric(&f, "vllm:num_requests_waiting", 0);
    fleet_wait_metric(&f, "conclave:kv_blocks_used", 0);
}

static void
make_streams(uint64_t seed, uint32_t count)
{
    memset(streams, 0, sizeof streams);
    for (uint32_t i = 0; i < count; i++) {
        stream *s = &streams[i];
        const uint64_t draw = hash_combine(seed, i);
        const uint32_t prompt_len = 1 + (uint32_t)(draw % 200),
                       tokens = 1 + (uint32_t)(draw >> 10) % 60;
        if ((draw >> 20) % 2) s->leave_after = 1 + (uint32_t)(draw >> 24) % tokens;
        snprintf(s->url, sizeof s->url, "%s", f.url);
        size_t n = (size_t)snprintf(s->body, sizeof s->body,
                                    "{\"stream\":true,\"ignore_eos\":true,\"max_tokens\":%u,"
                                    "\"temperature\":1,\"prompt\":\"",
                                    tokens);
        for (uint32_t j = 0; j < prompt_len && n + 40 < sizeof s->body; j++) {
            s->body[n++] = "abcdefgh ijklm nop "[hash_combine(draw, j) % 19];
        }
        snprintf(s->body + n, sizeof s->body - n, "\"}");
    }
}

Test(chaos, two_hundred_streams_that_leave_at_random_leave_nothing_behind)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
    const uint32_t rounds = FLEET_QUICK ? 1 : 3;
    fleet_start(&f, &(fleet_options){
                        .router_flags = "--max-num-seqs=16 --num-kv-blocks=256 --max-model-len=512",
                        .frontend_flags = "--max-waiting-seqs=150"});
    unsigned complete = 0, left = 0, refused = 0, base_files = 0;
    for (uint32_t round = 0; round < rounds; round++) {
        make_streams(round, STREAMS);
        for (uint32_t i = 0; i < STREAMS; i++) {
            stream_start(&streams[i]);
        }
        for (uint32_t i = 0; i < STREAMS; i++) {
            stream *s = &streams[i];
            stream_join(s);
            refused += s->status == 429;
            left += s->left;
            complete += s->done;
            cr_expect(s->status == 429 || s->left || s->done, "stream %u: status %ld, %s", i,
                      s->status, s->error);
            if (s->status != 429) cr_expect_str_eq(s->error, "", "stream %u", i);
            stream_fini(s);
        }
        wait_for_quiet();
        for (uint32_t i = 0; i < f.process_count; i++) {
            cr_expect(fleet_is_running(&f.processes[i]), "%s died", f.processes[i].name);
        }
        uint64_t since = 0;
        const fleet_process *frontend = fleet_find(&f, "frontend");
        if (round == 0) base_files = open_files(frontend);
        while (open_files(frontend) > base_files + 2)
            fleet_pause(&since, "the frontend to close its clients' sockets");
    }
    printf("%u streams complete, %u left early, %u refused with 429\n", complete, left, refused);
    fflush(stdout);
    cr_expect_gt(complete, 0);
    cr_expect_gt(left, 0);
    fleet_stop(&f);
    curl_global_cleanup();
}
