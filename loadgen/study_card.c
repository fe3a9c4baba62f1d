#include "loadgen/study_card.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "common/file.h"

#define DEPTH_MAX 8
#define NODES_MAX 4096

const card_field card_fields[CARD_FIELDS] = {
    {"version", CARD_TEXT, NULL, "1.0"},
    {"description", CARD_TEXT, NULL, NULL},
    {"hf_url", CARD_TEXT, NULL, "none"},
    {"trace_url", CARD_TEXT, NULL, "none"},
    {"workload.model.phase", CARD_CHOICE, "inference|training", "inference"},
    {"workload.model.moe", CARD_CHOICE, "true|false", "true"},
    {"workload.model.granularity", CARD_TEXT, NULL, "model_fwd"},
    {"workload.model.model_family", CARD_TEXT, NULL, NULL},
    {"workload.model.precision", CARD_TEXT, NULL, NULL},
    {"workload.data.max-model-len", CARD_COUNT, NULL, NULL},
    {"workload.data.max-num-seqs", CARD_COUNT, NULL, NULL},
    {"workload.data.max-num-batched-tokens", CARD_COUNT, NULL, NULL},
    {"workload.data.dataset", CARD_TEXT, NULL, NULL},
    {"workload.hardware.network_topo.topology", CARD_TEXT, NULL, "one host"},
    {"workload.hardware.network_topo.bandwidth_gbps", CARD_NUMBER, NULL, "0"},
    {"workload.hardware.xpu_spec.type", CARD_TEXT, NULL, "CPU"},
    {"workload.hardware.xpu_spec.model", CARD_TEXT, NULL, NULL},
    {"workload.hardware.xpu_spec.total_count", CARD_COUNT, NULL, NULL},
    {"workload.hardware.xpu_spec.count_per_node", CARD_COUNT, NULL, NULL},
    {"workload.hardware.driver_version", CARD_TEXT, NULL, "none"},
    {"Model-executor.framework.name", CARD_TEXT, NULL, "conclave"},
    {"Model-executor.framework.compiler_tool_selection", CARD_TEXT, NULL, "none"},
    {"Model-executor.model_plan_parallelization.dp_replicate", CARD_COUNT, NULL, "1"},
    {"Model-executor.model_plan_parallelization.dp_shard", CARD_COUNT, NULL, "1"},
    {"Model-executor.model_plan_parallelization.tp", CARD_COUNT, NULL, NULL},
    {"Model-executor.model_plan_parallelization.pp", CARD_COUNT, NULL, "1"},
    {"Model-executor.model_plan_parallelization.cp", CARD_COUNT, NULL, "1"},
    {"Model-executor.model_plan_parallelization.ep", CARD_COUNT, NULL, NULL},
    {"Model-executor.communication_library.name", CARD_TEXT, NULL, "conclave exchange (shm)"},
    {"Model-executor.communication_library.version", CARD_TEXT, NULL, "none"},
    {"Model-executor.communication_library.env", CARD_TEXT, NULL, "none"},
    {"Model-executor.protocol_selection", CARD_LIST, NULL, "shm"},
    {"Model-executor.expert_parallel.mode", CARD_CHOICE, "tp|ep", NULL},
    {"Model-executor.expert_parallel.eplb", CARD_CHOICE, "on|off", "off"},
    {"Model-executor.expert_parallel.top_k", CARD_COUNT, NULL, NULL},
    {"metric_source.traces", CARD_LIST, NULL, "none"},
    {"metric_source.metrics_specific_trace", CARD_TEXT, NULL, "none"},
    {"conclave.mode", CARD_TEXT, NULL, NULL},
    {"conclave.load", CARD_TEXT, NULL, NULL},
    {"conclave.options", CARD_TEXT, NULL, "none"},
    {"conclave.build", CARD_TEXT, NULL, NULL},
    {"conclave.kernel_tier", CARD_TEXT, NULL, "none"},
    {"conclave.routers", CARD_COUNT, NULL, "1"},
    {"conclave.workers", CARD_COUNT, NULL, NULL},
    {"conclave.threads", CARD_COUNT, NULL, NULL},
};

