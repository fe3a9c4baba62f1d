/* requests: completion requests and their answers, for comparing what one fleet answers with what
 * another does, byte for byte; and a fixed set of requests of many kinds.
 *
 * Prompts have 1 to 600 tokens; some share their beginning.  Some requests are greedy, some sampled
 * with this or that filter or penalty, each with a seed.  All ask for the logprobs of three tokens.
 * Everything is drawn from one seed, so a set is the same in every run.
 *
 * Threads: one at a time; requests_ask_together() starts one thread for each request and joins
 * them.
 */
#ifndef MOE_TESTS_INTEGRATION_REQUESTS_H
#define MOE_TESTS_INTEGRATION_REQUESTS_H

#include <stdint.h>

#include "tests/support/openai_pattern.h"

#define REQUESTS_MAX 64

typedef struct request_set {
    uint32_t count;
    char *bodies[REQUESTS_MAX];
} request_set;

typedef struct answer_set {
    uint32_t count;
    /* The answer's "choices" as it came, of a stream those of all events; NULL: not 200, or cut. */
    char *choices[REQUESTS_MAX];
    uint32_t cached_tokens; /* of all prompts */
} answer_set;

/* An empty set is {0}. */
void requests_add(request_set *set, const char *body);
void requests_make(request_set *out, uint32_t count, uint64_t seed);
/* The same, every second one a stream. */
void requests_make_mixed(request_set *out, uint32_t count, uint64_t seed);
void requests_free(request_set *set);

/* One after the other. */
void requests_ask_alone(const request_set *set, const char *url, answer_set *out);
/* All at once; begin() returns when all are on their way, end() when all are answered.  One at a
 * time may be between the two. */
void requests_ask_begin(const request_set *set, const char *url);
void requests_ask_end(const request_set *set, answer_set *out);
void requests_ask_together(const request_set *set, const char *url, answer_set *out);
void answers_free(answer_set *answers);
/* What answer_set keeps of one; free() it.  NULL: not 200, or cut. */
char *answer_choices(const http_reply *reply);

/* Fail the test unless both are the same bytes; names the first difference. */
void answers_expect_equal(const answer_set *got, const answer_set *want, const char *what);

#endif
