#include "loadgen/json_writer.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define STRING_BYTES_MAX (128u << 20)
#define PATH_BYTES_MAX 4096

/* How many bytes the UTF-8 character at s [n] has; 0 when it is none. */
static size_t
utf8_length(const unsigned char *s, size_t n)
{
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    const size_t len = s[0] < 0x80   ? 1
                       : s[0] < 0xc2 ? 0
                       : s[0] < 0xe0 ? 2
                       : s[0] < 0xf0 ? 3
                       : s[0] < 0xf5 ? 4
                                     : 0;
    if (len < 2) return len;
    if (len > n) return 0;
    uint32_t c = s[0] & (0x7fu >> len);
    for (size_t i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3fu);
    }
    return c < smallest[len] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : len;
}

/* A server's bytes may be no UTF-8, and then no reader would take the file: U+FFFD stands for
 * every byte that is none. */
static void
put_escaped(json_writer *w, const char *text, size_t n)
{
    strbuf clean;
    strbuf_init(&clean, STRING_BYTES_MAX);
    for (size_t i = 0; i < n;) {
        const size_t len = utf8_length((const unsigned char *)text + i, n - i);
        strbuf_append(&clean, len ? text + i : "\xef\xbf\xbd", len ? len : 3);
        i += len ? len : 1;
    }
    strbuf_reset(&w->scratch);
    strbuf_json_string(&w->scratch, strbuf_text(&clean), clean.len);
    if (clean.failed || w->scratch.failed) w->failed = true;
    fputs(strbuf_text(&w->scratch), w->to);
    strbuf_fini(&clean);
}

void
json_writer_init(json_writer *w, FILE *to)
{
    *w = (json_writer){.to = to};
    strbuf_init(&w->scratch, STRING_BYTES_MAX);
}

moe_err
json_writer_fini(json_writer *w, errbuf *eb)
{
    fputc('\n', w->to);
    strbuf_fini(&w->scratch);
    if (fflush(w->to) != 0 || ferror(w->to))
        return err_set(eb, MOE_EIO, "result: %s", strerror(errno));
    return w->failed ? err_set(eb, MOE_ENOMEM, "result: out of memory") : MOE_OK;
}

static void
separate(json_writer *w)
{
    if (w->comma) fputs(", ", w->to);
    w->comma = true;
}

void
json_open(json_writer *w, char bracket)
{
    separate(w);
    fputc(bracket, w->to);
    w->comma = false;
}

void
json_close(json_writer *w, char bracket)
{
    fputc(bracket, w->to);
    w->comma = true;
}

void
json_key(json_writer *w, const char *name)
{
    separate(w);
    put_escaped(w, name, strlen(name));
    fputs(": ", w->to);
    w->comma = false;
}

void
json_put_string(json_writer *w, const char *text, size_t n)
{
    separate(w);
    put_escaped(w, text, n);
}

void
json_put_number(json_writer *w, double v)
{
    char text[40];
    if (!isfinite(v)) {
        json_put_json(w, NULL);
        return;
    }
    snprintf(text, sizeof text, "%.15g", v);
    if (strtod(text, NULL) != v) snprintf(text, sizeof text, "%.17g", v);
    json_put_json(w, text);
}

void
json_put_u64(json_writer *w, uint64_t v)
{
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)v);
    json_put_json(w, text);
}

void
json_put_bool(json_writer *w, bool v)
{
    json_put_json(w, v ? "true" : "false");
}

void
json_put_text(json_writer *w, const char *text)
{
    if (text == NULL)
        json_put_json(w, NULL);
    else
        json_put_string(w, text, strlen(text));
}

void
json_put_json(json_writer *w, const char *json)
{
    separate(w);
    fputs(json ? json : "null", w->to);
}

void
json_key_number(json_writer *w, const char *name, double v)
{
    json_key(w, name);
    json_put_number(w, v);
}

void
json_key_bool(json_writer *w, const char *name, bool v)
{
    json_key(w, name);
    json_put_bool(w, v);
}

void
json_key_text(json_writer *w, const char *name, const char *text)
{
    json_key(w, name);
    json_put_text(w, text);
}

/* Every folder that this file's path names. */
static moe_err
make_folders(const char *file, errbuf *eb)
{
    char path[PATH_BYTES_MAX];
    snprintf(path, sizeof path, "%s", file);
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(path, 0777) != 0 && errno != EEXIST)
            return err_set(eb, MOE_EIO, "%s: %s", path, strerror(errno));
        *slash = '/';
    }
    return MOE_OK;
}

moe_err
json_save(const char *dir, const char *filename,
          moe_err (*write)(const void *ctx, FILE *to, errbuf *eb), const void *ctx, char *path,
          size_t size, errbuf *eb)
{
    char partial[PATH_BYTES_MAX];
    const int n = snprintf(path, size, "%s/%s", dir, filename);
    if (n < 0 || (size_t)n >= size || (size_t)n + 32 > sizeof partial)
        return err_set(eb, MOE_ERANGE, "%s: the path is too long", dir);
    snprintf(partial, sizeof partial, "%s.%ld.partial", path, (long)getpid());
    moe_err err = make_folders(path, eb);
    if (err) return err;

    FILE *to = fopen(partial, "w");
    if (to == NULL) return err_set(eb, MOE_EIO, "%s: %s", partial, strerror(errno));
    err = write(ctx, to, eb);
    if (fclose(to) != 0 && !err) err = err_set(eb, MOE_EIO, "%s: %s", partial, strerror(errno));
    if (!err && rename(partial, path) != 0)
        err = err_set(eb, MOE_EIO, "%s: %s", path, strerror(errno));
    if (err) unlink(partial);
    return err;
}