static int
find_field(const char *path)
{
    for (int i = 0; i < CARD_FIELDS; i++) {
        if (strcmp(card_fields[i].path, path) == 0) return i;
    }
    return -1;
}

void
card_init(study_card *card)
{
    for (int i = 0; i < CARD_FIELDS; i++) {
        const char *usual = card_fields[i].usual;
        snprintf(card->values[i], CARD_VALUE_MAX, "%s", usual ? usual : "");
    }
}

moe_err
card_set(study_card *card, const char *path, const char *value, errbuf *eb)
{
    const int i = find_field(path);
    if (i < 0) return err_set(eb, MOE_ENOTFOUND, "a card has no %s", path);
    const size_t len = strlen(value);
    if (len >= CARD_VALUE_MAX)
        return err_set(eb, MOE_ERANGE, "%s is longer than %d bytes", path, CARD_VALUE_MAX - 1);
    memcpy(card->values[i], value, len + 1);
    return MOE_OK;
}

const char *
card_get(const study_card *card, const char *path)
{
    const int i = find_field(path);
    return i < 0 ? "" : card->values[i];
}

/* ---- checking ---- */

static bool
is_number(const char *text, bool whole)
{
    if (strspn(text, "0123456789.") != strlen(text) || strlen(text) > 15) return false;
    if (whole && strchr(text, '.') != NULL) return false;
    char *end;
    errno = 0;
    const double v = strtod(text, &end);
    return end != text && *end == '\0' && errno == 0 && isfinite(v);
}

static bool
is_choice(const char *choices, const char *value)
{
    const size_t len = strlen(value);
    for (const char *at = choices; len > 0;) {
        const size_t n = strcspn(at, "|");
        if (n == len && memcmp(at, value, n) == 0) return true;
        if (at[n] == '\0') break;
        at += n + 1;
    }
    return false;
}

moe_err
card_check(const study_card *card, errbuf *eb)
{
    for (int i = 0; i < CARD_FIELDS; i++) {
        const card_field *f = &card_fields[i];
        const char *value = card->values[i];
        if (value[0] == '\0') return err_set(eb, MOE_EINVAL, "%s is missing", f->path);
        if (f->type == CARD_COUNT && !is_number(value, true))
            return err_set(eb, MOE_EINVAL, "%s: \"%.40s\" is no count", f->path, value);
        if (f->type == CARD_NUMBER && !is_number(value, false))
            return err_set(eb, MOE_EINVAL, "%s: \"%.40s\" is no number", f->path, value);
        if (f->type == CARD_CHOICE && !is_choice(f->choices, value))
            return err_set(eb, MOE_EINVAL, "%s: \"%.40s\" is none of %s", f->path, value,
                           f->choices);
    }
    if (strcmp(card_get(card, "workload.model.phase"), "inference") != 0)
        return err_set(eb, MOE_EINVAL, "workload.model.phase: only inference can be compared");
    return MOE_OK;
}

/* ---- writing ---- */

static int
write_bytes(void *ctx, unsigned char *bytes, size_t n)
{
    return fwrite(bytes, 1, n, ctx) == n;
}

static bool
emit(yaml_emitter_t *emitter, yaml_event_t *event, int made)
{
    return made && yaml_emitter_emit(emitter, event);
}

static bool
put_scalar(yaml_emitter_t *emitter, const char *text, size_t len, bool quoted)
{
    yaml_event_t e;
    return emit(emitter, &e,
                yaml_scalar_event_initialize(
                    &e, NULL, NULL, (const yaml_char_t *)text, (int)len, !quoted, 1,
                    quoted ? YAML_DOUBLE_QUOTED_SCALAR_STYLE : YAML_PLAIN_SCALAR_STYLE));
}

