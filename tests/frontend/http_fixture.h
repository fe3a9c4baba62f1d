/* http_fixture: a server with the demo model's tokenizer and the fake engine, and a raw client that
 * reads a stream piece by piece. */
#ifndef MOE_TESTS_FRONTEND_HTTP_FIXTURE_H
#define MOE_TESTS_FRONTEND_HTTP_FIXTURE_H

#include "frontend/http.h"
#include "tests/frontend/fake_engine.h"
#include "tests/support/openai_pattern.h"

#define FIXTURE_MODEL "demo"

typedef struct fixture {
    tokenizer *tok;
    engine *engine;
    metrics *metrics;
    http_server *server;
    char url[64];
} fixture;

/* Options' vocabulary, eos and (if 0) context come from the demo model; config's model, port and
 * metrics are set here. */
void fixture_start(fixture *f, fake_engine_options options, http_config config);
void fixture_stop(fixture *f);

/* A connection that has sent a POST of body to /v1/completions; reads fail after 20 s. */
int fixture_post(const fixture *f, const char *body);
/* Append what comes to buf until it holds `until`; false if the connection ends or times out first.
 */
bool fixture_read_until(int fd, char *buf, size_t size, const char *until);

/* POST and parse; status is checked. NULL body: GET. */
cJSON *fixture_json(const fixture *f, const char *path, const char *body, long status);
/* choices[0].text of a request to /v1/completions; owned by the caller. */
char *fixture_text(const fixture *f, const char *body);
/* Encode text with the fixture's tokenizer, without bos. */
uint32_t *fixture_encode(tokenizer *tok, const char *text, uint32_t *count);
tokenizer *fixture_tokenizer(void);

#endif
