#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "loadgen/dataset_impl.h"

#define PROMPT_TOKENS_MIN 4
#define PROMPT_TOKENS_MAX 1024
#define ANSWER_TOKENS_MIN 4
#define SUM_TOKENS_MAX 2048

static moe_err
read_turn(const cJSON *turn, int index, const char **out, errbuf *eb)
{
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(turn, "value");
    if (!cJSON_IsString(value))
        return err_set(eb, MOE_EINVAL, "conversations[%d] must be an object with a text \"value\"",
                       index);
    *out = value->valuestring;
    return MOE_OK;
}

/* A question, and the length of its answer. */
typedef struct exchange {
    const char *question;
    int64_t prompt_len, answer_len;
    bool usable; /* as a first turn; a later one only needs both texts not to be empty */
} exchange;

static moe_err
read_exchange(const dataset_config *c, const cJSON *turn, int index, exchange *out, errbuf *eb)
{
    const char *answer = "";
    *out = (exchange){0};
    moe_err err = read_turn(turn, index, &out->question, eb);
    if (!err) err = read_turn(turn->next, index + 1, &answer, eb);
    if (!err) err = c->count_tokens(c->count_ctx, out->question, &out->prompt_len, eb);
    if (err || out->prompt_len > PROMPT_TOKENS_MAX) return err;
    if (index == 0 && out->prompt_len < PROMPT_TOKENS_MIN) return MOE_OK;
    if (c->output_len > 0)
        out->answer_len = c->output_len;
    else
        err = c->count_tokens(c->count_ctx, answer, &out->answer_len, eb);
    out->usable = !err && out->answer_len >= ANSWER_TOKENS_MIN && *out->question != '\0' &&
                  out->prompt_len + out->answer_len <= SUM_TOKENS_MAX;
    if (c->output_max > 0 && out->answer_len > c->output_max) out->answer_len = c->output_max;
    return err;
}

static moe_err
add_exchange(const exchange *e, dataset *out, errbuf *eb)
{
    strbuf json;
    strbuf_init(&json, PROMPT_BYTES_MAX);
    strbuf_json_string(&json, e->question, strlen(e->question));
    const moe_err err = dataset_add(out, &json, e->prompt_len, e->answer_len, eb);
    strbuf_fini(&json);
    return err;
}

static uint64_t
draw_think_ns(rng *r, double mean_s)
{
    return mean_s > 0 ? (uint64_t)(-log(rng_uniform(r)) * mean_s * (double)NS_PER_S) : 0;
}

/* The turns after the first, as long as there is room for them. */
static moe_err
add_later_turns(const dataset_config *c, const cJSON *turn, dataset *out, errbuf *eb)
{
    prompt *last = &out->prompts[out->count - 1];
    int64_t sum = last->token_count + last->max_tokens;
    rng think;
    rng_init(&think, c->seed + out->count, RNG_LENGTHS);
    for (int t = 1; turn != NULL && turn->next != NULL && out->count < c->count; t++) {
        exchange e;
        if (c->turn_max > 0 && t >= c->turn_max) break;
        moe_err err = read_exchange(c, turn, 2 * t, &e, eb);
        sum += e.prompt_len + e.answer_len;
        if (!err && (!e.usable || sum > DATASET_SESSION_TOKENS_MAX)) break;
        if (!err) err = add_exchange(&e, out, eb);
        if (err) return err;
        last = &out->prompts[out->count - 1];
        last->token_count = -1; /* the answers before it are not known yet */
        last->turn = (uint32_t)t;
        last->think_ns = draw_think_ns(&think, c->think_s);
        turn = turn->next->next;
    }
    return MOE_OK;
}

moe_err
dataset_read_conversation(const dataset_config *c, const cJSON *root, dataset *out, errbuf *eb)
{
    const cJSON *turns = cJSON_GetObjectItemCaseSensitive(root, "conversations");
    if (turns == NULL) turns = cJSON_GetObjectItemCaseSensitive(root, "conversation");
    if (!cJSON_IsArray(turns))
        return err_set(eb, MOE_EINVAL, "conversations must be an array of turns");
    const cJSON *first = turns->child;
    if (first == NULL || first->next == NULL) return MOE_OK;

    exchange e;
    moe_err err = read_exchange(c, first, 0, &e, eb);
    if (err || !e.usable) return err;
    err = add_exchange(&e, out, eb);
    if (!err && c->kind == DATASET_MULTI_TURN) err = add_later_turns(c, first->next->next, out, eb);
    return err;
}

/* ---- expert-skew ---- */

typedef struct member {
    uint32_t domain;
    size_t made; /* its prompt + 1; 0 = not read yet */
    bool useless;
} member;

typedef struct skewed {
    const dataset_config *c;
    const entries *list;
    dataset *out;
    member *members;                    /* [list->count] */
    size_t cursor[DATASET_DOMAINS_MAX]; /* where the search for the next one begins */
    double weights[DATASET_DOMAINS_MAX];
} skewed;

/* The domain's index; a name that is new is added.  SIZE_MAX and an error when it can't be. */
static size_t
find_domain(dataset *out, const char *name, size_t len, errbuf *eb)
{
    for (size_t d = 0; d < out->domain_count; d++) {
        if (strlen(out->domains[d]) == len && memcmp(out->domains[d], name, len) == 0) return d;
    }
    if (out->domain_count == DATASET_DOMAINS_MAX) {
        err_set(eb, MOE_ERANGE, "more than %d domains", DATASET_DOMAINS_MAX);
        return SIZE_MAX;
    }
    char *copy = strndup(name, len);
    if (copy == NULL) {
        err_set(eb, MOE_ENOMEM, "domains: out of memory");
        return SIZE_MAX;
    }
    out->domains[out->domain_count] = copy;
    return out->domain_count++;
}

