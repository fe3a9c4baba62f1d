/* openai_pattern: the patterns of golden/openai/cases.json, and a runner that tries all cases
 * against a server.
 *
 * The runner also asserts the cases' rules, by what the request asks for rather than by case:
 * limits on counts, echo, stop strings, logprobs' sizes, a stream's text equal to the whole
 * answer's.
 *
 * Threads: no shared state.
 */
#ifndef MOE_TESTS_SUPPORT_OPENAI_PATTERN_H
#define MOE_TESTS_SUPPORT_OPENAI_PATTERN_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct openai_vars {
    const char *model; /* $model */
    uint32_t choices;  /* entries of "choices", indexed 0 ..; 0 = as the pattern says */
    cJSON *same;       /* an object that collects the values of "same:key"; may be NULL */
} openai_vars;

/* Does value (NULL = absent) match?  If not, why [why_size] says where and what. */
bool openai_match(const cJSON *pattern, const cJSON *value, const openai_vars *vars, char *why,
                  size_t why_size);

typedef struct openai_target {
    const char *base_url; /* "http://127.0.0.1:8000" */
    const char *model;
    uint32_t max_model_len;
    const char *api_key; /* NULL: the server needs none; cases about keys are left out */
    bool chat;           /* the server has /v1/chat/completions; else its cases are left out */
    bool transpose;      /* instead, put the faults of its error cases to /v1/completions */
    bool overloaded;     /* the queue is full: run only the case about that */
    /* Called for each failure. */
    void (*report)(const char *what, const char *why);
} openai_target;

typedef struct openai_counts {
    unsigned passed, failed, left_out;
} openai_counts;

/* path: of cases.json (golden_path()). */
openai_counts openai_run_cases(const char *path, const openai_target *target);

/* ---- a small HTTP client, also for other tests ---- */

typedef struct http_reply {
    long status; /* 0: no answer */
    char *body;  /* NUL-terminated; free with http_reply_fini() */
    size_t len;
    char content_type[128], allow[64], retry_after[32];
} http_reply;

/* body NULL: GET unless method says otherwise.  key NULL: no Authorization. */
http_reply http_call(const char *base_url, const char *method, const char *path, const char *body,
                     const char *key);
/* The same; arrived(arg) is called whenever a part of the answer's body has come. */
http_reply http_call_watched(const char *base_url, const char *method, const char *path,
                             const char *body, const char *key, void (*arrived)(void *arg),
                             void *arg);
void http_reply_fini(http_reply *r);

#endif
