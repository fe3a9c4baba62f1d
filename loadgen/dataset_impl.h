/* dataset_impl: what the kinds of data sets share.  Only for loadgen/dataset*.c.
 *
 * Threads: one at a time for each dataset.
 */
#ifndef MOE_LOADGEN_DATASET_IMPL_H
#define MOE_LOADGEN_DATASET_IMPL_H

#include "common/json.h"
#include "common/strbuf.h"
#include "loadgen/dataset.h"
#include "loadgen/entries.h"
#include "loadgen/rng.h"

#define PROMPT_BYTES_MAX (16u << 20)

/* Append a prompt; takes over the text of `json`, which is empty afterwards.  The rest of the
 * prompt (turn, arrival, ...) is zero; the caller fills it in at set->prompts[set->count - 1].
 *   MOE_ERANGE  the text is longer than PROMPT_BYTES_MAX */
moe_err dataset_add(dataset *set, strbuf *json, int64_t token_count, int64_t max_tokens,
                    errbuf *eb);
/* Append a copy of prompt i.   MOE_ENOMEM */
moe_err dataset_add_copy(dataset *set, size_t i, errbuf *eb);

/* Append count ids, with a comma before each but the first of the array in out. */
void dataset_draw_ids(rng *r, const dataset_config *c, int64_t count, strbuf *out);
moe_err dataset_check_vocab(const dataset_config *c, errbuf *eb);

/* The kinds.  Each fills out->prompts [c->count], which is allocated, up to c->count or fewer. */
moe_err dataset_make_random(const dataset_config *c, dataset *out, errbuf *eb);
moe_err dataset_make_prefix_repetition(const dataset_config *c, dataset *out, errbuf *eb);
/* One conversation: its first request, or (multi-turn) all of them, or none if the filter is
 * against it. */
moe_err dataset_read_conversation(const dataset_config *c, const cJSON *root, dataset *out,
                                  errbuf *eb);
/* One line of a trace. */
moe_err dataset_make_trace(const dataset_config *c, const char *text, size_t len, dataset *out,
                           errbuf *eb);
/* Picks and reads entries; each error names the entry. */
moe_err dataset_make_skewed(const dataset_config *c, const entries *list, dataset *out, errbuf *eb);

#endif
