/* conclave-eplb: replay a recorded load under a balancing policy, or make up a load. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/flags.h"
#include "common/strbuf.h"
#include "router/eplb_replay.h"
#include "router/routing_synth.h"

#define JSON_BYTES_MAX ((size_t)256 << 20)
#define USAGE                                                                                      \
    "conclave-eplb replay TRACE --workers N [options]\n"                                           \
    "       conclave-eplb synth TRACE [options]"

static int
fail(moe_err err, const errbuf *eb)
{
    fprintf(stderr, "conclave-eplb: %s\n", eb->text[0] ? eb->text : moe_err_name(err));
    return err == MOE_EINVAL || err == MOE_ERANGE ? 2 : 1;
}

/* Parse what follows the subcommand; -1, or the exit status.  *path is the only word. */
static int
parse(flags *f, const flag_spec *specs, size_t count, const char *summary, int argc, char **argv,
      const char **path)
{
    errbuf eb = {""};
    const moe_err err = flags_parse(f, specs, count, argc, argv, &eb);
    if (err) return fail(err, &eb);
    if (f->help) {
        flags_print_help(stdout, USAGE, summary, specs, count);
        return 0;
    }
    if (f->word_count != 1) {
        fprintf(stderr, "usage: %s\n", USAGE);
        return 2;
    }
    *path = f->words[0];
    return -1;
}

/* What replay prints as it goes. */
typedef struct printer {
    bool json;
    strbuf intervals; /* JSON objects */
} printer;

static void
on_interval(void *user, const replay_interval *i)
{
    printer *p = user;
    const eplb_outcome *o = &i->outcome;
    if (!p->json) {
        printf("%9llu  %8.4f %8.4f  %8.4f %8.4f  %7llu %10.1f  %s: %s\n",
               (unsigned long long)i->step, i->balancedness_off, i->balancedness,
               o->balancedness_before, o->balancedness_after, (unsigned long long)o->move_count,
               o->move_bytes / 1e6, eplb_verdict_name(o->verdict), o->text);
        return;
    }
    strbuf_printf(&p->intervals,
                  "%s{\"step\": %llu, \"balancedness_off\": %.6f, \"balancedness\": %.6f, "
                  "\"predicted_before\": %.6f, \"predicted_after\": %.6f, \"moves\": %llu, "
                  "\"bytes\": %.0f, \"adopted\": %s, \"verdict\": \"%s\", \"why\": ",
                  p->intervals.len ? ", " : "", (unsigned long long)i->step, i->balancedness_off,
                  i->balancedness, o->balancedness_before, o->balancedness_after,
                  (unsigned long long)o->move_count, o->move_bytes, i->adopted ? "true" : "false",
                  eplb_verdict_name(o->verdict));
    strbuf_json_string(&p->intervals, o->text, strlen(o->text));
    strbuf_puts(&p->intervals, "}");
}

/* Of whole steps, where their time without balancing is known, else of the experts' part. */
static double
simulated_gain(const replay_config *c, const replay_summary *s)
{
    const double rest =
        c->costs.step_ns > s->experts_ns_off ? c->costs.step_ns - s->experts_ns_off : 0;
    return s->experts_ns > 0 ? (rest + s->experts_ns_off) / (rest + s->experts_ns) : 1;
}

static void
print_summary(const printer *p, const replay_config *c, const replay_summary *s)
{
    if (p->json) {
        printf("{\"policy\": \"%s\", \"workers\": %u, \"redundant\": %u, \"steps\": %llu, "
               "\"intervals\": [%s], \"adopted\": %u, \"moves\": %llu, \"bytes\": %.0f, "
               "\"balancedness_off\": %.6f, \"balancedness\": %.6f, \"longest_decision_s\": %.6f, "
               "\"simulated_experts_ms\": %.6f, \"simulated_experts_off_ms\": %.6f, "
               "\"simulated_gain\": %.6f, \"cut_off\": %s}\n",
               eplb_policy_name(c->policy), c->worker_count, c->redundant,
               (unsigned long long)s->steps, strbuf_text(&p->intervals), s->adopted,
               (unsigned long long)s->move_count, s->move_bytes, s->balancedness_off,
               s->balancedness, s->seconds, s->experts_ns / 1e6, s->experts_ns_off / 1e6,
               simulated_gain(c, s), s->cut_off ? "true" : "false");
        return;
    }
    printf("%llu steps, %u intervals, %u adopted, %llu moves, %.1f MB; balancedness %.4f, without "
           "balancing %.4f; longest decision %.1f ms\n",
           (unsigned long long)s->steps, s->intervals, s->adopted,
           (unsigned long long)s->move_count, s->move_bytes / 1e6, s->balancedness,
           s->balancedness_off, s->seconds * 1e3);
    printf("simulated, every worker on a device of its own: experts %.3f ms a step, without "
           "balancing %.3f ms; throughput of %s %.3f times\n",
           s->experts_ns / 1e6, s->experts_ns_off / 1e6,
           c->costs.step_ns > s->experts_ns_off ? "whole steps" : "experts alone",
           simulated_gain(c, s));
}

