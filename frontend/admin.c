#include "frontend/admin.h"

#include <errno.h>
#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/log.h"
#include "conclave.pb-c.h"
#include "frontend/admin_impl.h"
#include "frontend/http_common.h"
#include "proto/fleet_json.h"

#define HEADER_BYTES_MAX ((size_t)32 << 10)
#define LISTEN_BACKLOG 16

struct admin_server {
    admin_config config;
    admin_context context;
    _Atomic bool stopping;
    struct MHD_Daemon *port_daemon, *socket_daemon;
    bool bound; /* the socket's file is ours */
};

/* One request. */
typedef struct exchange {
    strbuf body;
    const admin_route *route;
    api_error error;
    const char *allow;
} exchange;

/* ---- a request ---- */

static bool
is_set(const char *text)
{
    return text != NULL && text[0] != '\0';
}

static void
check_head(const admin_server *s, struct MHD_Connection *conn, exchange *x, const char *path,
           const char *method)
{
    x->route = admin_route_find(path, method, &x->allow);
    if (is_set(s->config.key) && !http_has_key(conn, &s->config.key, 1))
        http_want_key(&x->error, "admin API key");
    else if (x->route == NULL && x->allow != NULL)
        api_error_set(&x->error, 405, NULL, "%.100s needs the method %s, not %.20s", path, x->allow,
                      method);
    else if (x->route == NULL)
        api_error_set(&x->error, 404, NULL, "there is no %.100s here", path);
}

/* What is too much is read and dropped. */
static void
take_body(exchange *x, const char *bytes, size_t count)
{
    if (x->error.status != 0) return;
    strbuf_append(&x->body, bytes, count);
    if (x->body.failed)
        api_error_set(&x->error, 413, NULL, "the body has more than %zu bytes",
                      ADMIN_BODY_BYTES_MAX);
}

static enum MHD_Result
answer(const admin_server *s, struct MHD_Connection *conn, exchange *x)
{
    strbuf out;
    strbuf_init(&out, ADMIN_ANSWER_BYTES_MAX);
    int status = 0;
    if (x->error.status == 0) status = x->route->handle(&s->context, &x->body, &out, &x->error);
    if (status != 0 && out.failed) {
        api_error_set(&x->error, 500, NULL, "the answer is too long: out of memory, or beyond %zu",
                      ADMIN_ANSWER_BYTES_MAX);
        status = 0;
    }
    if (status == 0) {
        strbuf_reset(&out);
        api_error_print(&x->error, &out);
        status = x->error.status;
    }
    const enum MHD_Result result = http_send(conn, status, "application/json", &out, x->allow);
    strbuf_fini(&out);
    return result;
}

static enum MHD_Result
on_request(void *cls, struct MHD_Connection *conn, const char *path, const char *method,
           const char *version, const char *bytes, size_t *byte_count, void **state)
{
    (void)version;
    const admin_server *s = cls;
    exchange *x = *state;
    if (x == NULL) {
        x = calloc(1, sizeof *x);
        if (x == NULL) return MHD_NO;
        strbuf_init(&x->body, ADMIN_BODY_BYTES_MAX);
        check_head(s, conn, x, path, method);
        *state = x;
        return MHD_YES;
    }
    if (*byte_count == 0) return answer(s, conn, x);
    take_body(x, bytes, *byte_count);
    *byte_count = 0;
    return MHD_YES;
}

static void
on_completed(void *cls, struct MHD_Connection *conn, void **state,
             enum MHD_RequestTerminationCode how)
{
    (void)cls, (void)conn, (void)how;
    exchange *x = *state;
    *state = NULL;
    if (x != NULL) strbuf_fini(&x->body);
    free(x);
}

/* ---- start and stop ---- */

/* One option says where: MHD_OPTION_SOCK_ADDR with an address, or MHD_OPTION_LISTEN_SOCKET. */
static struct MHD_Daemon *
start_daemon(admin_server *s, unsigned more_flags, uint16_t port, const struct MHD_OptionItem *at)
{
    const unsigned flags =
        MHD_USE_POLL_INTERNAL_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_ERROR_LOG;
    return MHD_start_daemon(flags | more_flags, port, NULL, NULL, on_request, s,
                            MHD_OPTION_EXTERNAL_LOGGER, http_log_daemon, NULL,    /* */
                            MHD_OPTION_NOTIFY_COMPLETED, on_completed, s,         /* */
                            MHD_OPTION_CONNECTION_LIMIT, ADMIN_CONNECTIONS_MAX,   /* */
                            MHD_OPTION_CONNECTION_TIMEOUT, ADMIN_IDLE_SECONDS,    /* */
                            MHD_OPTION_CONNECTION_MEMORY_LIMIT, HEADER_BYTES_MAX, /* */
                            MHD_OPTION_ARRAY, at, MHD_OPTION_END);
}

