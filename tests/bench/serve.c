/* serve: the whole stack, started by deploy/conclave, under conclave-loadgen.
 *
 * Prompts are random token ids, other ones in every repeat, so that no prefix cache helps. */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/file.h"
#include "common/json.h"
#include "tests/bench/bench.h"
#include "tests/bench/process.h"

#define RESULT_BYTES_MAX ((size_t)64 << 20)
#define READY_TIMEOUT_S 600

typedef struct serve_options {
    bench_options common;
    const char *model, *base_url, *bin_dir, *deploy, *up_flags, *loadgen_flags;
    int64_t workers, concurrency, prompts, input_len, output_len, seed;
    const char *dtype;
} serve_options;

typedef struct serve_run {
    const serve_options *o;
    char dir[32];  /* run directory and results */
    char url[256]; /* of the API */
    bool started;
} serve_run;

/* What is read from a result file, and how it is called here. */
static const struct {
    const char *key, *test, *unit;
    bool lower_is_better;
} quantities[] = {
    {"output_throughput", "output", "tok/s", false},
    {"total_token_throughput", "total", "tok/s", false},
    {"median_ttft_ms", "ttft.median", "ms", true},
    {"p99_ttft_ms", "ttft.p99", "ms", true},
    {"median_tpot_ms", "tpot.median", "ms", true},
    {"p99_tpot_ms", "tpot.p99", "ms", true},
};
#define QUANTITIES (sizeof quantities / sizeof quantities[0])

/* A port nobody has at this moment; 0 = none. */
static uint16_t
free_port(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    const int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const bool bound = s >= 0 && bind(s, (struct sockaddr *)&at, size) == 0 &&
                       getsockname(s, (struct sockaddr *)&at, &size) == 0;
    if (s >= 0) close(s);
    return bound ? ntohs(at.sin_port) : 0;
}

static moe_err
run_command(const command *c, errbuf *eb)
{
    int status = 0;
    const moe_err err = process_run(c, NULL, &status, eb);
    if (err || status == 0) return err;
    return err_set(eb, MOE_EIO, "%s %s ended with status %d", c->words[0], c->words[1], status);
}

static moe_err
start_stack(serve_run *s, errbuf *eb)
{
    const serve_options *o = s->o;
    const uint16_t port = free_port();
    if (port == 0) return err_set(eb, MOE_EIO, "no free port");
    snprintf(s->url, sizeof s->url, "http://127.0.0.1:%u", port);
    setenv("CONCLAVE_BIN_DIR", o->bin_dir, 1);
    command c = {0};
    command_add(&c, "%s", o->deploy);
    command_add(&c, "up");
    command_add(&c, "--run-dir=%s", s->dir);
    command_add(&c, "--model=%s", o->model);
    command_add(&c, "--workers=%lld", (long long)o->workers);
    command_add(&c, "--dtype=%s", o->dtype);
    command_add(&c, "--port=%u", port);
    command_add(&c, "--ready-timeout-s=%d", READY_TIMEOUT_S);
    if (o->concurrency > 0) command_add(&c, "--max-num-seqs=%lld", (long long)o->concurrency);
    command_add_words(&c, o->up_flags);
    const moe_err err = run_command(&c, eb);
    s->started = !err;
    command_fini(&c);
    return err;
}

/* Also after an interruption, hence not by process_run(). */
static void
stop_stack(serve_run *s)
{
    if (!s->started) return;
    errbuf eb = {{0}};
    process p;
    command c = {0};
    command_add(&c, "%s", s->o->deploy);
    command_add(&c, "down");
    command_add(&c, "--run-dir=%s", s->dir);
    if (process_start(&p, "down", &c, "/dev/null", &eb) != MOE_OK)
        bench_fail("serve", eb.text);
    else
        process_wait(&p);
    command_fini(&c);
}

