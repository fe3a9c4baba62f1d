/* dataset: the prompts of a run, and how many tokens to ask for.
 *
 *   random             token ids drawn at random: exact lengths, no text, no shared prefix unless
 *                      asked for
 *   prefix_repetition  token ids: one of prefix_count shared prefixes, then a suffix of its own
 *   sharegpt           conversations; turn 1 is the prompt, the length of turn 2 is max_tokens
 *   multi-turn         the same file; a conversation is a session of one request for each question,
 *                      sent when the answer to the one before has come
 *   expert-skew        the same file, whose conversations have a "domain"; domains are chosen with
 *                      the frequencies asked for, so that their experts are too
 *   custom             one JSON object a line: {"prompt": text or [ids], "max_tokens": n
 * (optional)} trace              a recorded load: one request a row, with its time and its lengths
 *
 * A conversation is used if 4 <= prompt <= 1024, answer >= 4 and prompt + answer <= 2048 tokens
 * (the filter of the published study); multi-turn applies it to the first turn, and cuts a session
 * where it would grow past SESSION_TOKENS_MAX.  Files are read in the order that the seed shuffles
 * them to, unless shuffle is off; a trace keeps its order in time.  A file with too few usable
 * entries is repeated from its start; a trace can't be.
 *
 * Threads: one at a time for each dataset.
 */
#ifndef MOE_LOADGEN_DATASET_H
#define MOE_LOADGEN_DATASET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define DATASET_PROMPTS_MAX (1u << 22)
#define DATASET_TOKENS_MAX (1u << 20)
#define DATASET_DOMAINS_MAX 64
#define DATASET_SESSION_TOKENS_MAX 2048

typedef struct prompt {
    char *json;          /* owned; JSON text: a string, or an array of token ids */
    int64_t token_count; /* -1 = only the server can tell */
    int64_t max_tokens;
    uint32_t turn;       /* of its session; turn t > 0 continues the prompt before it in the set */
    uint64_t think_ns;   /* from the end of the turn before to the sending of this one */
    uint64_t arrival_ns; /* of a timed set: from its first request */
    uint32_t domain;     /* of expert-skew: an index into dataset.domains */
} prompt;

typedef struct dataset {
    prompt *prompts; /* [count] */
    size_t count;
    size_t repeated;                    /* how many of them are repetitions of earlier ones */
    bool timed;                         /* the file said when each was sent */
    char *domains[DATASET_DOMAINS_MAX]; /* [domain_count], owned */
    size_t domain_count;
} dataset;

/* How many tokens is this text?  The data set does not know a tokenizer; a server does. */
typedef moe_err (*dataset_count_fn)(void *ctx, const char *text, int64_t *count, errbuf *eb);

typedef enum dataset_kind {
    DATASET_RANDOM,
    DATASET_PREFIX_REPETITION,
    DATASET_SHAREGPT,
    DATASET_MULTI_TURN,
    DATASET_EXPERT_SKEW,
    DATASET_CUSTOM,
    DATASET_TRACE
} dataset_kind;

typedef enum dataset_skew {
    DATASET_SKEW_UNIFORM,
    DATASET_SKEW_KHOT, /* only the first skew_hot domains, equally often */
    DATASET_SKEW_ZIPF  /* the r-th domain with weight r^-skew_alpha */
} dataset_skew;

typedef struct dataset_config {
    dataset_kind kind;
    size_t count; /* prompts wanted, 1..DATASET_PROMPTS_MAX */
    uint64_t seed;

    const char *path; /* of the kinds with a file */
    bool shuffle;
    int64_t output_len; /* custom: max_tokens where the entry has none, > 0.
                         * sharegpt and its kin: instead of the answer's length; 0 = that */
    int64_t output_max; /* sharegpt and its kin: max_tokens is at most that; 0 = no limit */
    dataset_count_fn count_tokens; /* sharegpt and its kin */
    void *count_ctx;

    /* random: a prompt is prefix_len ids that all prompts share, then input_len ids of its own.
     * prefix_repetition: prefix_len ids of one of prefix_count prefixes, then input_len of its own.
     * Lengths of their own parts are uniform on len * (1 - range_ratio) .. len * (1 + range_ratio).
     */
    int64_t input_len, random_output_len, prefix_len, prefix_count;
    double range_ratio; /* 0 <= r < 1 */
    int64_t vocab_first,
        vocab_end; /* ids are first..end-1; trace draws its prompts from them too */

    double think_s;      /* multi-turn: mean of the exponential thinking times; 0 = none */
    int64_t turn_max;    /* multi-turn: requests in a session; 0 = no limit */
    dataset_skew skew;   /* expert-skew */
    int64_t skew_hot;    /* 1.. */
    double skew_alpha;   /* >= 0 */
    const char *domains; /* expert-skew: "a,b,c", the order of domains; NULL = that of the file */

    /* trace: one unit of its time in seconds; 0 = seconds in CSV, milliseconds in JSON Lines */
    double time_unit_s;
    double speed;      /* trace: how much faster than recorded, > 0 */
    int64_t token_max; /* trace: rows with more input and output tokens are left out; 0 = none */
} dataset_config;

/* Make config->count prompts.  On MOE_OK release with dataset_fini(); on error *out is empty.
 *   MOE_EINVAL     an entry breaks the format; the text names the file and the line or entry
 *   MOE_ERANGE     a length or a count is outside its limits; a trace has fewer rows than wanted
 *   MOE_ENOTFOUND, MOE_EIO  the file can't be read; or no entry of it is usable
 *   MOE_ENOMEM; and what count_tokens returns */
moe_err dataset_load(const dataset_config *config, dataset *out, errbuf *eb);

/* The same from text in memory: dataset_load() without the file.  name stands for the file in
 * errors. */
moe_err dataset_parse(const dataset_config *config, const char *name, const char *text, size_t len,
                      dataset *out, errbuf *eb);

void dataset_fini(dataset *set);

#endif
