#include "loadgen/markup.h"

#include <string.h>

void
markup_text(const char *text, FILE *to)
{
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '<': fputs("&lt;", to); break;
        case '>': fputs("&gt;", to); break;
        case '&': fputs("&amp;", to); break;
        case '"': fputs("&quot;", to); break;
        case '\'': fputs("&#39;", to); break;
        default: fputc(*text, to);
        }
    }
}

void
markup_address(const char *text, FILE *to)
{
    static const char plain[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/";
    for (; *text != '\0'; text++) {
        if (strchr(plain, *text) != NULL)
            fputc(*text, to);
        else
            fprintf(to, "%%%02X", (unsigned)(unsigned char)*text);
    }
}
