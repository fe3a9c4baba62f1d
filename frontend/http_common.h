/* http_common: what the public server (http.h) and the admin one (admin.h) do alike.
 *
 * Threads: no shared state.
 */
#ifndef MOE_FRONTEND_HTTP_COMMON_H
#define MOE_FRONTEND_HTTP_COMMON_H

#include <microhttpd.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdbool.h>

#include "common/err.h"
#include "common/strbuf.h"
#include "frontend/api_error.h"

#define HTTP_API_KEY_BYTES_MAX 256u

/* MOE_EINVAL: empty, or longer than HTTP_API_KEY_BYTES_MAX. */
moe_err http_check_key(const char *key, errbuf *eb);
/* Does the request carry one of the keys as a bearer token?  The time this takes tells nothing
 * about how much of a key was right. */
bool http_has_key(struct MHD_Connection *conn, const char *const *keys, size_t count);
/* Status 401; what: "API key". */
void http_want_key(api_error *error, const char *what);

/* Queue an answer.  Text is copied.  allow: the method that is allowed, for status 405. */
enum MHD_Result http_send(struct MHD_Connection *conn, int status, const char *content_type,
                          const strbuf *text, const char *allow);

/* MOE_EINVAL: unknown host.  Release with freeaddrinfo(). */
moe_err http_resolve(const char *host, uint16_t port, struct addrinfo **out, errbuf *eb);
/* Where a daemon listens. */
uint16_t http_bound_port(struct MHD_Daemon *daemon);
/* libmicrohttpd's logger: MHD_OPTION_EXTERNAL_LOGGER. */
void http_log_daemon(void *cls, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));

#endif