static moe_err
load(serve_run *s, uint32_t round, bool warm, errbuf *eb)
{
    const serve_options *o = s->o;
    command c = {0};
    command_add(&c, "%s/conclave-loadgen", o->bin_dir);
    command_add(&c, "--base-url=%s", s->url);
    command_add(&c, "--num-prompts=%lld", (long long)(warm ? 1 : o->prompts));
    command_add(&c, "--max-concurrency=%lld", (long long)o->concurrency);
    command_add(&c, "--random-input-len=%lld", (long long)o->input_len);
    command_add(&c, "--random-output-len=%lld", (long long)o->output_len);
    command_add(&c, "--ignore-eos");
    command_add(&c, "--no-progress");
    command_add(&c, "--percentiles=99");
    command_add(&c, "--seed=%lld", (long long)o->seed + round);
    command_add(&c, "--result-dir=%s", s->dir);
    command_add(&c, "--result-filename=result.json");
    command_add_words(&c, o->loadgen_flags);
    char *text = NULL; /* its own report: not shown, this one's stands for it */
    int status = 0;
    moe_err err = process_run(&c, &text, &status, eb);
    if (!err && status != 0)
        err = err_set(eb, MOE_EIO, "conclave-loadgen ended with status %d", status);
    free(text);
    command_fini(&c);
    return err;
}

static moe_err
read_result(const serve_run *s, samples out[QUANTITIES], errbuf *eb)
{
    char path[64], *text = NULL;
    size_t len = 0;
    cJSON *j = NULL;
    snprintf(path, sizeof path, "%s/result.json", s->dir);
    moe_err err = file_read(path, RESULT_BYTES_MAX, &text, &len, eb);
    if (!err) err = json_parse(text, len, &j, eb);
    for (size_t i = 0; i < QUANTITIES && !err; i++) {
        double v = -1;
        err = json_get_double(j, quantities[i].key, 0, 1e12, &v, eb);
        if (!err && v < 0) err = err_set(eb, MOE_EINVAL, "%s: no \"%s\"", path, quantities[i].key);
        if (!err) samples_add(&out[i], v);
    }
    cJSON_Delete(j);
    free(text);
    return err;
}

static moe_err
measure(serve_run *s, errbuf *eb)
{
    const serve_options *o = s->o;
    samples values[QUANTITIES];
    memset(values, 0, sizeof values);
    moe_err err = load(s, 1000000, true, eb);
    for (int64_t r = 0; r < o->common.repeat && !err; r++) {
        err = load(s, (uint32_t)r, false, eb);
        if (!err) err = read_result(s, values, eb);
    }
    if (err) return err;
    report out = {.out = stdout, .bench = "serve", .json = o->common.json};
    for (size_t i = 0; i < QUANTITIES; i++) {
        result x = {.unit = quantities[i].unit,
                    .lower_is_better = quantities[i].lower_is_better,
                    .values = values[i]};
        snprintf(x.test, sizeof x.test, "%s.c%lld.in%lld.out%lld", quantities[i].test,
                 (long long)o->concurrency, (long long)o->input_len, (long long)o->output_len);
        report_result(&out, &x);
    }
    return MOE_OK;
}

/* What `down` leaves, and the results; the folder is this run's own. */
static void
remove_dir(const serve_run *s)
{
    static const char *const kept[] = {"result.json", "lock", "fleet", "frontend.log",
                                       "router-0.log"};
    char path[96];
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", s->dir, kept[i]);
        unlink(path);
    }
    for (int64_t w = 0; w < s->o->workers; w++) {
        snprintf(path, sizeof path, "%s/worker-%lld.log", s->dir, (long long)w);
        unlink(path);
    }
    rmdir(s->dir);
}

/* deploy/conclave of the tree that a build folder's bin/ lies in. */
static void
find_deploy(serve_options *o, char *out, size_t size)
{
    if (o->deploy != NULL) return;
    snprintf(out, size, "%s/../../deploy/conclave", o->bin_dir);
    o->deploy = access(out, X_OK) == 0 ? out : "deploy/conclave";
}

static int
bad_option(const char *text)
{
    fprintf(stderr, "conclave-bench serve: %s\n", text);
    return 2;
}

