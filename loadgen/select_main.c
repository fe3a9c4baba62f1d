/* conclave-select: asks a server which experts each of many prompts uses, and keeps those that load
 * the experts most unevenly (or evenly): a data set for conclave-loadgen. */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/flags.h"
#include "loadgen/dataset.h"
#include "loadgen/json_writer.h"
#include "loadgen/select.h"
#include "loadgen/server.h"

typedef struct options {
    const char *base_url, *api_key, *model, *dataset_name, *path, *output;
    int64_t candidates, wanted, output_len, seed;
    bool even, shuffle;
} options;

typedef struct measured {
    dataset set;
    routed_ids *ids; /* [set.count] */
    select_uses uses;
} measured;

static moe_err
count_tokens(void *ctx, const char *text, int64_t *count, errbuf *eb)
{
    void **both = ctx; /* the server, the model's name */
    return server_count_tokens(both[0], both[1], text, count, eb);
}

static moe_err
load(const options *o, server *s, char *model, dataset *out, errbuf *eb)
{
    void *both[] = {s, model};
    const dataset_config config = {
        .kind = strcmp(o->dataset_name, "custom") == 0 ? DATASET_CUSTOM : DATASET_SHAREGPT,
        .count = (size_t)o->candidates,
        .seed = (uint64_t)o->seed,
        .path = o->path,
        .shuffle = o->shuffle,
        .output_len =
            o->output_len != 0 || strcmp(o->dataset_name, "custom") != 0 ? o->output_len : 128,
        .count_tokens = count_tokens,
        .count_ctx = both};
    const moe_err err = dataset_load(&config, out, eb);
    /* A file with fewer entries is repeated from its start; each is a candidate once. */
    if (!err)
        while (out->repeated > 0) {
            free(out->prompts[--out->count].json);
            out->repeated--;
        }
    return err;
}

