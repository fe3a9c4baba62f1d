#include "tests/support/openai_pattern.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ATOM_MAX 256

/* A place in the value: its siblings, and what to call it. */
typedef struct place {
    const cJSON *parent;
    const openai_vars *vars;
    char *why;
    size_t why_size;
    const char *name;
} place;

static bool match(const cJSON *pattern, const cJSON *value, place at);

static bool
say(const place *at, const char *pattern, const cJSON *value)
{
    char *text = value == NULL ? NULL : cJSON_PrintUnformatted(value);
    snprintf(at->why, at->why_size, "%s: %.120s does not match %.120s", at->name,
             text == NULL ? "nothing" : text, pattern);
    free(text);
    return false;
}

static double
sibling(const place *at, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(at->parent, key);
    return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

static bool
is_int(const cJSON *v)
{
    return cJSON_IsNumber(v) && v->valuedouble == floor(v->valuedouble);
}

static bool
match_bytes_of(const char *key, const cJSON *value, const place *at)
{
    const cJSON *text = cJSON_GetObjectItemCaseSensitive(at->parent, key);
    if (cJSON_IsNull(value)) return true;
    if (!cJSON_IsArray(value) || !cJSON_IsString(text)) return false;
    const unsigned char *p = (const unsigned char *)text->valuestring;
    const cJSON *item;
    cJSON_ArrayForEach(item, value)
    {
        if (*p == 0 || !cJSON_IsNumber(item) || item->valuedouble != *p) return false;
        p++;
    }
    return *p == 0;
}

/* The same value in all events: the first one seen decides. */
static bool
match_same(const char *key, const cJSON *value, const place *at)
{
    if (value == NULL) return false;
    if (at->vars->same == NULL) return true;
    const cJSON *first = cJSON_GetObjectItemCaseSensitive(at->vars->same, key);
    if (first != NULL) return cJSON_Compare(first, value, true);
    return cJSON_AddItemToObject(at->vars->same, key, cJSON_Duplicate(value, true));
}

static bool
match_sum(const char *expression, const cJSON *value, const place *at)
{
    char a[ATOM_MAX];
    snprintf(a, sizeof a, "%s", expression);
    char *b = strchr(a, '+');
    if (b == NULL || !is_int(value)) return false;
    *b++ = '\0';
    return value->valuedouble == sibling(at, a) + sibling(at, b);
}

static bool
match_enum(const char *list, const cJSON *value)
{
    if (!cJSON_IsString(value)) return false;
    const size_t len = strlen(value->valuestring);
    for (const char *word = list; word != NULL; word = strchr(word, '|')) {
        if (*word == '|') word++;
        if (strncmp(word, value->valuestring, len) == 0 && (word[len] == '|' || word[len] == 0))
            return true;
    }
    return false;
}

static bool
match_equal(const char *want, const cJSON *value)
{
    if (cJSON_IsString(value)) return strcmp(value->valuestring, want) == 0;
    char *end;
    const double number = strtod(want, &end);
    return cJSON_IsNumber(value) && *end == '\0' && value->valuedouble == number;
}

/* One pattern without alternatives. */
static bool
match_atom(const char *p, const cJSON *v, const place *at)
{
    const bool string = cJSON_IsString(v);
    if (strcmp(p, "absent") == 0) return v == NULL;
    if (v == NULL) return false;
    if (strcmp(p, "any") == 0) return true;
    if (strcmp(p, "null") == 0) return cJSON_IsNull(v);
    if (strcmp(p, "str") == 0) return string;
    if (strcmp(p, "str~nonempty") == 0) return string && v->valuestring[0] != '\0';
    if (strncmp(p, "str^", 4) == 0)
        return string && strncmp(v->valuestring, p + 4, strlen(p + 4)) == 0;
    if (strcmp(p, "int>0") == 0) return is_int(v) && v->valuedouble > 0;
    if (strcmp(p, "int>=0") == 0) return is_int(v) && v->valuedouble >= 0;
    if (strcmp(p, "float<=0") == 0) return cJSON_IsNumber(v) && v->valuedouble <= 0;
    if (strcmp(p, "unix_time") == 0)
        return is_int(v) && fabs(v->valuedouble - (double)time(NULL)) < 24 * 3600;
    if (strncmp(p, "int=", 4) == 0) return match_sum(p + 4, v, at);
    if (strncmp(p, "same:", 5) == 0) return match_same(p + 5, v, at);
    if (strncmp(p, "bytes_of:", 9) == 0) return match_bytes_of(p + 9, v, at);
    if (strncmp(p, "enum:", 5) == 0) return match_enum(p + 5, v);
    if (strcmp(p, "$model") == 0) return string && strcmp(v->valuestring, at->vars->model) == 0;
    return p[0] == '=' && match_equal(p + 1, v);
}

static bool
match_text(const char *pattern, const cJSON *value, const place *at)
{
    if (strncmp(pattern, "enum:", 5) == 0)
        return match_atom(pattern, value, at) || say(at, pattern, value);
    for (const char *p = pattern;;) {
        char atom[ATOM_MAX];
        const size_t len = strcspn(p, "|");
        snprintf(atom, sizeof atom, "%.*s", (int)len, p);
        if (match_atom(atom, value, at)) return true;
        if (p[len] == '\0') return say(at, pattern, value);
        p += len + 1;
    }
}

/* Entry i of a repeated "choices" has index i, whatever the pattern's example says. */
static bool
match_indexed(const cJSON *pattern, const cJSON *value, place at, uint32_t i)
{
    char index[16];
    snprintf(index, sizeof index, "=%u", i);
    cJSON *copy = cJSON_Duplicate(pattern, true);
    cJSON_ReplaceItemInObjectCaseSensitive(copy, "index", cJSON_CreateString(index));
    const bool good = match(copy, value, at);
    cJSON_Delete(copy);
    return good;
}

static bool
match_array(const cJSON *pattern, const cJSON *value, place at)
{
    if (!cJSON_IsArray(value)) return say(&at, "an array", value);
    const int count = cJSON_GetArraySize(value), want = cJSON_GetArraySize(pattern);
    if (want == 0) return count == 0 || say(&at, "[]", value);
    if (count == 0) return say(&at, "at least one entry", value);
    const uint32_t repeat = strcmp(at.name, "choices") == 0 ? at.vars->choices : 0;
    if (repeat != 0 && (uint32_t)count != repeat) return say(&at, "as many choices", value);
    const cJSON *item;
    uint32_t i = 0;
    at.parent = NULL;
    cJSON_ArrayForEach(item, value)
    {
        if (!(repeat != 0 ? match_indexed(pattern->child, item, at, i)
                          : match(pattern->child, item, at)))
            return false;
        i++;
    }
    return true;
}

static bool
match_object(const cJSON *pattern, const cJSON *value, place at)
{
    if (!cJSON_IsObject(value)) return say(&at, "an object", value);
    const cJSON *item;
    at.parent = value;
    if (pattern->child != NULL && strcmp(pattern->child->string, "*") == 0) {
        cJSON_ArrayForEach(item, value)
        {
            at.name = item->string;
            if (!match(pattern->child, item, at)) return false;
        }
        return true;
    }
    cJSON_ArrayForEach(item, pattern)
    {
        at.name = item->string;
        if (!match(item, cJSON_GetObjectItemCaseSensitive(value, item->string), at)) return false;
    }
    return true;
}

static bool
match(const cJSON *pattern, const cJSON *value, place at)
{
    if (cJSON_IsString(pattern)) return match_text(pattern->valuestring, value, &at);
    if (cJSON_IsArray(pattern)) return match_array(pattern, value, at);
    if (cJSON_IsObject(pattern)) return match_object(pattern, value, at);
    return say(&at, "an unknown pattern", value);
}

bool
openai_match(const cJSON *pattern, const cJSON *value, const openai_vars *vars, char *why,
             size_t why_size)
{
    why[0] = '\0';
    return match(pattern, value,
                 (place){.vars = vars, .why = why, .why_size = why_size, .name = "the answer"});
}
