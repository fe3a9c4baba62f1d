/* completion_request: the JSON body of POST /v1/completions, checked and made ready for the engine.
 *
 * Every field is checked against its named limit; what breaks a rule is refused with status 400
 * (404 for another model's name), the field's name, the value and the limit.  null means absent.
 * Unknown fields are ignored, because clients send fields a server has not heard of.
 *
 * Prompts given as text are encoded with the bos token in front and special tokens read as ordinary
 * text; prompts given as ids are taken as they are.
 *
 * Threads: no shared state; a request may be read by many threads once parsed.
 */
#ifndef MOE_FRONTEND_COMPLETION_REQUEST_H
#define MOE_FRONTEND_COMPLETION_REQUEST_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frontend/api_error.h"
#include "frontend/gen_params.h"
#include "frontend/tokenizer.h"

#define COMPLETION_SEQUENCES_MAX 512u     /* prompts x n of one request */
#define COMPLETION_MAX_TOKENS_DEFAULT 16u /* OpenAI's */
#define COMPLETION_STOPS_MAX 16u
#define COMPLETION_STOP_BYTES_MAX 256u                 /* bytes of one stop string */
#define COMPLETION_ECHO_BYTES_MAX ((size_t)16 << 20)   /* of all prompts, once for each choice */
#define COMPLETION_ROUTED_BYTES_MAX ((size_t)16 << 20) /* expert ids of all choices */
#define COMPLETION_TEMPERATURE_MAX 2.0
#define COMPLETION_REPETITION_PENALTY_MAX 1000.0

/* What requests are checked against; borrowed and constant while the server runs. */
typedef struct completion_limits {
    const tokenizer *tok;
    const char *model; /* the served name */
    uint32_t max_model_len;
    routing_shape routing;    /* what return_routed_experts gives; id_bytes 0: nothing */
    uint32_t token_bytes_max; /* bytes of the longest token: a text of more than max_model_len times
                                 this is refused before it is encoded */
    bool fixed_seed; /* a prompt without a seed of its own gets one made from base_seed and its ids,
                        so that the same request has the same answer; else one is drawn */
    uint64_t base_seed;
} completion_limits;

typedef struct completion_prompt {
    uint32_t *ids; /* [count], owned */
    uint32_t count;
    char *text; /* echo: what is given back, owned; else NULL */
    size_t text_len;
    uint32_t max_tokens; /* of the request, or the default cut to what fits */
    uint64_t seed;       /* the request's, or one drawn for this prompt */
} completion_prompt;

typedef struct completion_request {
    completion_prompt *prompts; /* [prompt_count], owned */
    uint32_t prompt_count;
    uint32_t n;        /* choices of each prompt */
    gen_params params; /* what all sequences share: seed, choice and max_tokens are set for each */
    bool echo, stream, include_usage, continuous_usage;
    bool skip_special, include_stop;
    routing_shape routing; /* params.routed_experts: what is given for each token */
    uint32_t routed_start; /* and how many of the prompt's are left out */
    uint32_t stop_count;
    char *stops[COMPLETION_STOPS_MAX]; /* owned */
    size_t stop_lens[COMPLETION_STOPS_MAX];
    uint32_t *bias_ids; /* owned; params points at them */
    double *bias_values;
} completion_request;

/* Fill limits->token_bytes_max from its tokenizer. */
void completion_limits_measure(completion_limits *limits);

/* Parse body [len].  True: *out is owned by the caller, completion_request_fini().  False: *error
 * says why, *out is empty. */
bool completion_request_parse(completion_request *out, const completion_limits *limits,
                              const char *body, size_t len, api_error *error);
void completion_request_fini(completion_request *r);

/* Shared with the other routes.  */

/* The body as a JSON object, owned by the caller; NULL with *error set otherwise. */
cJSON *completion_body_parse(const char *body, size_t len, api_error *error);
/* Is root's "model" absent, null or the served name? */
bool completion_check_model(const cJSON *root, const char *model, api_error *error);
/* Read an array of ids below the vocabulary's size; field names it in errors.  *out is owned by the
 * caller.  At most max ids. */
bool completion_read_ids(const cJSON *array, const char *field, uint32_t vocab, size_t max,
                         uint32_t **out, uint32_t *count, api_error *error);

#endif
