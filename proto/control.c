#include "proto/control.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "proto/rpc_auth.h"

#define SCHEME "tcp://"
#define SCHEME_BYTES (sizeof SCHEME - 1)
#define PORT_MAX 65535

const char control_help_urls[] =
    "tcp://HOST:PORT of every router, by id, with commas; empty = sockets in the run directory";
const char control_help_host[] =
    "with --router-urls: the address at which routers reach a worker; others ignore it";
const char control_help_secret[] =
    "file with the secret that the cell's processes prove to each other; TCP needs it";

/* A name, an IPv4 address, or an IPv6 address in brackets. */
static bool
is_host(const char *text, size_t len)
{
    if (len == 0 || len > CONTROL_HOST_MAX) return false;
    const bool brackets = text[0] == '[';
    if (brackets && (len < 4 || text[len - 1] != ']')) return false;
    for (size_t i = brackets; i < len - brackets; i++) {
        const char c = text[i];
        const bool fits = brackets ? isxdigit((unsigned char)c) || c == ':' || c == '.'
                                   : isalnum((unsigned char)c) || c == '-' || c == '.' || c == '_';
        if (!fits) return false;
    }
    return true;
}

static bool
is_port(const char *text, size_t len)
{
    unsigned port = 0;
    if (len == 0 || len > 5) return false;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        port = port * 10 + (unsigned)(text[i] - '0');
    }
    return port >= 1 && port <= PORT_MAX;
}

/* One entry of --router-urls, [len]. */
static moe_err
read_url(const char *text, size_t len, char out[RUN_URL_MAX], errbuf *eb)
{
    size_t colon = len;
    while (colon > SCHEME_BYTES && text[colon - 1] != ':')
        colon--;
    if (len <= SCHEME_BYTES || strncmp(text, SCHEME, SCHEME_BYTES) != 0 || colon == SCHEME_BYTES ||
        !is_host(text + SCHEME_BYTES, colon - 1 - SCHEME_BYTES) ||
        !is_port(text + colon, len - colon))
        return err_set(eb, MOE_EINVAL, "--router-urls: \"%.*s\" is no tcp://HOST:PORT",
                       (int)(len < 100 ? len : 100), text);
    memcpy(out, text, len);
    out[len] = '\0';
    return MOE_OK;
}

static moe_err
read_urls(control_plane *c, const char *list, uint32_t want, errbuf *eb)
{
    for (const char *at = list;; at++) {
        const size_t len = strcspn(at, ",");
        if (c->router_count == CONTROL_ROUTER_MAX)
            return err_set(eb, MOE_EINVAL, "--router-urls: more than %d", CONTROL_ROUTER_MAX);
        char *url = c->router_urls[c->router_count];
        const moe_err err = read_url(at, len, url, eb);
        if (err) return err;
        for (uint32_t i = 0; i < c->router_count; i++) {
            if (strcmp(c->router_urls[i], url) == 0)
                return err_set(eb, MOE_EINVAL, "--router-urls: %s twice", url);
        }
        c->router_count++;
        at += len;
        if (*at == '\0') break;
    }
    if (want != 0 && c->router_count != want)
        return err_set(eb, MOE_EINVAL, "--router-urls: %u addresses for %u routers",
                       c->router_count, want);
    return MOE_OK;
}

static moe_err
use_secret(const char *path, errbuf *eb)
{
    struct stat st;
    char *text = NULL;
    size_t len = 0;
    moe_err err = file_read(path, RPC_SECRET_MAX + 2, &text, &len, eb);
    if (err) return err;
    if (stat(path, &st) != 0 || (st.st_mode & 07) != 0)
        err = err_set(eb, MOE_EINVAL,
                      "--cluster-secret-file: %s is open to everybody; chmod it to 600", path);
    while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == '\r'))
        len--;
    if (!err && (len < CONTROL_SECRET_MIN || len > RPC_SECRET_MAX))
        err = err_set(eb, MOE_ERANGE, "--cluster-secret-file: %zu bytes, not %d to %d", len,
                      CONTROL_SECRET_MIN, RPC_SECRET_MAX);
    if (!err) err = rpc_secret_set_default(text, len, eb);
    explicit_bzero(text, len);
    free(text);
    return err;
}

moe_err
control_open(control_plane *out, const control_options *options, const run_dir *run,
             uint32_t router_count, errbuf *eb)
{
    *out = (control_plane){.run = run, .tcp = options->router_urls[0] != '\0'};
    moe_err err = MOE_OK;
    if (options->secret_file[0] != '\0') err = use_secret(options->secret_file, eb);
    if (err || !out->tcp) return err;
    if (options->secret_file[0] == '\0')
        return err_set(eb, MOE_EINVAL, "--router-urls: TCP needs --cluster-secret-file");
    const char *host = options->control_host;
    if (host[0] != '\0' && !is_host(host, strlen(host)))
        return err_set(eb, MOE_EINVAL, "--control-host: \"%.100s\" is no name or address", host);
    snprintf(out->host, sizeof out->host, "%s", host);
    return read_urls(out, options->router_urls, router_count, eb);
}

void
control_router_url(const control_plane *c, uint32_t id, char url[RUN_URL_MAX])
{
    if (c->tcp)
        memcpy(url, c->router_urls[id], RUN_URL_MAX);
    else
        run_dir_url(c->run, "router", id, url);
}

moe_err
control_worker_url(const control_plane *c, uint32_t id, char url[RUN_URL_MAX], errbuf *eb)
{
    if (!c->tcp)
        run_dir_url(c->run, "worker", id, url);
    else if (c->host[0] == '\0')
        return err_set(eb, MOE_EINVAL,
                       "--router-urls needs --control-host: where routers reach this worker");
    else
        snprintf(url, RUN_URL_MAX, SCHEME "%s:0", c->host);
    return MOE_OK;
}

void
control_link_url(const control_plane *c, uint32_t id, bool want_tcp, char url[RUN_URL_MAX])
{
    if (c->tcp || want_tcp)
        snprintf(url, RUN_URL_MAX, SCHEME "%s:0", c->tcp ? c->host : "127.0.0.1");
    else
        snprintf(url, RUN_URL_MAX, "ipc://%s/link-w%u", c->run->path, id);
}