static bool
put_list(yaml_emitter_t *emitter, const char *text)
{
    yaml_event_t e;
    bool ok =
        emit(emitter, &e,
             yaml_sequence_start_event_initialize(&e, NULL, NULL, 1, YAML_FLOW_SEQUENCE_STYLE));
    for (const char *at = text; ok; at += strcspn(at, ",") + 1) {
        const size_t n = strcspn(at, ",");
        ok = put_scalar(emitter, at, n, true);
        if (at[n] == '\0') break;
    }
    return ok && emit(emitter, &e, yaml_sequence_end_event_initialize(&e));
}

static bool
put_value(yaml_emitter_t *emitter, const card_field *f, const char *value)
{
    if (f->type == CARD_LIST) return put_list(emitter, value);
    /* Quoted, so that no reader takes a text for something else: "on" is true in YAML 1.1. */
    const bool plain = f->type == CARD_COUNT || f->type == CARD_NUMBER ||
                       (f->choices != NULL && strcmp(f->choices, "true|false") == 0);
    return put_scalar(emitter, value, strlen(value), !plain);
}

/* How many whole parts ("a.b.") two paths have in common. */
static int
common_parts(const char *a, const char *b)
{
    int parts = 0;
    for (size_t i = 0; a[i] == b[i] && a[i] != '\0'; i++) {
        parts += a[i] == '.';
    }
    return parts;
}

static bool
put_fields(yaml_emitter_t *emitter, const study_card *card)
{
    yaml_event_t e;
    int depth = 0;
    bool ok = true;
    for (int i = 0; i < CARD_FIELDS && ok; i++) {
        const char *path = card_fields[i].path;
        const int keep = i == 0 ? 0 : common_parts(path, card_fields[i - 1].path);
        for (; depth > keep && ok; depth--) {
            ok = emit(emitter, &e, yaml_mapping_end_event_initialize(&e));
        }
        for (int skip = keep; skip > 0; skip--) {
            path = strchr(path, '.') + 1;
        }
        for (const char *dot; ok && (dot = strchr(path, '.')) != NULL; path = dot + 1, depth++) {
            ok = put_scalar(emitter, path, (size_t)(dot - path), false) &&
                 emit(emitter, &e,
                      yaml_mapping_start_event_initialize(&e, NULL, NULL, 1,
                                                          YAML_BLOCK_MAPPING_STYLE));
        }
        ok = ok && put_scalar(emitter, path, strlen(path), false) &&
             put_value(emitter, &card_fields[i], card->values[i]);
    }
    for (; depth > 0 && ok; depth--) {
        ok = emit(emitter, &e, yaml_mapping_end_event_initialize(&e));
    }
    return ok;
}

moe_err
card_write(const study_card *card, FILE *to, errbuf *eb)
{
    yaml_emitter_t emitter;
    yaml_event_t e;
    if (!yaml_emitter_initialize(&emitter)) return err_set(eb, MOE_ENOMEM, "out of memory");
    yaml_emitter_set_output(&emitter, write_bytes, to);
    yaml_emitter_set_unicode(&emitter, 1);
    yaml_emitter_set_width(&emitter, -1);
    const bool ok =
        emit(&emitter, &e, yaml_stream_start_event_initialize(&e, YAML_UTF8_ENCODING)) &&
        emit(&emitter, &e, yaml_document_start_event_initialize(&e, NULL, NULL, NULL, 1)) &&
        emit(&emitter, &e,
             yaml_mapping_start_event_initialize(&e, NULL, NULL, 1, YAML_BLOCK_MAPPING_STYLE)) &&
        put_fields(&emitter, card) && emit(&emitter, &e, yaml_mapping_end_event_initialize(&e)) &&
        emit(&emitter, &e, yaml_document_end_event_initialize(&e, 1)) &&
        emit(&emitter, &e, yaml_stream_end_event_initialize(&e)) && yaml_emitter_flush(&emitter);
    moe_err err = MOE_OK;
    if (!ok || ferror(to))
        err = err_set(eb, MOE_EIO, "can't write the card: %s",
                      emitter.problem ? emitter.problem : "no memory");
    yaml_emitter_delete(&emitter);
    return err;
}

/* ---- reading ---- */

