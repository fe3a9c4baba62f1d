/* control: where the processes of a cell find each other, and the secret that they share.
 *
 * On one host they meet in the run directory, at sockets that only its user can open.  Between
 * hosts they meet at TCP addresses: --router-urls names every router's, in the order of their ids,
 * and each router listens at its own.  A worker listens at --control-host, at a port that the
 * system chooses, and says so when it registers.  Whatever listens on TCP wants the secret of
 * --cluster-secret-file from every caller (rpc_auth.h), and links of the data plane want a key that
 * is handed out over such a connection.
 *
 * Threads: call control_open() once, at start, before any server or client is made.
 */
#ifndef MOE_PROTO_CONTROL_H
#define MOE_PROTO_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/flags.h"
#include "common/run_dir.h"

#define CONTROL_ROUTER_MAX 64
#define CONTROL_HOST_MAX 100  /* bytes: a URL with it fits RUN_URL_MAX */
#define CONTROL_SECRET_MIN 16 /* bytes */

/* The options that every process has; all "" on one host. */
typedef struct control_options {
    const char *router_urls, *control_host, *secret_file;
} control_options;

extern const char control_help_urls[], control_help_host[], control_help_secret[];

/* Entries for a table of flags (common/flags.h) that fill the control_options *c. */
#define CONTROL_FLAG(name, out, help)                                                              \
    {                                                                                              \
        name, NULL, FLAG_STRING, out, "", 0, 0, NULL, NULL, help                                   \
    }
#define CONTROL_FLAGS(c)                                                                           \
    CONTROL_FLAG("router-urls", &(c)->router_urls, control_help_urls),                             \
        CONTROL_FLAG("control-host", &(c)->control_host, control_help_host),                       \
        CONTROL_FLAG("cluster-secret-file", &(c)->secret_file, control_help_secret)

typedef struct control_plane {
    bool tcp;
    uint32_t router_count; /* entries in router_urls; 0 without tcp */
    char router_urls[CONTROL_ROUTER_MAX][RUN_URL_MAX];
    char host[CONTROL_HOST_MAX + 1]; /* of this worker; "" unless given */
    const run_dir *run;
} control_plane;

/* Read the options, and make the secret, if there is one, that of every server and client that this
 * process makes from now on.  run is borrowed.
 *   router_count  of the cell; 0 = not known, router 0 is all that is asked
 *   MOE_EINVAL  a URL or the host can't be one, two routers have one address, their number is
 *               another; TCP without a secret; others may read the secret's file
 *   MOE_ERANGE  the secret has less than CONTROL_SECRET_MIN bytes or more than RPC_SECRET_MAX
 *   MOE_ENOTFOUND, MOE_EIO  the secret's file can't be read  */
moe_err control_open(control_plane *out, const control_options *options, const run_dir *run,
                     uint32_t router_count, errbuf *eb);

/* Where router `id` listens and is called; id below router_count. */
void control_router_url(const control_plane *c, uint32_t id, char url[RUN_URL_MAX]);

/* Where worker `id` is to listen: with TCP a port that the system chooses.
 *   MOE_EINVAL  with TCP, without --control-host  */
moe_err control_worker_url(const control_plane *c, uint32_t id, char url[RUN_URL_MAX], errbuf *eb);

/* Where worker `id` is to listen for links of the data plane: TCP if the control plane is, or if it
 * is asked for (of this host, then), else sockets in the run directory. */
void control_link_url(const control_plane *c, uint32_t id, bool want_tcp, char url[RUN_URL_MAX]);

#endif