static moe_err
name_domains(const dataset_config *c, dataset *out, errbuf *eb)
{
    for (const char *at = c->domains; at != NULL && *at != '\0';) {
        const size_t len = strcspn(at, ",");
        if (len == 0 || find_domain(out, at, len, eb) == SIZE_MAX)
            return err_set(eb, MOE_EINVAL, "domains \"%s\": must be 1..%d names with commas",
                           c->domains, DATASET_DOMAINS_MAX);
        at += len + (at[len] == ',');
    }
    return MOE_OK;
}

static moe_err
read_domain(skewed *s, size_t i, errbuf *eb)
{
    cJSON *root;
    const char *name = NULL;
    moe_err err = json_parse(s->list->at[i].text, s->list->at[i].len, &root, eb);
    if (err) return err;
    if (!cJSON_IsObject(root)) err = err_set(eb, MOE_EINVAL, "must be a JSON object");
    if (!err) err = json_get_string(root, "domain", &name, eb);
    if (!err && (name == NULL || *name == '\0'))
        err = err_set(eb, MOE_EINVAL, "has no \"domain\", which expert-skew needs");
    if (!err) {
        const size_t d = find_domain(s->out, name, strlen(name), eb);
        if (d == SIZE_MAX) err = MOE_ERANGE;
        s->members[i].domain = (uint32_t)d;
    }
    cJSON_Delete(root);
    return err;
}

static moe_err
weigh(skewed *s, errbuf *eb)
{
    const dataset_config *c = s->c;
    if (c->skew == DATASET_SKEW_KHOT &&
        (c->skew_hot < 1 || (size_t)c->skew_hot > s->out->domain_count))
        return err_set(eb, MOE_ERANGE, "%lld hot domains: the file has %zu", (long long)c->skew_hot,
                       s->out->domain_count);
    if (c->skew == DATASET_SKEW_ZIPF && !(c->skew_alpha >= 0 && isfinite(c->skew_alpha)))
        return err_set(eb, MOE_ERANGE, "zipf exponent %g: must be 0 or more", c->skew_alpha);
    for (size_t d = 0; d < s->out->domain_count; d++) {
        s->weights[d] = 1;
        if (c->skew == DATASET_SKEW_KHOT) s->weights[d] = d < (size_t)c->skew_hot;
        if (c->skew == DATASET_SKEW_ZIPF) s->weights[d] = pow((double)d + 1, -c->skew_alpha);
    }
    return MOE_OK;
}

static size_t
draw_domain(const skewed *s, rng *r)
{
    double sum = 0;
    for (size_t d = 0; d < s->out->domain_count; d++) {
        sum += s->weights[d];
    }
    double at = rng_uniform(r) * sum;
    size_t last = 0;
    for (size_t d = 0; d < s->out->domain_count; d++) {
        if (s->weights[d] == 0) continue;
        last = d;
        at -= s->weights[d];
        if (at < 0) break;
    }
    return last;
}

/* Make prompt from entry i, or copy the one that was made of it before. */
static moe_err
use_member(skewed *s, size_t i, errbuf *eb)
{
    member *m = &s->members[i];
    dataset *out = s->out;
    if (m->made != 0) {
        out->repeated++;
        return dataset_add_copy(out, m->made - 1, eb);
    }
    cJSON *root;
    const size_t before = out->count;
    moe_err err = json_parse(s->list->at[i].text, s->list->at[i].len, &root, eb);
    if (err) return err;
    err = dataset_read_conversation(s->c, root, out, eb);
    cJSON_Delete(root);
    m->useless = out->count == before;
    if (err || m->useless) return err;
    m->made = out->count;
    out->prompts[before].domain = m->domain;
    return MOE_OK;
}

/* The next usable entry of the domain, round and round. */
static moe_err
add_of_domain(skewed *s, size_t domain, errbuf *eb)
{
    const size_t before = s->out->count;
    for (size_t tried = 0; tried < s->list->count && s->out->count == before; tried++) {
        const size_t i = s->cursor[domain];
        s->cursor[domain] = (i + 1) % s->list->count;
        if (s->members[i].domain != domain || s->members[i].useless) continue;
        const moe_err err = use_member(s, i, eb);
        if (err) return err_wrap(eb, err, "entry %zu", s->list->at[i].number);
    }
    if (s->out->count == before)
        return err_set(eb, MOE_ENOTFOUND, "no usable entry of domain \"%s\"",
                       s->out->domains[domain]);
    return MOE_OK;
}

moe_err
dataset_make_skewed(const dataset_config *c, const entries *list, dataset *out, errbuf *eb)
{
    skewed s = {.c = c, .list = list, .out = out};
    rng r;
    rng_init(&r, c->seed, RNG_SKEW);
    s.members = calloc(list->count + 1, sizeof *s.members);
    moe_err err = s.members ? MOE_OK : err_set(eb, MOE_ENOMEM, "domains: out of memory");
    if (!err) err = name_domains(c, out, eb);
    for (size_t i = 0; !err && i < list->count; i++) {
        err = read_domain(&s, i, eb);
        if (err) err_wrap(eb, err, "entry %zu", list->at[i].number);
    }
    if (!err && list->count > 0) err = weigh(&s, eb);
    while (!err && list->count > 0 && out->count < c->count)
        err = add_of_domain(&s, draw_domain(&s, &r), eb);
    free(s.members);
    return err;
}