typedef struct reading {
    yaml_parser_t parser;
    study_card *card;
    bool seen[CARD_FIELDS];
    char path[DEPTH_MAX * 64];
    int nodes;
    errbuf *eb;
} reading;

/* The next event, with anything that is no plain data refused. */
static moe_err
next_event(reading *r, yaml_event_t *e)
{
    if (!yaml_parser_parse(&r->parser, e)) {
        if (r->parser.error == YAML_MEMORY_ERROR)
            return err_set(r->eb, MOE_ENOMEM, "out of memory");
        return err_set(r->eb, MOE_EINVAL, "line %zu: %s", r->parser.problem_mark.line + 1,
                       r->parser.problem ? r->parser.problem : "not YAML");
    }
    const char *what = NULL;
    if (++r->nodes > NODES_MAX) what = "too many values";
    if (e->type == YAML_ALIAS_EVENT) what = "an alias";
    if (e->type == YAML_SCALAR_EVENT && (e->data.scalar.anchor || e->data.scalar.tag))
        what = "an anchor or a tag";
    if (e->type == YAML_MAPPING_START_EVENT &&
        (e->data.mapping_start.anchor || e->data.mapping_start.tag))
        what = "an anchor or a tag";
    if (e->type == YAML_SEQUENCE_START_EVENT &&
        (e->data.sequence_start.anchor || e->data.sequence_start.tag))
        what = "an anchor or a tag";
    if (what == NULL) return MOE_OK;
    const moe_err err =
        err_set(r->eb, MOE_EINVAL, "line %zu: %s; a card has none", e->start_mark.line + 1, what);
    yaml_event_delete(e);
    return err;
}

/* Append a scalar to a field's value.  A NUL within would end it early. */
static moe_err
take_scalar(reading *r, const yaml_event_t *e, int field, bool more)
{
    const char *text = (const char *)e->data.scalar.value;
    const size_t len = e->data.scalar.length;
    char *value = r->card->values[field];
    const size_t used = more ? strlen(value) : 0;
    if (strlen(text) != len)
        return err_set(r->eb, MOE_EINVAL, "line %zu: a NUL byte", e->start_mark.line + 1);
    if (used + len + 2 > CARD_VALUE_MAX)
        return err_set(r->eb, MOE_ERANGE, "line %zu: longer than %d bytes", e->start_mark.line + 1,
                       CARD_VALUE_MAX - 1);
    if (used > 0) value[used] = ',';
    memcpy(value + used + (used > 0), text, len + 1);
    return MOE_OK;
}

/* Past the end of a mapping or sequence that nobody reads. */
static moe_err
skip_rest(reading *r)
{
    yaml_event_t e;
    for (int depth = 1; depth > 0;) {
        const moe_err err = next_event(r, &e);
        if (err) return err;
        depth += e.type == YAML_MAPPING_START_EVENT || e.type == YAML_SEQUENCE_START_EVENT;
        depth -= e.type == YAML_MAPPING_END_EVENT || e.type == YAML_SEQUENCE_END_EVENT;
        yaml_event_delete(&e);
    }
    return MOE_OK;
}

static moe_err
read_list(reading *r, int field)
{
    yaml_event_t e;
    for (bool more = false;; more = true) {
        moe_err err = next_event(r, &e);
        if (err) return err;
        const bool end = e.type == YAML_SEQUENCE_END_EVENT;
        if (e.type == YAML_SCALAR_EVENT)
            err = take_scalar(r, &e, field, more);
        else if (!end)
            err = err_set(r->eb, MOE_EINVAL, "%s is no list of texts", r->path);
        yaml_event_delete(&e);
        if (err || end) return err;
    }
}

static moe_err read_mapping(reading *r, int depth);

