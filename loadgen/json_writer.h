/* json_writer: JSON straight to a file, for results that are too large to build in memory first.
 *
 * Commas are the writer's business.  Numbers keep every bit; what is no finite number is null.
 * Strings that are no UTF-8 get U+FFFD for each bad byte, so that any reader takes the file.
 *
 * Threads: one at a time for each writer.
 */
#ifndef MOE_LOADGEN_JSON_WRITER_H
#define MOE_LOADGEN_JSON_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/err.h"
#include "common/strbuf.h"

typedef struct json_writer {
    FILE *to;
    strbuf scratch; /* one escaped string */
    bool comma;     /* a value stands before this place */
    bool failed;    /* out of memory */
} json_writer;

void json_writer_init(json_writer *w, FILE *to);
/* Ends the text with a line feed.
 *   MOE_EIO  writing failed
 *   MOE_ENOMEM  */
moe_err json_writer_fini(json_writer *w, errbuf *eb);

/* bracket: '{' or '[', and its counterpart. */
void json_open(json_writer *w, char bracket);
void json_close(json_writer *w, char bracket);

void json_key(json_writer *w, const char *name);
void json_put_number(json_writer *w, double v);
/* Every digit, also where a double has not as many. */
void json_put_u64(json_writer *w, uint64_t v);
void json_put_string(json_writer *w, const char *text, size_t n);
void json_put_bool(json_writer *w, bool v);
/* text NULL = null */
void json_put_text(json_writer *w, const char *text);
/* Text that is JSON already; NULL = null. */
void json_put_json(json_writer *w, const char *json);

void json_key_number(json_writer *w, const char *name, double v);
void json_key_bool(json_writer *w, const char *name, bool v);
void json_key_text(json_writer *w, const char *name, const char *text);

/* Write a file that appears whole or not at all; missing folders are made.  path [size] receives
 * the file's path.
 *   MOE_ERANGE  the path is too long
 *   MOE_EIO     it can't be written; and what `write` returns */
moe_err json_save(const char *dir, const char *filename,
                  moe_err (*write)(const void *ctx, FILE *to, errbuf *eb), const void *ctx,
                  char *path, size_t size, errbuf *eb);

#endif