static moe_err
listen_on_port(admin_server *s, errbuf *eb)
{
    const char *host = is_set(s->config.host) ? s->config.host : "127.0.0.1";
    struct addrinfo *at;
    const moe_err err = http_resolve(host, s->config.port, &at, eb);
    if (err) return err;
    const struct MHD_OptionItem where[] = {{MHD_OPTION_SOCK_ADDR, 0, at->ai_addr},
                                           {MHD_OPTION_END, 0, NULL}};
    errno = 0;
    s->port_daemon =
        start_daemon(s, at->ai_family == AF_INET6 ? MHD_USE_IPv6 : 0, s->config.port, where);
    const int why = errno;
    freeaddrinfo(at);
    if (s->port_daemon != NULL) return MOE_OK;
    return err_set(eb, MOE_EIO, "can't serve the admin API on %s port %u: %s", host, s->config.port,
                   why != 0 ? strerror(why) : "libmicrohttpd did not start");
}

/* A socket that nobody listens at any more is in the way of one that starts. */
static void
remove_stale(const struct sockaddr_un *at)
{
    struct stat st;
    if (lstat(at->sun_path, &st) != 0 || !S_ISSOCK(st.st_mode)) return;
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return;
    if (connect(fd, (const struct sockaddr *)at, sizeof *at) != 0 && errno == ECONNREFUSED)
        unlink(at->sun_path);
    close(fd);
}

static moe_err
listen_on_socket(admin_server *s, errbuf *eb)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    const char *path = s->config.socket_path;
    if (strlen(path) >= sizeof at.sun_path)
        return err_set(eb, MOE_EINVAL, "the admin socket's path has %zu bytes, at most %zu",
                       strlen(path), sizeof at.sun_path - 1);
    memcpy(at.sun_path, path, strlen(path));
    remove_stale(&at);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* Before bind(), which makes the file with this mode: there is no moment in which others may
     * connect. */
    if (fd >= 0 && fchmod(fd, 0600) == 0 &&
        bind(fd, (const struct sockaddr *)&at, sizeof at) == 0) {
        s->bound = true;
        const struct MHD_OptionItem where[] = {{MHD_OPTION_LISTEN_SOCKET, fd, NULL},
                                               {MHD_OPTION_END, 0, NULL}};
        if (listen(fd, LISTEN_BACKLOG) == 0) s->socket_daemon = start_daemon(s, 0, 0, where);
        if (s->socket_daemon != NULL) return MOE_OK;
    }
    const int why = errno;
    if (fd >= 0) close(fd);
    return err_set(eb, MOE_EIO, "can't serve the admin API at %s: %s", path, strerror(why));
}

moe_err
admin_start(admin_server **out, const admin_config *config, errbuf *eb)
{
    *out = NULL;
    const bool has_socket = is_set(config->socket_path);
    if (!config->has_port && !has_socket) return MOE_OK;
    if (config->has_port && !is_set(config->key))
        return err_set(eb, MOE_EINVAL, "an admin port needs an admin key");
    if (is_set(config->key)) {
        const moe_err err = http_check_key(config->key, eb);
        if (err) return err;
    }
    admin_server *s = calloc(1, sizeof *s);
    if (s == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");
    s->config = *config;
    s->context = (admin_context){.run_dir = config->run_dir, .stopping = &s->stopping};
    moe_err err = rpc_client_open(&s->context.router,
                                  &(rpc_client_options){.url = config->router_url,
                                                        .service = &conclave__router__descriptor,
                                                        .message_bytes_max = FLEET_REPLY_BYTES_MAX,
                                                        .concurrency = 2 * ADMIN_CONNECTIONS_MAX},
                                  eb);
    if (!err && config->has_port) err = listen_on_port(s, eb);
    if (!err && has_socket) err = listen_on_socket(s, eb);
    if (err) {
        admin_stop(s);
        return err;
    }
    *out = s;
    return MOE_OK;
}

uint16_t
admin_port(const admin_server *s)
{
    return s->port_daemon == NULL ? 0 : http_bound_port(s->port_daemon);
}

void
admin_stop(admin_server *s)
{
    if (s == NULL) return;
    atomic_store(&s->stopping, true);
    if (s->port_daemon != NULL) MHD_stop_daemon(s->port_daemon);
    if (s->socket_daemon != NULL) MHD_stop_daemon(s->socket_daemon);
    if (s->bound) unlink(s->config.socket_path);
    rpc_client_close(s->context.router);
    free(s);
}
