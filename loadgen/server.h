/* server: the few things to ask a server before a run, one blocking call each.
 *
 * Threads: one at a time for each server.
 */
#ifndef MOE_LOADGEN_SERVER_H
#define MOE_LOADGEN_SERVER_H

#include <stdint.h>

#include "common/err.h"
#include "loadgen/npy_read.h"

typedef struct server server;

/* base_url: "http://host:port", with or without a slash at its end; api_key: NULL = none.  Nothing
 * is sent yet.  On MOE_OK release with server_close(). */
moe_err server_open(server **out, const char *base_url, const char *api_key, errbuf *eb);
void server_close(server *s); /* accepts NULL */

/* All calls:
 *   MOE_ECLOSED   the server can't be reached
 *   MOE_EINVAL    it answers with an error, or with something else than the documented JSON
 *   MOE_ENOMEM  */

/* The first model of GET /v1/models; free() *out. */
moe_err server_get_model(server *s, char **out, errbuf *eb);

/* POST /tokenize: how many tokens the text is as a prompt. */
moe_err server_count_tokens(server *s, const char *model, const char *text, int64_t *count,
                            errbuf *eb);

/* POST /v1/completions with "return_routed_experts": which experts the tokens of a prompt used.
 * prompt_json: a string, or an array of token ids.  On MOE_OK release with routed_ids_fini().
 * MOE_EUNSUPPORTED: the server answers, but does not tell. */
moe_err server_get_routed_experts(server *s, const char *model, const char *prompt_json,
                                  routed_ids *out, errbuf *eb);

/* GET /version: the server's description of itself as JSON text; free() *out. */
moe_err server_get_version(server *s, char **out, errbuf *eb);

#endif
