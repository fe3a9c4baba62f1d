#include "common/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *
moe_err_name(moe_err err)
{
    static const char *const names[MOE_ERR_COUNT] = {
        "OK",        "EINVAL",  "ERANGE", "ENOMEM",       "EIO",   "ENOTFOUND", "EMISMATCH",
        "ETIMEDOUT", "ECLOSED", "EBUSY",  "EUNSUPPORTED", "EPERM", "EINTERNAL"};
    return (unsigned)err < MOE_ERR_COUNT ? names[err] : "E?";
}

moe_err
err_set(errbuf *eb, moe_err code, const char *fmt, ...)
{
    if (eb == NULL) return code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(eb->text, sizeof eb->text, fmt, ap);
    va_end(ap);
    return code;
}

moe_err
err_wrap(errbuf *eb, moe_err code, const char *fmt, ...)
{
    if (eb == NULL) return code;
    char old[MOE_ERR_TEXT_MAX];
    memcpy(old, eb->text, sizeof old);
    old[sizeof old - 1] = '\0';

    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(eb->text, sizeof eb->text, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof eb->text - 1)
        snprintf(eb->text + n, sizeof eb->text - (size_t)n, ": %s", old);
    return code;
}
