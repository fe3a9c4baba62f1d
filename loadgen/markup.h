/* markup: text for HTML and SVG.
 *
 * Threads: no shared state.
 */
#ifndef MOE_LOADGEN_MARKUP_H
#define MOE_LOADGEN_MARKUP_H

#include <stdio.h>

/* Write text with what means something to a browser escaped; also fit for a quoted attribute. */
void markup_text(const char *text, FILE *to);

/* Write text as a part of an address: what is no letter, digit or one of -._~/ as %XX. */
void markup_address(const char *text, FILE *to);

#endif
