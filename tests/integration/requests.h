/* requests: a fixed set of completion requests of many kinds, and their answers, for comparing what
 * one fleet answers with what another does, byte for byte.
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

#define REQUESTS_MAX 64

typedef struct request_set {
    uint32_t count;
    char *bodies[REQUESTS_MAX];
} request_set;

typedef struct answer_set {
    uint32_t count;
    char *choices[REQUESTS_MAX]; /* the answer's "choices" as it came; NULL: not 200 */
    uint32_t tokens[REQUESTS_MAX];
    uint32_t cached_tokens; /* of all prompts */
} answer_set;

void requests_make(request_set *out, uint32_t count, uint64_t seed);
void requests_free(request_set *set);

/* One after the other. */
void requests_ask_alone(const request_set *set, const char *url, answer_set *out);
/* All at once. */
void requests_ask_together(const request_set *set, const char *url, answer_set *out);
void answers_free(answer_set *answers);

/* Fail the test unless both are the same bytes; names the first difference. */
void answers_expect_equal(const answer_set *got, const answer_set *want, const char *what);

#endif
