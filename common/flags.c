#include "common/flags.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/json.h"

#define CONFIG_BYTES_MAX (1u << 20)
#define NAME_MAX_BYTES 96

static const char *
keep(flags *f, const char *text)
{
    char **grown = realloc(f->owned, (f->owned_count + 1) * sizeof *grown);
    if (grown == NULL) return NULL;
    f->owned = grown;
    char *copy = strdup(text);
    if (copy != NULL) f->owned[f->owned_count++] = copy;
    return copy;
}

static bool
parse_bool(const char *text, bool *out)
{
    static const char *const yes[] = {"true", "on", "1", "yes"}, *const no[] = {"false", "off", "0",
                                                                                "no"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(text, yes[i]) == 0) return *out = true, true;
        if (strcmp(text, no[i]) == 0) return *out = false, true;
    }
    return false;
}

static bool
is_choice(const char *choices, const char *text)
{
    const size_t len = strlen(text);
    if (strchr(text, '|') != NULL) return false; /* "ep|tp" is a part of "ep|tp" */
    for (const char *at = choices; len != 0 && at != NULL; at = strchr(at, '|')) {
        if (*at == '|') at++;
        if (strncmp(at, text, len) == 0 && (at[len] == '|' || at[len] == '\0')) return true;
    }
    return false;
}

static moe_err
set_number(const flag_spec *s, const char *text, const char *origin, errbuf *eb)
{
    char *end;
    errno = 0;
    const double v = strtod(text, &end);
    const bool whole = s->kind != FLAG_INT || (isfinite(v) && v == floor(v) && fabs(v) < 9e15);
    if (end == text || *end != '\0' || isnan(v) || !whole)
        return err_set(eb, MOE_EINVAL, "--%s (%s): \"%s\" is not %s", s->name, origin, text,
                       s->kind == FLAG_INT ? "a whole number" : "a number");
    if ((s->min != 0 || s->max != 0) && !(v >= s->min && v <= s->max))
        return err_set(eb, MOE_EINVAL, "--%s (%s): %s is not within %.15g..%.15g", s->name, origin,
                       text, s->min, s->max);
    if (s->kind == FLAG_INT)
        *(int64_t *)s->out = (int64_t)v;
    else
        *(double *)s->out = v;
    return MOE_OK;
}

static moe_err
set_value(flags *f, const flag_spec *s, const char *text, const char *origin, errbuf *eb)
{
    switch (s->kind) {
    case FLAG_INT:
    case FLAG_NUMBER: return set_number(s, text, origin, eb);
    case FLAG_BOOL:
        if (!parse_bool(text, s->out))
            return err_set(eb, MOE_EINVAL, "--%s (%s): \"%s\" is not true or false", s->name,
                           origin, text);
        return MOE_OK;
    case FLAG_CHOICE:
        if (!is_choice(s->choices, text))
            return err_set(eb, MOE_EINVAL, "--%s (%s): \"%s\" is none of %s", s->name, origin, text,
                           s->choices);
        break;
    case FLAG_STRING: break;
    }
    const char *copy = keep(f, text);
    if (copy == NULL) return err_set(eb, MOE_ENOMEM, "--%s: out of memory", s->name);
    *(const char **)s->out = copy;
    return MOE_OK;
}

/* "max_num_seqs" and "max-num-seqs" are the same name. */
static bool
same_name(const char *a, const char *b, size_t b_len)
{
    if (a == NULL || strlen(a) != b_len) return false;
    for (size_t i = 0; i < b_len; i++) {
        if (a[i] != (b[i] == '_' ? '-' : b[i])) return false;
    }
    return true;
}

static const flag_spec *
find(const flag_spec *specs, size_t count, const char *name, size_t len)
{
    for (size_t i = 0; i < count; i++) {
        if (same_name(specs[i].name, name, len) || same_name(specs[i].alias, name, len))
            return &specs[i];
    }
    return NULL;
}

static moe_err
from_config(flags *f, const flag_spec *specs, size_t count, const char *path, errbuf *eb)
{
    char *text;
    size_t len;
    cJSON *root = NULL;
    moe_err err = file_read(path, CONFIG_BYTES_MAX, &text, &len, eb);
    if (err) return err;
    err = json_parse(text, len, &root, eb);
    if (err) {
        err_wrap(eb, err, "%s", path);
        goto done;
    }
    if (!cJSON_IsObject(root)) {
        err = err_set(eb, MOE_EINVAL, "%s: must be a JSON object of options", path);
        goto done;
    }
    const cJSON *item;
    cJSON_ArrayForEach(item, root)
    {
        const flag_spec *s = find(specs, count, item->string, strlen(item->string));
        if (s == NULL) {
            err = err_set(eb, MOE_EINVAL, "%s: no option is called \"%s\"", path, item->string);
            goto done;
        }
        if (cJSON_IsNull(item)) continue; /* as good as absent */
        char *value =
            cJSON_IsString(item) ? strdup(item->valuestring) : cJSON_PrintUnformatted(item);
        if (value == NULL) {
            err = err_set(eb, MOE_ENOMEM, "%s: out of memory", path);
            goto done;
        }
        err = set_value(f, s, value, path, eb);
        free(value);
        if (err) goto done;
    }
done:
    cJSON_Delete(root);
    free(text);
    return err;
}

