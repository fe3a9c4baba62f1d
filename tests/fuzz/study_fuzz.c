/* study_fuzz: bytes of a workload card, of a result, and of the bench's lines; a card that was read
 * is written and read again, and must be the same; a result that lines became must be one. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "loadgen/study_engine.h"
#include "loadgen/study_read.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
try_lines(const char *lines, size_t size)
{
    study_engine_result result;
    study_run run;
    errbuf eb;
    char *text = NULL;
    size_t len;
    bool bad;
    if (study_engine_parse(lines, size, &result, &eb) != MOE_OK) return;
    FILE *to = open_memstream(&text, &len);
    if (to == NULL || study_engine_write(&result, to, &eb) != MOE_OK) abort();
    fclose(to);
    if (study_parse_run(text, len, &run, &bad, &eb) != MOE_OK) abort();
    free(text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static study_card card, again;
    study_run run;
    bool bad;
    errbuf eb;
    study_parse_run((const char *)data, size, &run, &bad, &eb);
    try_lines((const char *)data, size);
    if (card_parse((const char *)data, size, &card, &eb) != MOE_OK) return 0;
    char *text = NULL;
    size_t len;
    FILE *to = open_memstream(&text, &len);
    if (to == NULL) abort();
    if (card_write(&card, to, &eb) == MOE_OK && fflush(to) == 0) {
        if (card_parse(text, len, &again, &eb) != MOE_OK) abort();
        for (int i = 0; i < CARD_FIELDS; i++) {
            if (strcmp(card.values[i], again.values[i]) != 0) abort();
        }
    }
    fclose(to);
    free(text);
    return 0;
}
