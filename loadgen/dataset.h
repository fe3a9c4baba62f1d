/* dataset: the prompts of a run, and how many tokens to ask for.
 *
 *   random    token ids drawn at random: exact lengths, no text, no shared prefix unless asked for
 *   sharegpt  conversations; turn 1 is the prompt, the length of turn 2 is max_tokens
 *   custom    one JSON object a line: {"prompt": text or [ids], "max_tokens": n (optional)}
 *
 * A conversation is used if 4 <= prompt <= 1024, answer >= 4 and prompt + answer <= 2048 tokens
 * (the filter of the published study).  Files are read in the order that the seed shuffles them
 * to, unless shuffle is off.  A file with too few usable entries is repeated from its start.
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

typedef struct prompt {
    char *json;          /* owned; JSON text: a string, or an array of token ids */
    int64_t token_count; /* -1 = only the server can tell */
    int64_t max_tokens;
} prompt;

typedef struct dataset {
    prompt *prompts; /* [count] */
    size_t count;
    size_t repeated; /* how many of them are repetitions of earlier ones */
} dataset;

/* How many tokens is this text?  The data set does not know a tokenizer; a server does. */
typedef moe_err (*dataset_count_fn)(void *ctx, const char *text, int64_t *count, errbuf *eb);

typedef enum dataset_kind { DATASET_RANDOM, DATASET_SHAREGPT, DATASET_CUSTOM } dataset_kind;

typedef struct dataset_config {
    dataset_kind kind;
    size_t count; /* prompts wanted, 1..DATASET_PROMPTS_MAX */
    uint64_t seed;

    const char *path; /* sharegpt, custom */
    bool shuffle;
    int64_t output_len;            /* custom: max_tokens where the entry has none, > 0.
                                    * sharegpt: instead of the answer's length; 0 = the answer's length */
    dataset_count_fn count_tokens; /* sharegpt */
    void *count_ctx;

    /* random: a prompt is prefix_len ids that all prompts share, then input_len ids of its own.
     * Lengths are uniform on len * (1 - range_ratio) .. len * (1 + range_ratio). */
    int64_t input_len, random_output_len, prefix_len;
    double range_ratio;             /* 0 <= r < 1 */
    int64_t vocab_first, vocab_end; /* ids are first..end-1 */
} dataset_config;

/* Make config->count prompts.  On MOE_OK release with dataset_fini(); on error *out is empty.
 *   MOE_EINVAL     an entry breaks the format; the text names the file and the line or entry
 *   MOE_ERANGE     a length or a count is outside its limits
 *   MOE_ENOTFOUND, MOE_EIO  the file can't be read; or no entry of it is usable
 *   MOE_ENOMEM; and what count_tokens returns */
moe_err dataset_load(const dataset_config *config, dataset *out, errbuf *eb);

/* The same from text in memory (sharegpt, custom): dataset_load() without the file.  name stands
 * for the file in errors. */
moe_err dataset_parse(const dataset_config *config, const char *name, const char *text, size_t len,
                      dataset *out, errbuf *eb);

void dataset_fini(dataset *set);

#endif
