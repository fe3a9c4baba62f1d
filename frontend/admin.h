/* admin: the operators' API, on a port or socket of its own: where experts are, how hot they are,
 * and what may be changed while the fleet serves (docs/admin.md).
 *
 *   GET  /admin/status     GET  /admin/placement   GET  /admin/routing
 *   POST /admin/drain      POST /admin/rebalance   POST /admin/scale
 *
 * Nothing of it touches the threads that serve requests: each connection has a thread of its own,
 * at most ADMIN_CONNECTIONS_MAX, which asks router 0 and waits at most ADMIN_CALL_TIMEOUT_MS.
 *
 * Who may ask: on a port, who has the key; on the socket (mode 0600) the same user, with the key if
 * there is one.
 *
 * Threads: start and stop from one thread.
 */
#ifndef MOE_FRONTEND_ADMIN_H
#define MOE_FRONTEND_ADMIN_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

#define ADMIN_CONNECTIONS_MAX 16u
#define ADMIN_IDLE_SECONDS 30u
#define ADMIN_BODY_BYTES_MAX ((size_t)64 << 10)
#define ADMIN_ANSWER_BYTES_MAX ((size_t)128 << 20)
#define ADMIN_CALL_TIMEOUT_MS 3000u

/* Texts are borrowed until admin_stop() has returned; "" or NULL: none. */
typedef struct admin_config {
    const char *host; /* NULL = 127.0.0.1 */
    bool has_port;
    uint16_t port; /* 0 = any free one: admin_port() */
    const char *socket_path;
    const char *key;
    const char *router_url; /* of router 0 */
    const char *run_dir;    /* where deploy/conclave keeps its pid files */
} admin_config;

typedef struct admin_server admin_server;

/* Serve.  With neither port nor socket *out is NULL, and nothing is served.
 *   MOE_EINVAL  a port without a key, or a key that is too long; unknown host; a socket's path that
 *               is too long
 *   MOE_EIO     can't listen there
 *   MOE_ENOMEM  */
moe_err admin_start(admin_server **out, const admin_config *config, errbuf *eb);
uint16_t admin_port(const admin_server *s); /* 0: it has none */
void admin_stop(admin_server *s);           /* accepts NULL */

#endif
