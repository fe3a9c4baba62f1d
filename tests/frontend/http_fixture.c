#include "tests/frontend/http_fixture.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/support/paths.h"

tokenizer *
fixture_tokenizer(void)
{
    char path[512];
    errbuf eb = {""};
    tokenizer *tok;
    const moe_err err = tokenizer_load(&tok, test_path(path, sizeof path, "models/demo"), &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    return tok;
}

uint32_t *
fixture_encode(tokenizer *tok, const char *text, uint32_t *count)
{
    uint32_t *ids;
    size_t n;
    errbuf eb = {""};
    cr_assert_eq(tokenizer_encode(tok, text, strlen(text), 0, &ids, &n, &eb), MOE_OK);
    *count = (uint32_t)n;
    return ids;
}

void
fixture_start(fixture *f, fake_engine_options options, http_config config)
{
    errbuf eb = {""};
    f->tok = fixture_tokenizer();
    options.vocab_size = tokenizer_vocab_size(f->tok);
    options.eos = tokenizer_eos_id(f->tok);
    if (options.max_model_len == 0) options.max_model_len = 4096;
    f->engine = fake_engine_start(&options);
    cr_assert_eq(metrics_create(&f->metrics), MOE_OK);
    config.metrics = f->metrics;
    config.model = FIXTURE_MODEL;
    const moe_err err = http_start(&f->server, &config, f->engine, f->tok, &eb);
    cr_assert_eq(err, MOE_OK, "%s", eb.text);
    snprintf(f->url, sizeof f->url, "http%s://127.0.0.1:%u", config.tls_cert ? "s" : "",
             http_port(f->server));
}

void
fixture_stop(fixture *f)
{
    http_stop(f->server);
    fake_engine_free(f->engine);
    metrics_free(f->metrics);
    tokenizer_free(f->tok);
}

int
fixture_post(const fixture *f, const char *body)
{
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_port = htons(http_port(f->server)),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct timeval patience = {.tv_sec = 20};
    cr_assert_eq(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
    cr_assert_eq(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
    char *text;
    const int len = asprintf(&text,
                             "POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                             "Content-Length: %zu\r\n\r\n%s",
                             strlen(body), body);
    cr_assert_eq(send(fd, text, (size_t)len, MSG_NOSIGNAL), len);
    free(text);
    return fd;
}

bool
fixture_read_until(int fd, char *buf, size_t size, const char *until)
{
    size_t len = strlen(buf);
    while (strstr(buf, until) == NULL) {
        const ssize_t n = len + 1 < size ? recv(fd, buf + len, size - len - 1, 0) : 0;
        if (n <= 0) return false;
        len += (size_t)n;
        buf[len] = '\0';
    }
    return true;
}

cJSON *
fixture_json(const fixture *f, const char *path, const char *body, long status)
{
    http_reply r = http_call(f->url, body == NULL ? "GET" : "POST", path, body, NULL);
    cr_expect_eq(r.status, status, "%s %s: status %ld, %s", path, body ? body : "", r.status,
                 r.body);
    cJSON *root = cJSON_Parse(r.body);
    http_reply_fini(&r);
    return root;
}

char *
fixture_text(const fixture *f, const char *body)
{
    cJSON *root = fixture_json(f, "/v1/completions", body, 200);
    const cJSON *choices = cJSON_GetObjectItem(root, "choices");
    cr_assert_not_null(choices, "%s", body);
    char *text = strdup(cJSON_GetStringValue(cJSON_GetObjectItem(choices->child, "text")));
    cJSON_Delete(root);
    return text;
}