static moe_err
read_value(reading *r, int depth)
{
    yaml_event_t e;
    moe_err err = next_event(r, &e);
    if (err) return err;
    const yaml_event_type_t type = e.type;
    const int field = find_field(r->path);
    if (field >= 0 && r->seen[field])
        err = err_set(r->eb, MOE_EINVAL, "%s is there twice", r->path);
    if (field >= 0) r->seen[field] = true;
    const bool list = field >= 0 && card_fields[field].type == CARD_LIST;
    if (!err && field >= 0 && (list ? type == YAML_MAPPING_START_EVENT : type != YAML_SCALAR_EVENT))
        err = err_set(r->eb, MOE_EINVAL, "%s is no value", r->path);
    if (!err && field >= 0 && type == YAML_SCALAR_EVENT) err = take_scalar(r, &e, field, false);
    yaml_event_delete(&e);
    if (err) return err;
    if (type == YAML_SEQUENCE_START_EVENT) return field >= 0 ? read_list(r, field) : skip_rest(r);
    if (type == YAML_MAPPING_START_EVENT) return read_mapping(r, depth + 1);
    return MOE_OK;
}

static moe_err
read_mapping(reading *r, int depth)
{
    const size_t used = strlen(r->path);
    if (depth > DEPTH_MAX) return err_set(r->eb, MOE_EINVAL, "deeper than %d mappings", DEPTH_MAX);
    for (;;) {
        yaml_event_t e;
        moe_err err = next_event(r, &e);
        if (err) return err;
        const bool end = e.type == YAML_MAPPING_END_EVENT;
        if (!end && e.type != YAML_SCALAR_EVENT)
            err = err_set(r->eb, MOE_EINVAL, "line %zu: a key is no text", e.start_mark.line + 1);
        if (!end && !err) {
            const int n = snprintf(r->path + used, sizeof r->path - used, "%s%s", used ? "." : "",
                                   (const char *)e.data.scalar.value);
            if (n < 0 || (size_t)n >= sizeof r->path - used)
                err = err_set(r->eb, MOE_ERANGE, "line %zu: a key is too long",
                              e.start_mark.line + 1);
        }
        yaml_event_delete(&e);
        if (!end && !err) err = read_value(r, depth);
        r->path[used] = '\0';
        if (end || err) return err;
    }
}

static moe_err
read_document(reading *r)
{
    static const yaml_event_type_t around[] = {
        YAML_STREAM_START_EVENT,  YAML_DOCUMENT_START_EVENT,
        YAML_MAPPING_START_EVENT, YAML_NO_EVENT /* what is within */,
        YAML_DOCUMENT_END_EVENT,  YAML_STREAM_END_EVENT};
    for (size_t i = 0; i < sizeof around / sizeof around[0]; i++) {
        yaml_event_t e;
        if (around[i] == YAML_NO_EVENT) {
            const moe_err err = read_mapping(r, 1);
            if (err) return err;
            continue;
        }
        const moe_err err = next_event(r, &e);
        if (err) return err;
        const bool right = e.type == around[i];
        yaml_event_delete(&e);
        if (!right) return err_set(r->eb, MOE_EINVAL, "a card is one mapping, and nothing else");
    }
    return MOE_OK;
}

moe_err
card_parse(const char *text, size_t len, study_card *out, errbuf *eb)
{
    if (len > CARD_BYTES_MAX)
        return err_set(eb, MOE_ERANGE, "larger than %u bytes", CARD_BYTES_MAX);
    reading *r = calloc(1, sizeof *r);
    if (r == NULL || !yaml_parser_initialize(&r->parser)) {
        free(r);
        return err_set(eb, MOE_ENOMEM, "out of memory");
    }
    errbuf local = {{0}};
    memset(out, 0, sizeof *out);
    r->card = out;
    r->eb = eb != NULL ? eb : &local;
    yaml_parser_set_input_string(&r->parser, (const unsigned char *)text, len);
    moe_err err = read_document(r);
    yaml_parser_delete(&r->parser);
    free(r);
    return err ? err : card_check(out, eb);
}

moe_err
card_read(const char *path, study_card *out, errbuf *eb)
{
    char *text;
    size_t len;
    moe_err err = file_read(path, CARD_BYTES_MAX, &text, &len, eb);
    if (err) return err;
    err = card_parse(text, len, out, eb);
    free(text);
    return err ? err_wrap(eb, err, "%s", path) : MOE_OK;
}