static int
replay_file(const char *path, const replay_config *config, bool json)
{
    const void *bytes = NULL;
    size_t len = 0;
    routing_trace trace;
    replay_summary summary;
    errbuf eb = {""};
    printer p = {.json = json};
    strbuf_init(&p.intervals, JSON_BYTES_MAX);
    moe_err err = file_map(path, &bytes, &len, &eb);
    if (!err) err = routing_trace_open(&trace, bytes, len, &eb);
    if (!err && !json)
        printf("     step    linear  balanced    before    after    moves         MB  decision\n");
    if (!err) err = eplb_replay(&trace, config, on_interval, &p, &summary, &eb);
    if (!err && p.intervals.failed) err = err_set(&eb, MOE_ENOMEM, "out of memory");
    if (!err) {
        if (summary.slots_note[0]) fprintf(stderr, "%s\n", summary.slots_note);
        if (summary.cut_off) fprintf(stderr, "%s: %s\n", path, eb.text);
        print_summary(&p, config, &summary);
    } else if (bytes != NULL) { /* else the text names the file already */
        err_wrap(&eb, err, "%s", path);
    }
    file_unmap(bytes, len);
    strbuf_fini(&p.intervals);
    return err ? fail(err, &eb) : 0;
}

static int
run_replay(int argc, char **argv)
{
    const char *path, *policy;
    int64_t workers, redundant, interval, window, groups, nodes;
    bool json;
    replay_config c = {.costs = eplb_default_costs()};
    double expert_mb, move_mbps, row_us, step_ms, read_gbps;
    const flag_spec specs[] = {
        {"workers", NULL, FLAG_INT, &workers, NULL, 1, PLACEMENT_WORKER_MAX, NULL, NULL,
         "expert workers; must be given"},
        {"redundant", "num-redundant-experts", FLAG_INT, &redundant, "0", 0, 65536, NULL, "slots",
         "slots of a layer beyond its experts"},
        {"policy", "eplb-policy", FLAG_CHOICE, &policy, "conclave", 0, 0, "conclave|deepseek", NULL,
         "who decides"},
        {"interval", "step-interval", FLAG_INT, &interval, "3000", 1, 1e9, NULL, "steps",
         "between two decisions"},
        {"window", "window-size", FLAG_INT, &window, "1000", 1, 1e6, NULL, "steps",
         "whose load is looked at"},
        {"groups", NULL, FLAG_INT, &groups, "1", 1, 65536, NULL, NULL, "groups of experts"},
        {"nodes", NULL, FLAG_INT, &nodes, "1", 1, 4096, NULL, NULL, "nodes of the workers"},
        {"expert-mb", NULL, FLAG_NUMBER, &expert_mb, "1", 0, 1e6, NULL, "MB",
         "packed weights of one expert"},
        {"move-mbps", "eplb-move-mbps", FLAG_NUMBER, &move_mbps, "100", 0, 1e9, NULL, "MB/s",
         "what moves may use; 0: moves cost nothing"},
        {"row-us", NULL, FLAG_NUMBER, &row_us, "1", 0, 1e6, NULL, "us", "one row on one worker"},
        {"read-gbps", NULL, FLAG_NUMBER, &read_gbps, "10", 0, 1e6, NULL, "GB/s",
         "one worker's memory, in the simulation; 0: reading takes no time"},
        {"step-ms", NULL, FLAG_NUMBER, &step_ms, "0", 0, 1e6, NULL, "ms",
         "a whole step; 0: not known"},
        {"json", NULL, FLAG_BOOL, &json, "false", 0, 0, NULL, NULL, "one JSON object, no table"},
    };
    flags f = {0};
    workers = 0;
    int status = parse(&f, specs, sizeof specs / sizeof specs[0],
                       "Says what a policy would have done on a recorded load.", argc, argv, &path);
    if (status < 0 && workers == 0) {
        fprintf(stderr, "conclave-eplb: --workers must be given\n");
        status = 2;
    }
    if (status < 0) {
        eplb_policy_parse(policy, &c.policy);
        c.worker_count = (uint32_t)workers;
        c.redundant = (uint32_t)redundant;
        c.step_interval = (uint32_t)interval;
        c.window_size = (uint32_t)window;
        c.num_groups = (uint32_t)groups;
        c.num_nodes = (uint32_t)nodes;
        c.costs.bytes_per_expert = expert_mb * 1e6;
        c.costs.move_bytes_per_s = move_mbps * 1e6;
        c.costs.row_ns = row_us * 1e3;
        c.read_bytes_per_s = read_gbps * 1e9;
        c.costs.step_ns = step_ms * 1e6;
        status = replay_file(path, &c, json);
    }
    flags_fini(&f);
    return status;
}

