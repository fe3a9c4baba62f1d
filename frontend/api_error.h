/* api_error: what an HTTP client is told when its request can't be served.
 *
 * The body is OpenAI's: {"error": {"message", "type", "param", "code"}}.  type follows from the
 * status; param names the request's field, where one is to blame.
 *
 * Threads: plain data.
 */
#ifndef MOE_FRONTEND_API_ERROR_H
#define MOE_FRONTEND_API_ERROR_H

#include <stdbool.h>

#include "common/strbuf.h"

#define API_ERROR_TEXT_MAX 512

typedef struct api_error {
    int status;        /* HTTP status; 0 = no error */
    const char *param; /* NULL, or a string that outlives this */
    const char *code;  /* NULL, or a string that outlives this */
    char message[API_ERROR_TEXT_MAX];
} api_error;

/* Describe an error, over whatever was there.  The message is cut to API_ERROR_TEXT_MAX - 1 bytes,
 * never inside a character.  Always returns false, so that a check can end with
 * `return api_error_set(...)`. */
bool api_error_set(api_error *e, int status, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Append the error object's members: {"error":{...}} */
void api_error_print(const api_error *e, strbuf *out);

#endif