static moe_err
from_environment(flags *f, const flag_spec *specs, size_t count, errbuf *eb)
{
    for (size_t i = 0; i < count; i++) {
        char name[NAME_MAX_BYTES];
        snprintf(name, sizeof name, "CONCLAVE_%s", specs[i].name);
        for (char *c = name; *c != '\0'; c++) {
            *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
        }
        const char *value = getenv(name);
        if (value == NULL) continue;
        const moe_err err = set_value(f, &specs[i], value, name, eb);
        if (err) return err;
    }
    return MOE_OK;
}

/* Walks the command line; with only_config it looks for --help and --config alone, so that the
 * file's values can be set before those of higher rank. */
static moe_err
from_command_line(flags *f, const flag_spec *specs, size_t count, int argc, char **argv,
                  bool only_config, const char **config, errbuf *eb)
{
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (strncmp(arg, "--", 2) != 0) {
            if (strcmp(arg, "-h") == 0)
                f->help = true;
            else if (!only_config)
                f->words[f->word_count++] = arg;
            continue;
        }
        const char *name = arg + 2;
        const char *equals = strchr(name, '=');
        const size_t len = equals ? (size_t)(equals - name) : strlen(name);
        if (same_name("help", name, len)) {
            f->help = true;
            continue;
        }
        const bool is_config = same_name("config", name, len);
        const flag_spec *s = is_config ? NULL : find(specs, count, name, len);
        const bool negated = s == NULL && len > 3 && same_name("no-", name, 3) && !equals;
        if (negated) s = find(specs, count, name + 3, len - 3);
        if (!is_config && (s == NULL || (negated && s->kind != FLAG_BOOL)))
            return err_set(eb, MOE_EINVAL, "unknown option %s (--help lists them)", arg);

        const char *value = equals ? equals + 1 : NULL;
        if (value == NULL && s != NULL && s->kind == FLAG_BOOL) {
            /* "--eplb on" and a bare "--eplb" are both common. */
            bool ignored;
            if (negated)
                value = "false";
            else if (i + 1 < argc && parse_bool(argv[i + 1], &ignored))
                value = argv[++i];
            else
                value = "true";
        } else if (value == NULL) {
            if (i + 1 >= argc) return err_set(eb, MOE_EINVAL, "%s needs a value", arg);
            value = argv[++i];
        }
        if (is_config) {
            *config = value;
        } else if (!only_config) {
            const moe_err err = set_value(f, s, value, "command line", eb);
            if (err) return err;
        }
    }
    return MOE_OK;
}

moe_err
flags_parse(flags *f, const flag_spec *specs, size_t count, int argc, char **argv, errbuf *eb)
{
    const char *config = getenv("CONCLAVE_CONFIG");
    f->words = calloc((size_t)argc + 1, sizeof *f->words);
    if (f->words == NULL) return err_set(eb, MOE_ENOMEM, "out of memory");

    for (size_t i = 0; i < count; i++) {
        if (specs[i].fallback == NULL) continue;
        const moe_err err = set_value(f, &specs[i], specs[i].fallback, "default", eb);
        if (err) return err;
    }
    moe_err err = from_command_line(f, specs, count, argc, argv, true, &config, eb);
    if (!err && config != NULL) err = from_config(f, specs, count, config, eb);
    if (!err) err = from_environment(f, specs, count, eb);
    if (!err) err = from_command_line(f, specs, count, argc, argv, false, &config, eb);
    return err;
}

void
flags_fini(flags *f)
{
    for (size_t i = 0; i < f->owned_count; i++) {
        free(f->owned[i]);
    }
    free(f->owned);
    free(f->words);
    *f = (flags){0};
}

/* " (tokens, default 32)", or the part of it that there is. */
static void
print_unit_and_default(FILE *to, const flag_spec *s)
{
    const char *unit = s->unit == NULL ? "" : s->unit;
    const char *fallback = s->fallback == NULL ? "" : s->fallback;
    if (*unit == '\0' && *fallback == '\0') return;
    fprintf(to, " (%s%s%s%s)", unit, *unit && *fallback ? ", " : "", *fallback ? "default " : "",
            fallback);
}

void
flags_print_help(FILE *to, const char *usage, const char *summary, const flag_spec *specs,
                 size_t count)
{
    fprintf(to,
            "usage: %s\n%s\n\noptions (each also as CONCLAVE_NAME, or in the file of --config):\n",
            usage, summary);
    for (size_t i = 0; i < count; i++) {
        const flag_spec *s = &specs[i];
        static const char *const value_names[] = {" TEXT", " N", " X", "", " "};
        fprintf(to, "  --%s%s%s", s->name, value_names[s->kind],
                s->kind == FLAG_CHOICE ? s->choices : "");
        if (s->alias != NULL) fprintf(to, ", --%s", s->alias);
        fprintf(to, "\n        %s", s->help);
        print_unit_and_default(to, s);
        fputc('\n', to);
    }
    fprintf(to, "  --config FILE\n        options as a JSON object\n  --help\n        this text\n");
}