static moe_err
write_synth(const char *path, const routing_synth_config *c, uint32_t steps, uint32_t tokens,
            uint32_t steps_per_record, errbuf *eb)
{
    const routing_trace_header h = {.num_layers = c->num_layers,
                                    .num_experts = c->num_experts,
                                    .top_k = c->top_k,
                                    .steps_per_record = steps_per_record};
    routing_synth *gate = NULL;
    routing_trace_writer *w = NULL;
    moe_err err = routing_synth_create(&gate, c, eb);
    uint32_t *counts = calloc((size_t)c->num_layers * c->num_experts + 1, sizeof *counts);
    if (!err && counts == NULL) err = err_set(eb, MOE_ENOMEM, "out of memory");
    if (!err) err = routing_trace_create(&w, path, &h, eb);
    for (uint32_t s = 0; s < steps && !err; s++) {
        routing_synth_step(gate, tokens, counts);
        err = routing_trace_append(w, s, counts);
    }
    const moe_err closed = routing_trace_close(w);
    if (!err) err = closed;
    if (err == MOE_EIO && eb->text[0] == '\0') err_set(eb, err, "%s: writing failed", path);
    free(counts);
    routing_synth_free(gate);
    return err;
}

static int
run_synth(int argc, char **argv)
{
    const char *path;
    int64_t layers, experts, top_k, seed, steps, tokens, drift, change, per_record;
    double exponent;
    const flag_spec specs[] = {
        {"layers", NULL, FLAG_INT, &layers, "1", 1, PLACEMENT_LAYER_MAX, NULL, NULL, "layers"},
        {"experts", NULL, FLAG_INT, &experts, "64", 1, PLACEMENT_EXPERT_MAX, NULL, NULL,
         "experts of a layer"},
        {"top-k", NULL, FLAG_INT, &top_k, "8", 1, PLACEMENT_EXPERT_MAX, NULL, NULL,
         "experts of a token"},
        {"exponent", NULL, FLAG_NUMBER, &exponent, "1", 0, 16, NULL, NULL,
         "of Zipf's law; 0: all experts alike"},
        {"seed", NULL, FLAG_INT, &seed, "1", 0, 1e15, NULL, NULL, "of the random numbers"},
        {"steps", NULL, FLAG_INT, &steps, "2000", 1, 1e9, NULL, "steps", "how many"},
        {"tokens", NULL, FLAG_INT, &tokens, "64", 1, 1e6, NULL, "tokens", "in a step"},
        {"drift", NULL, FLAG_INT, &drift, "0", 0, 1e9, NULL, "steps",
         "after which two experts change ranks; 0: never"},
        {"switch", NULL, FLAG_INT, &change, "0", 0, 1e9, NULL, "steps",
         "at which all ranks change; 0: never"},
        {"steps-per-record", NULL, FLAG_INT, &per_record, "1", 1, ROUTING_TRACE_STEPS_MAX, NULL,
         "steps", "summed up in one record"},
    };
    flags f = {0};
    errbuf eb = {""};
    int status = parse(&f, specs, sizeof specs / sizeof specs[0],
                       "Writes the load of a gate that follows Zipf's law.", argc, argv, &path);
    if (status < 0) {
        const routing_synth_config c = {.num_layers = (uint32_t)layers,
                                        .num_experts = (uint32_t)experts,
                                        .top_k = (uint32_t)top_k,
                                        .exponent = exponent,
                                        .seed = (uint64_t)seed,
                                        .drift_steps = (uint32_t)drift,
                                        .switch_step = (uint32_t)change};
        const moe_err err =
            write_synth(path, &c, (uint32_t)steps, (uint32_t)tokens, (uint32_t)per_record, &eb);
        status = err ? fail(err, &eb) : 0;
    }
    flags_fini(&f);
    return status;
}

int
main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "replay") == 0) return run_replay(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "synth") == 0) return run_synth(argc - 1, argv + 1);
    const bool help = argc > 1 && strcmp(argv[1], "--help") == 0;
    fprintf(help ? stdout : stderr, "usage: %s\n", USAGE);
    return help ? 0 : 2;
}
