/* study_card: the workload card of an experiment folder (card.yaml): what was measured, on what.
 *
 * Written and read with libyaml.  The keys are those of the published study's cards, in their
 * order, and ours below "conclave".  A card that was written is read again and checked by the same
 * rules.  Reading takes block and flow style, and skips keys it does not know; anchors, tags and
 * repeated keys are refused: a card is data, and two readers must not see two cards.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_STUDY_CARD_H
#define MOE_LOADGEN_STUDY_CARD_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/err.h"

#define CARD_BYTES_MAX (64u << 10)
#define CARD_VALUE_MAX 1024
#define CARD_FIELDS 45

typedef enum card_type {
    CARD_TEXT,
    CARD_COUNT,  /* a whole number, 0 or more */
    CARD_NUMBER, /* 0 or more */
    CARD_LIST,   /* of texts; one text, separated by commas */
    CARD_CHOICE  /* one of `choices`, "a|b" */
} card_type;

typedef struct card_field {
    const char *path; /* "workload.data.max-num-seqs" */
    card_type type;
    const char *choices;
    const char *usual; /* NULL = must be given */
} card_field;

/* [CARD_FIELDS], in the order of the file. */
extern const card_field card_fields[CARD_FIELDS];

typedef struct study_card {
    char values[CARD_FIELDS][CARD_VALUE_MAX]; /* as text */
} study_card;

/* The usual values; what must be given is empty. */
void card_init(study_card *card);

/*   MOE_ENOTFOUND  no such field;  MOE_ERANGE  the value is too long */
moe_err card_set(study_card *card, const char *path, const char *value, errbuf *eb);
/* "" for a path that no field has. */
const char *card_get(const study_card *card, const char *path);

/* Is every value of its type, none that must be given missing, and the phase "inference"?
 *   MOE_EINVAL  the text names the field */
moe_err card_check(const study_card *card, errbuf *eb);

/*   MOE_EIO, MOE_ENOMEM */
moe_err card_write(const study_card *card, FILE *to, errbuf *eb);

/* Read and check.
 *   MOE_EINVAL  not YAML, not a card; the text names line or field;  MOE_ERANGE, MOE_ENOMEM */
moe_err card_parse(const char *text, size_t len, study_card *out, errbuf *eb);
/* The same of a file, whose name errors bear.   MOE_ENOTFOUND, MOE_EIO */
moe_err card_read(const char *path, study_card *out, errbuf *eb);

#endif