static int
start(serve_options *o, int argc, char **argv)
{
    char own[4096], script[4200];
    errbuf eb = {{0}};
    if (o->base_url == NULL && o->model == NULL)
        return bad_option("--model (or --base-url) is missing");
    if (o->base_url == NULL && !file_is_folder(o->model)) return bad_option("--model: no folder");
    if (o->base_url != NULL && o->common.compare != NULL)
        return bad_option("--compare starts its own stacks: not with --base-url");
    if (o->common.compare != NULL) return bench_compare("serve", &o->common, argc, argv);
    bench_bin_dir(own, sizeof own);
    if (o->bin_dir == NULL) o->bin_dir = own;
    find_deploy(o, script, sizeof script);
    serve_run s = {.o = o, .dir = "/tmp/conclave-bench-XXXXXX"};
    process_catch_signals();
    if (mkdtemp(s.dir) == NULL) return bench_fail("serve", "can't make a folder in /tmp");
    moe_err err = MOE_OK;
    if (o->base_url != NULL)
        snprintf(s.url, sizeof s.url, "%s", o->base_url);
    else
        err = start_stack(&s, &eb);
    if (!err) err = measure(&s, &eb);
    stop_stack(&s);
    remove_dir(&s);
    return err ? bench_fail("serve", eb.text) : 0;
}

int
bench_serve(int argc, char **argv)
{
    serve_options o = {0};
    const flag_spec specs[] = {
        BENCH_SPECS(o.common, "3"),
        BENCH_COMPARE_SPECS(o.common),
        {"model", NULL, FLAG_STRING, &o.model, NULL, 0, 0, NULL, NULL, "checkpoint folder"},
        {"base-url", NULL, FLAG_STRING, &o.base_url, NULL, 0, 0, NULL, NULL,
         "load a server that runs already instead of starting one"},
        {"workers", NULL, FLAG_INT, &o.workers, "2", 1, 64, NULL, NULL, "expert workers"},
        {"dtype", NULL, FLAG_CHOICE, &o.dtype, "bf16", 0, 0, "f32|float32|bf16|bfloat16|int8|int4",
         NULL, "the experts' weights"},
        {"concurrency", "max-concurrency", FLAG_INT, &o.concurrency, "32", 1, 65536, NULL,
         "requests", "requests in flight, and --max-num-seqs of the stack"},
        {"num-prompts", NULL, FLAG_INT, &o.prompts, "64", 1, 1000000, NULL, NULL,
         "requests of one measurement"},
        {"input-len", "random-input-len", FLAG_INT, &o.input_len, "128", 1, 1 << 20, NULL, "tokens",
         "of a prompt"},
        {"output-len", "random-output-len", FLAG_INT, &o.output_len, "64", 1, 1 << 20, NULL,
         "tokens", "of an answer"},
        {"seed", NULL, FLAG_INT, &o.seed, "1", 0, 1e9, NULL, NULL, "of the prompts"},
        {"bin-dir", NULL, FLAG_STRING, &o.bin_dir, NULL, 0, 0, NULL, NULL,
         "where the programs are (default: beside this one)"},
        {"deploy", NULL, FLAG_STRING, &o.deploy, NULL, 0, 0, NULL, NULL,
         "the script that starts the stack (default: deploy/conclave of this tree)"},
        {"up-flags", NULL, FLAG_STRING, &o.up_flags, NULL, 0, 0, NULL, NULL,
         "more options of `conclave up`, separated by spaces"},
        {"loadgen-flags", NULL, FLAG_STRING, &o.loadgen_flags, NULL, 0, 0, NULL, NULL,
         "more options of conclave-loadgen"},
    };
    flags f;
    int rc = bench_parse(&f, "serve", "Measures the whole stack under conclave-loadgen.", specs,
                         sizeof specs / sizeof specs[0], argc, argv);
    if (rc == BENCH_GO_ON) rc = start(&o, argc, argv);
    flags_fini(&f);
    return rc;
}
