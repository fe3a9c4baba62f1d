#include "frontend/http_common.h"

#include <stdio.h>
#include <string.h>

#include "common/log.h"

#define BEARER "Bearer "
#define RETRY_AFTER_SECONDS "1"

/* ---- keys ---- */

moe_err
http_check_key(const char *key, errbuf *eb)
{
    const size_t len = strlen(key);
    if (len != 0 && len <= HTTP_API_KEY_BYTES_MAX) return MOE_OK;
    return err_set(eb, MOE_EINVAL, "an API key has %zu bytes; allowed are 1 to %u", len,
                   HTTP_API_KEY_BYTES_MAX);
}

/* Takes as long whatever `given` is. */
static bool
equal_secret(const char *key, const char *given)
{
    const size_t key_len = strlen(key), given_len = strlen(given);
    volatile unsigned char differ = key_len != given_len;
    for (size_t i = 0; i < key_len; i++)
        differ |= (unsigned char)(key[i] ^ given[i < given_len ? i : given_len]);
    return differ == 0;
}

bool
http_has_key(struct MHD_Connection *conn, const char *const *keys, size_t count)
{
    const char *given =
        MHD_lookup_connection_value(conn, MHD_HEADER_KIND, MHD_HTTP_HEADER_AUTHORIZATION);
    if (given == NULL || strncasecmp(given, BEARER, strlen(BEARER)) != 0) return false;
    given += strlen(BEARER);
    bool found = false;
    for (size_t i = 0; i < count; i++)
        found |= equal_secret(keys[i], given);
    return found;
}

void
http_want_key(api_error *error, const char *what)
{
    api_error_set(error, 401, NULL,
                  "a valid %s is needed, as the header \"Authorization: Bearer KEY\"", what);
    error->code = "invalid_api_key";
}

/* ---- answers ---- */

enum MHD_Result
http_send(struct MHD_Connection *conn, int status, const char *content_type, const strbuf *text,
          const char *allow)
{
    if (text->failed) return MHD_NO;
    struct MHD_Response *response = MHD_create_response_from_buffer(
        text->len, (void *)strbuf_text(text), MHD_RESPMEM_MUST_COPY);
    if (response == NULL) return MHD_NO;
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, content_type);
    if (status == 405 && allow != NULL)
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, allow);
    if (status == 429 || status == 503)
        MHD_add_response_header(response, MHD_HTTP_HEADER_RETRY_AFTER, RETRY_AFTER_SECONDS);
    if (status == 401)
        MHD_add_response_header(response, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
    const enum MHD_Result result = MHD_queue_response(conn, (unsigned)status, response);
    MHD_destroy_response(response);
    return result;
}

/* ---- daemons ---- */

moe_err
http_resolve(const char *host, uint16_t port, struct addrinfo **out, errbuf *eb)
{
    char service[8];
    snprintf(service, sizeof service, "%u", port);
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    *out = NULL;
    const int failed = getaddrinfo(host, service, &hints, out);
    if (!failed) return MOE_OK;
    return err_set(eb, MOE_EINVAL, "host %s: %s", host, gai_strerror(failed));
}

uint16_t
http_bound_port(struct MHD_Daemon *daemon)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(daemon, MHD_DAEMON_INFO_BIND_PORT);
    return info == NULL ? 0 : info->port;
}

void
http_log_daemon(void *cls, const char *fmt, va_list ap)
{
    (void)cls;
    char line[512];
    vsnprintf(line, sizeof line, fmt, ap);
    line[strcspn(line, "\r\n")] = '\0';
    LOG_DEBUG("http", "libmicrohttpd: %s", line);
}
