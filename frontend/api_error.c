#include "frontend/api_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "frontend/utf8.h"

bool
api_error_set(api_error *e, int status, const char *param, const char *fmt, ...)
{
    e->status = status;
    e->param = param;
    e->code = NULL;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->message, sizeof e->message, fmt, ap);
    va_end(ap);
    /* A message may quote the client's text: a cut must not leave half a character behind. */
    e->message[utf8_valid_len(e->message, strlen(e->message))] = '\0';
    return false;
}

static const char *
type_of(int status)
{
    if (status == 429) return "rate_limit_error";
    return status >= 500 ? "server_error" : "invalid_request_error";
}

static void
print_or_null(strbuf *out, const char *text)
{
    if (text == NULL)
        strbuf_puts(out, "null");
    else
        strbuf_json_string(out, text, strlen(text));
}

void
api_error_print(const api_error *e, strbuf *out)
{
    strbuf_puts(out, "{\"error\":{\"message\":");
    print_or_null(out, e->message);
    strbuf_printf(out, ",\"type\":\"%s\",\"param\":", type_of(e->status));
    print_or_null(out, e->param);
    strbuf_puts(out, ",\"code\":");
    if (e->code != NULL)
        print_or_null(out, e->code);
    else
        strbuf_printf(out, "%d", e->status);
    strbuf_puts(out, "}}");
}