/* How many experts the model has can't be asked: it is taken from the largest id. */
static moe_err
measure(server *s, const char *model, measured *m, errbuf *eb)
{
    uint32_t experts = 0;
    m->ids = calloc(m->set.count, sizeof *m->ids);
    if (m->ids == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    for (size_t p = 0; p < m->set.count; p++) {
        const moe_err err =
            server_get_routed_experts(s, model, m->set.prompts[p].json, &m->ids[p], eb);
        if (err) return err;
        const size_t count = (size_t)m->ids[p].tokens * m->ids[p].layers * m->ids[p].top_k;
        for (size_t i = 0; i < count; i++) {
            if (m->ids[p].ids[i] >= experts) experts = m->ids[p].ids[i] + 1u;
        }
    }
    moe_err err = select_uses_init(&m->uses, (uint32_t)m->set.count, experts, eb);
    for (size_t p = 0; p < m->set.count && !err; p++)
        err = select_uses_add(&m->uses, &m->ids[p], eb);
    return err;
}

typedef struct choice {
    const measured *m;
    const uint32_t *picks;
    size_t count;
} choice;

/* JSON Lines, for --dataset-name custom. */
static moe_err
write_choice(const void *ctx, FILE *to, errbuf *eb)
{
    const choice *c = ctx;
    moe_err err = MOE_OK;
    for (size_t i = 0; i < c->count && !err; i++) {
        const prompt *p = &c->m->set.prompts[c->picks[i]];
        json_writer w;
        json_writer_init(&w, to);
        json_open(&w, '{');
        json_key(&w, "prompt");
        json_put_json(&w, p->json);
        json_key_number(&w, "max_tokens", (double)p->max_tokens);
        json_key_number(&w, "skew", select_skew(&c->m->uses, &c->picks[i], 1));
        json_close(&w, '}');
        err = json_writer_fini(&w, eb);
    }
    return err;
}

static moe_err
choose(const options *o, const measured *m, errbuf *eb)
{
    char path[4096];
    uint32_t *picks = calloc((size_t)o->wanted, sizeof *picks);
    const size_t count = picks ? select_pick(&m->uses, (size_t)o->wanted, o->even, picks) : 0;
    moe_err err = count > 0 ? MOE_OK : err_set(eb, MOE_ENOMEM, "out of memory");
    const choice c = {.m = m, .picks = picks, .count = count};
    if (!err)
        err = json_save(*o->output == '/' ? "" : ".", o->output + (*o->output == '/'), write_choice,
                        &c, path, sizeof path, eb);
    if (!err)
        printf("%zu of %zu prompts: skew %.3f, all together %.3f (1 = even, %u = one expert for "
               "all)\n",
               count, m->set.count, select_skew(&m->uses, picks, count),
               select_skew(&m->uses, NULL, m->uses.count), m->uses.experts);
    free(picks);
    return err;
}

static moe_err
run(const options *o, errbuf *eb)
{
    server *s;
    char *model = NULL;
    measured m = {0};
    moe_err err = server_open(&s, o->base_url, *o->api_key ? o->api_key : NULL, eb);
    if (err) return err;
    if (*o->model)
        model = strdup(o->model);
    else
        err = server_get_model(s, &model, eb);
    if (!err) err = load(o, s, model, &m.set, eb);
    if (!err) err = measure(s, model, &m, eb);
    if (!err) err = choose(o, &m, eb);
    for (size_t p = 0; m.ids != NULL && p < m.set.count; p++)
        routed_ids_fini(&m.ids[p]);
    free(m.ids);
    select_uses_fini(&m.uses);
    dataset_fini(&m.set);
    free(model);
    server_close(s);
    return err;
}

int
main(int argc, char **argv)
{
    options o = {0};
    const flag_spec specs[] = {
        {"base-url", NULL, FLAG_STRING, &o.base_url, "http://127.0.0.1:8000", 0, 0, NULL, NULL,
         "of the server"},
        {"api-key", NULL, FLAG_STRING, &o.api_key, "", 0, 0, NULL, NULL, "sent as a bearer token"},
        {"model", NULL, FLAG_STRING, &o.model, "", 0, 0, NULL, NULL, "empty = ask the server"},
        {"dataset-name", NULL, FLAG_CHOICE, &o.dataset_name, "sharegpt", 0, 0, "sharegpt|custom",
         NULL, "how --dataset-path is read (docs/loadgen.md)"},
        {"dataset-path", NULL, FLAG_STRING, &o.path, NULL, 0, 0, NULL, NULL, "the candidates"},
        {"num-candidates", NULL, FLAG_INT, &o.candidates, "256", 1, SELECT_PROMPTS_MAX, NULL,
         "prompts", "most that are looked at"},
        {"num-prompts", NULL, FLAG_INT, &o.wanted, "64", 1, SELECT_PROMPTS_MAX, NULL, "prompts",
         "to keep"},
        {"even", NULL, FLAG_BOOL, &o.even, "false", 0, 0, NULL, NULL,
         "keep those that load the experts most evenly"},
        {"output", NULL, FLAG_STRING, &o.output, NULL, 0, 0, NULL, NULL,
         "JSON Lines, for conclave-loadgen --dataset-name custom"},
        {"output-len", NULL, FLAG_INT, &o.output_len, "0", 0, DATASET_TOKENS_MAX, NULL, "tokens",
         "of each answer; 0 = as the data set has it"},
        {"seed", NULL, FLAG_INT, &o.seed, "0", 0, 9e15, NULL, NULL, "of the order of candidates"},
        {"shuffle", NULL, FLAG_BOOL, &o.shuffle, "true", 0, 0, NULL, NULL,
         "look at the file in a drawn order"},
    };
    static const char usage[] = "conclave-select --dataset-path FILE --output FILE [options]";
    flags f = {0};
    errbuf eb = {{0}};
    moe_err err = flags_parse(&f, specs, sizeof specs / sizeof specs[0], argc, argv, &eb);
    const bool help = !err && f.help;
    int rc = 0;
    if (help)
        flags_print_help(stdout, usage,
                         "Keeps the prompts that load a model's experts most unevenly, as a server "
                         "measures it.",
                         specs, sizeof specs / sizeof specs[0]);
    if (!err && !help && (o.path == NULL || o.output == NULL || f.word_count > 0))
        err = err_set(&eb, MOE_EINVAL, "usage: %s", usage);
    if (err) rc = 2;
    if (!err && !help) {
        curl_global_init(CURL_GLOBAL_DEFAULT);
        err = run(&o, &eb);
        curl_global_cleanup();
        if (err) rc = 1;
    }
    if (err) fprintf(stderr, "conclave-select: %s\n", eb.text);
    flags_fini(&f);
    return rc;
}
