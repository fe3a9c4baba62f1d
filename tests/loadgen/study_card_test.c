/* study_card: what is written is read again, and what is no card is refused by name. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "loadgen/study_card.h"

TestSuite(study_card, .timeout = 10);

static study_card card, again;

static void
fill(study_card *c)
{
    card_init(c);
    for (int i = 0; i < CARD_FIELDS; i++) {
        const card_field *f = &card_fields[i];
        if (f->usual != NULL) continue;
        const char *value = f->type == CARD_CHOICE ? "ep" : f->type == CARD_TEXT ? "a text" : "4";
        cr_assert_eq(card_set(c, f->path, value, NULL), MOE_OK);
    }
}

static char *
write_card(const study_card *c, size_t *len)
{
    char *text;
    errbuf eb = {{0}};
    FILE *to = open_memstream(&text, len);
    cr_assert_eq(card_write(c, to, &eb), MOE_OK, "%s", eb.text);
    fclose(to);
    return text;
}

Test(study_card, what_is_written_is_read_again)
{
    static const char *const texts[] = {"plain",
                                        "on",
                                        "~",
                                        "a: b # c",
                                        "\"quoted\" \\ \t",
                                        "1e3",
                                        "\xc3\xa9\xf0\x9f\x98\x80 - [x]",
                                        "two\nlines",
                                        " spaces "};
    errbuf eb = {{0}};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        size_t len;
        fill(&card);
        cr_assert_eq(card_set(&card, "description", texts[i], &eb), MOE_OK);
        cr_assert_eq(card_set(&card, "metric_source.traces", "a.json,b c.json", &eb), MOE_OK);
        char *text = write_card(&card, &len);
        cr_assert_eq(card_parse(text, len, &again, &eb), MOE_OK, "%s in %s", eb.text, text);
        for (int f = 0; f < CARD_FIELDS; f++) {
            cr_expect_str_eq(again.values[f], card.values[f], "%s", card_fields[f].path);
        }
        free(text);
    }
}

/* The layout that other readers of such cards look for. */
Test(study_card, keys_stand_where_the_study_has_them)
{
    static const char *const wanted[] = {
        "\nworkload:\n  model:\n    phase: \"inference\"\n    moe: true\n",
        "\n  data:\n    max-model-len: 4\n    max-num-seqs: 4\n",
        "\n    xpu_spec:\n      type: \"CPU\"\n",
        "\nModel-executor:\n  framework:\n    name: \"conclave\"\n",
        "\n  expert_parallel:\n    mode: \"ep\"\n    eplb: \"off\"\n",
        "\nmetric_source:\n  traces: [\"none\"]\n"};
    size_t len;
    fill(&card);
    char *text = write_card(&card, &len);
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        cr_expect_not_null(strstr(text, wanted[i]), "%s not in %s", wanted[i], text);
    }
    free(text);
}

/* Replace the first `from` of a good card by `to` and read it. */
static moe_err
read_changed(const char *from, const char *to, errbuf *eb)
{
    size_t len;
    fill(&card);
    char *text = write_card(&card, &len), *at = strstr(text, from);
    cr_assert_not_null(at, "%s", from);
    char *changed = malloc(len + strlen(to) + 1);
    const size_t before = (size_t)(at - text);
    memcpy(changed, text, before);
    strcpy(changed + before, to);
    strcat(changed, at + strlen(from));
    const moe_err err = card_parse(changed, strlen(changed), &again, eb);
    free(changed);
    free(text);
    return err;
}

Test(study_card, what_is_no_card_is_refused_by_name)
{
    static const struct {
        const char *from, *to, *says;
    } cases[] = {
        {"max-num-seqs: 4", "max-num-seqs: four",
         "workload.data.max-num-seqs: \"four\" is no count"},
        {"max-num-seqs: 4", "max-num-seqs: -4", "is no count"},
        {"max-num-seqs: 4", "max-num-seqs: 4.5", "is no count"},
        {"max-num-seqs: 4", "max-num-seqs: 99999999999999999999", "is no count"},
        {"max-num-seqs: 4", "max-num-seqs: [4]", "workload.data.max-num-seqs is no value"},
        {"max-num-seqs: 4", "max-num-seqs: 4\n    max-num-seqs: 5", "is there twice"},
        {"max-num-seqs: 4", "max-num-seqs: &x 4", "an anchor or a tag"},
        {"max-num-seqs: 4", "max-num-seqs: !!int 4", "an anchor or a tag"},
        {"max-num-seqs: 4", "other: 4", "workload.data.max-num-seqs is missing"},
        {"\"inference\"", "\"training\"", "only inference can be compared"},
        {"\"inference\"", "\"sleeping\"", "is none of inference|training"},
        {"[\"none\"]", "{a: b}", "metric_source.traces is no value"},
        {"[\"none\"]", "[[a]]", "metric_source.traces is no list"},
        {"version: \"1.0\"", "- a\n- b\nversion: \"1.0\"", ""},
        {"version: \"1.0\"", "\"version: 1", ""},
        {"version: \"1.0\"", "version: \"1\\0\"", "a NUL byte"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        errbuf eb = {{0}};
        cr_expect_eq(read_changed(cases[i].from, cases[i].to, &eb), MOE_EINVAL, "%s", cases[i].to);
        cr_expect_not_null(strstr(eb.text, cases[i].says), "%s: %s", cases[i].to, eb.text);
        cr_expect_neq(eb.text[0], '\0');
    }
    errbuf eb = {{0}};
    cr_expect_eq(card_parse("", 0, &again, &eb), MOE_EINVAL);
    cr_expect_eq(card_parse("a: b\n---\nc: d\n", 13, &again, &eb), MOE_EINVAL);
}

Test(study_card, keys_of_others_are_skipped)
{
    errbuf eb = {{0}};
    cr_expect_eq(read_changed("version: \"1.0\"",
                              "version: \"1.0\"\nmore: {a: [1, {b: c}], d: e}\nlist: [[1], {f: g}]",
                              &eb),
                 MOE_OK, "%s", eb.text);
}

Test(study_card, limits)
{
    errbuf eb = {{0}};
    char longest[CARD_VALUE_MAX + 1], *deep = malloc(CARD_BYTES_MAX + 2);
    memset(longest, 'x', sizeof longest);
    longest[CARD_VALUE_MAX] = '\0';
    card_init(&card);
    cr_expect_eq(card_set(&card, "version", longest, &eb), MOE_ERANGE);
    longest[CARD_VALUE_MAX - 1] = '\0';
    cr_expect_eq(card_set(&card, "version", longest, &eb), MOE_OK);
    cr_expect_eq(card_set(&card, "no.such.field", "x", &eb), MOE_ENOTFOUND);
    cr_expect_eq(card_check(&card, &eb), MOE_EINVAL, "what must be given is missing");
    memset(deep, '[', CARD_BYTES_MAX + 1);
    cr_expect_eq(card_parse(deep, CARD_BYTES_MAX + 1, &again, &eb), MOE_ERANGE);
    for (size_t i = 0; i < 3000; i += 3) {
        memcpy(deep + i, "{a:", 3);
    }
    cr_expect_eq(card_parse(deep, 3000, &again, &eb), MOE_EINVAL);
    free(deep);
}
