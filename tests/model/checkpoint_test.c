/* checkpoint: golden models open with every tensor in place; damaged folders end in a message that
 * names file, tensor and reason; the fingerprint follows the weights, not their files. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/strbuf.h"
#include "model/pack.h"
#include "tests/model/support.h"
#include "tests/support/paths.h"

TestSuite(checkpoint, .timeout = 60);

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"

static char dir[PATH_BYTES];

static void
expect_error(moe_err code, const char *text)
{
    checkpoint *c;
    errbuf eb = {{0}};
    const moe_err err = checkpoint_open(&c, dir, &eb);
    cr_expect_eq(err, code, "%s instead of %s: %s", moe_err_name(err), moe_err_name(code), eb.text);
    cr_expect_null(c);
    cr_expect_not_null(strstr(eb.text, text), "\"%s\" should hold \"%s\"", eb.text, text);
    cr_expect_not_null(strstr(eb.text, dir), "\"%s\" should name the folder", eb.text);
    checkpoint_close(c);
}

static uint64_t
fingerprint(const char *folder)
{
    checkpoint *c;
    errbuf eb;
    cr_assert_eq(checkpoint_open(&c, folder, &eb), MOE_OK, "%s", eb.text);
    const uint64_t hash = checkpoint_fingerprint(c);
    cr_expect_eq(checkpoint_fingerprint(c), hash);
    checkpoint_close(c);
    return hash;
}

/* Every element is a finite weight of a sensible size. */
static void
expect_readable(const tensor_view *t)
{
    size_t elements = 1;
    for (uint32_t i = 0; i < t->rank; i++) {
        elements *= t->shape[i];
    }
    float *values = malloc(elements * sizeof *values);
    cr_assert_not_null(values);
    tensor_read_f32(t, 0, elements, values);
    float most = 0;
    for (size_t i = 0; i < elements; i++) {
        most = fmaxf(most, fabsf(values[i]));
        if (!isfinite(values[i])) most = INFINITY;
    }
    cr_expect(most > 0 && most < 100, "%s: %s: largest magnitude %g", t->file, t->name, most);
    free(values);
}

static void
expect_complete(const char *folder)
{
    checkpoint *c;
    errbuf eb;
    cr_assert_eq(checkpoint_open(&c, folder, &eb), MOE_OK, "%s", eb.text);
    const model_config *m = checkpoint_config(c);
    for (uint32_t layer = 0; layer < m->num_layers; layer++) {
        for (uint32_t expert = 0; expert < m->num_experts; expert++) {
            for (int kind = 0; kind < TENSOR_KIND_COUNT; kind++) {
                if (kind < TENSOR_W1 && expert) continue;
                if (kind < TENSOR_ATTN_NORM && layer) continue;
                const tensor_view *t = checkpoint_tensor(c, (tensor_kind)kind, layer, expert);
                char want[64];
                if (kind >= TENSOR_W1) {
                    snprintf(want, sizeof want, "layers.%u.block_sparse_moe.experts.%u.w%d.", layer,
                             expert, kind - TENSOR_W1 + 1);
                    cr_expect_not_null(strstr(t->name, want), "%s", t->name);
                }
                expect_readable(t);
            }
        }
    }
    checkpoint_close(c);
}

Test(checkpoint, every_golden_model_and_the_demo_open_and_read)
{
    char models[PATH_BYTES], folder[2 * PATH_BYTES];
    golden_path(models, sizeof models, "models");
    DIR *d = opendir(models);
    cr_assert_not_null(d, "%s", models);
    const struct dirent *entry;
    int count = 0;
    while ((entry = readdir(d)) != NULL) {
        if (entry->d_name[0] == '.') continue;
        snprintf(folder, sizeof folder, "%s/%s", models, entry->d_name);
        expect_complete(folder);
        count++;
    }
    closedir(d);
    cr_expect_geq(count, 10);
    expect_complete(test_path(folder, sizeof folder, "models/demo"));
}

static void
write_tiny(void)
{
    temp_write(dir, "config.json", tiny_config, strlen(tiny_config));
    st_write(dir, SINGLE, tiny_tensors, TINY_TENSORS);
}

static void
setup(void)
{
    temp_create(dir);
    write_tiny();
}

static void
teardown(void)
{
    temp_remove(dir);
}

TestSuite(damage, .init = setup, .fini = teardown, .timeout = 60);

/* The tiny model with tensor i replaced, or left out (replacement NULL). */
static void
write_with(size_t i, const st_tensor *replacement)
{
    st_tensor tensors[TINY_TENSORS];
    size_t count = 0;
    for (size_t j = 0; j < TINY_TENSORS; j++) {
        if (j != i)
            tensors[count++] = tiny_tensors[j];
        else if (replacement)
            tensors[count++] = *replacement;
    }
    st_write(dir, SINGLE, tensors, count);
}

Test(damage, each_missing_tensor_is_named)
{
    for (size_t i = 0; i < TINY_TENSORS; i++) {
        char text[256];
        write_with(i, NULL);
        snprintf(text, sizeof text, "/" SINGLE ": tensor %s is missing", tiny_tensors[i].name);
        expect_error(MOE_ENOTFOUND, text);
    }
}

Test(damage, each_wrong_shape_is_named_with_both_shapes)
{
    for (size_t i = 0; i < TINY_TENSORS; i++) {
        st_tensor bad = tiny_tensors[i];
        char text[256];
        bad.shape[0] += 2;
        write_with(i, &bad);
        if (bad.rank == 2)
            snprintf(text, sizeof text,
                     "/" SINGLE ": tensor %s has shape [%d, %d], config.json asks for [%d, %d]",
                     bad.name, (int)bad.shape[0], (int)bad.shape[1], (int)bad.shape[0] - 2,
                     (int)bad.shape[1]);
        else
            snprintf(text, sizeof text, "tensor %s has shape [10], config.json asks for [8]",
                     bad.name);
        expect_error(MOE_EINVAL, text);
    }
    st_tensor turned = tiny_tensors[10];
    turned.shape[0] = 8;
    turned.shape[1] = 12;
    write_with(10, &turned);
    expect_error(MOE_EINVAL, "0.w1.weight has shape [8, 12], config.json asks for [12, 8]");

    st_tensor deep = {tiny_tensors[1].name, "F32", 4, {8, 1, 1, 1}, NULL};
    write_with(1, &deep);
    expect_error(MOE_EINVAL, "has shape [8, 1, 1, 1], config.json asks for [8]");
}

Test(damage, a_dtype_that_is_not_read_matters_only_where_the_model_needs_it)
{
    st_tensor ints = tiny_tensors[9];
    ints.dtype = "I64";
    write_with(9, &ints);
    expect_error(MOE_EUNSUPPORTED,
                 "/" SINGLE ": tensor model.layers.0.block_sparse_moe.gate.weight has dtype I64");

    st_tensor tensors[TINY_TENSORS + 1];
    checkpoint *c;
    errbuf eb;
    memcpy(tensors, tiny_tensors, sizeof tiny_tensors);
    tensors[TINY_TENSORS] = (st_tensor){"position_ids", "I64", 1, {5}, NULL};
    st_write(dir, SINGLE, tensors, TINY_TENSORS + 1);
    cr_expect_eq(checkpoint_open(&c, dir, &eb), MOE_OK, "%s", eb.text);
    checkpoint_close(c);
}

Test(damage, a_file_cut_anywhere_is_refused)
{
    char path[2 * PATH_BYTES], *bytes;
    size_t len;
    errbuf eb;
    snprintf(path, sizeof path, "%s/%s", dir, SINGLE);
    cr_assert_eq(file_read(path, 1 << 20, &bytes, &len, &eb), MOE_OK);
    for (size_t cut = 0; cut < len; cut += cut < 12 || len - cut < 4 ? 1 : 29) {
        temp_write(dir, SINGLE, bytes, cut);
        expect_error(MOE_EINVAL, "/" SINGLE ": ");
    }
    free(bytes);
}

Test(damage, a_folder_without_its_parts_is_refused)
{
    char path[2 * PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", dir, SINGLE);
    cr_assert_eq(remove(path), 0);
    expect_error(MOE_ENOTFOUND, "neither model.safetensors nor model.safetensors.index.json");
    snprintf(path, sizeof path, "%s/config.json", dir);
    cr_assert_eq(remove(path), 0);
    expect_error(MOE_ENOTFOUND, "/config.json: ");
}

Test(damage, a_config_that_asks_for_more_than_the_file_holds_is_refused)
{
    static const char huge[] =
        "{\"model_type\":\"mixtral\",\"vocab_size\":16,\"hidden_size\":8,"
        "\"intermediate_size\":12,\"num_hidden_layers\":1024,\"num_attention_heads\":2,"
        "\"num_key_value_heads\":1,\"num_local_experts\":512}";
    temp_write(dir, "config.json", huge, strlen(huge));
    expect_error(MOE_EINVAL, "gate.weight has shape [2, 8], config.json asks for [512, 8]");
}

/* Split the tiny model into a.safetensors and b.safetensors, under an index; one entry of the map
 * (by tensor number) may point at another file. */
static void
write_sharded(size_t changed, const char *file)
{
    char path[2 * PATH_BYTES];
    strbuf map;
    strbuf_init(&map, 1 << 16);
    strbuf_puts(&map, "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
    for (size_t i = 0; i < TINY_TENSORS; i++) {
        const char *own = i < 7 ? "a.safetensors" : "b.safetensors";
        strbuf_printf(&map, "%s\"%s\":\"%s\"", i ? "," : "", tiny_tensors[i].name,
                      i == changed ? file : own);
    }
    strbuf_puts(&map, "}}");
    temp_write(dir, INDEX, strbuf_text(&map), map.len);
    strbuf_fini(&map);
    st_write(dir, "a.safetensors", tiny_tensors, 7);
    st_write(dir, "b.safetensors", tiny_tensors + 7, TINY_TENSORS - 7);
    snprintf(path, sizeof path, "%s/%s", dir, SINGLE);
    remove(path);
}

Test(damage, shards_open_and_a_wrong_index_is_refused)
{
    checkpoint *c;
    errbuf eb;
    char path[2 * PATH_BYTES];
    write_sharded(SIZE_MAX, NULL);
    cr_assert_eq(checkpoint_open(&c, dir, &eb), MOE_OK, "%s", eb.text);
    cr_expect_not_null(strstr(checkpoint_tensor(c, TENSOR_W2, 0, 1)->file, "/b.safetensors"));
    checkpoint_close(c);

    write_sharded(8, "a.safetensors");
    expect_error(MOE_ENOTFOUND,
                 "/a.safetensors: tensor model.layers.0.self_attn.o_proj.weight is missing");
    write_sharded(8, "c.safetensors");
    expect_error(MOE_ENOTFOUND, "/c.safetensors: ");

    static const char *const names[] = {
        "../a.safetensors", "/etc/passwd",     "..", "sub/../a.safetensors", "",
        ".hidden",          "./a.safetensors", "a/"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        write_sharded(8, names[i]);
        expect_error(MOE_EINVAL, "/" INDEX ": tensor model.layers.0.self_attn.o_proj.weight: the "
                                 "shard must be the name of a file in the folder");
    }

    write_sharded(SIZE_MAX, NULL);
    snprintf(path, sizeof path, "%s/b.safetensors", dir);
    cr_assert_eq(remove(path), 0);
    expect_error(MOE_ENOTFOUND, "/b.safetensors: ");
}

Test(damage, an_index_that_is_no_index_is_refused)
{
    static const struct {
        const char *text, *reason;
        moe_err err;
    } cases[] = {
        {"", INDEX ": not JSON", MOE_EINVAL},
        {"[]", "weight_map must be an object", MOE_EINVAL},
        {"{\"weight_map\":[]}", "weight_map must be an object", MOE_EINVAL},
        {"{\"weight_map\":{}}", "weight_map is empty", MOE_EINVAL},
        {"{\"weight_map\":{\"t\":3}}", "tensor t: the shard must be", MOE_EINVAL},
        {"{\"weight_map\":{\"t\":\"a.safetensors\",\"t\":\"b.safetensors\"}}",
         "tensor t is there twice", MOE_EINVAL},
        {"{\"weight_map\":{\"model.norm.weight\":\"a.safetensors\"}}",
         INDEX ": tensor model.embed_tokens.weight is missing", MOE_ENOTFOUND},
    };
    write_sharded(SIZE_MAX, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        temp_write(dir, INDEX, cases[i].text, strlen(cases[i].text));
        expect_error(cases[i].err, cases[i].reason);
    }
}

Test(damage, the_fingerprint_is_that_of_the_weights_not_of_the_files)
{
    const uint64_t whole = fingerprint(dir);
    st_tensor reversed[TINY_TENSORS], filled[TINY_TENSORS];
    char copy[PATH_BYTES];

    temp_create(copy);
    temp_copy_all(copy, dir);
    cr_expect_eq(fingerprint(copy), whole);
    temp_flip(copy, SINGLE, -1);
    cr_expect_neq(fingerprint(copy), whole, "one bit of the last weight");
    temp_remove(copy);

    /* The same tensors in another order, and in two files. */
    static uint8_t data[TINY_TENSORS][512];
    for (size_t i = 0; i < TINY_TENSORS; i++) {
        memset(data[i], (int)i, sizeof data[i]);
        filled[i] = tiny_tensors[i];
        filled[i].data = data[i];
        reversed[TINY_TENSORS - 1 - i] = filled[i];
    }
    st_write(dir, SINGLE, filled, TINY_TENSORS);
    const uint64_t in_order = fingerprint(dir);
    cr_expect_neq(in_order, whole);
    st_write(dir, SINGLE, reversed, TINY_TENSORS);
    cr_expect_eq(fingerprint(dir), in_order);
    write_sharded(SIZE_MAX, NULL);
    st_write(dir, "a.safetensors", filled, 7);
    st_write(dir, "b.safetensors", filled + 7, TINY_TENSORS - 7);
    cr_expect_eq(fingerprint(dir), in_order);
}

Test(damage, the_fingerprint_changes_with_every_number_that_enters_the_arithmetic)
{
    static const char *const extra[] = {"\"rms_norm_eps\":1e-6", "\"rope_theta\":5e4",
                                        "\"num_experts_per_tok\":1", "\"sliding_window\":9",
                                        "\"max_position_embeddings\":99"};
    const uint64_t plain = fingerprint(dir);
    for (size_t i = 0; i < sizeof extra / sizeof extra[0]; i++) {
        char text[1024];
        snprintf(text, sizeof text, "%.*s,%s}", (int)strlen(tiny_config) - 1, tiny_config,
                 extra[i]);
        temp_write(dir, "config.json", text, strlen(text));
        cr_expect_neq(fingerprint(dir), plain, "%s", extra[i]);
    }
}

Test(damage, the_fingerprint_of_a_large_tensor_sees_its_ends)
{
    char demo[PATH_BYTES];
    test_path(demo, sizeof demo, "models/demo");
    temp_remove(dir);
    temp_create(dir);
    temp_copy(dir, demo, "config.json");
    temp_copy(dir, demo, SINGLE);
    const uint64_t want = fingerprint(demo);
    cr_expect_eq(fingerprint(dir), want);

    checkpoint *c;
    errbuf eb;
    cr_assert_eq(checkpoint_open(&c, demo, &eb), MOE_OK);
    const tensor_view *t = checkpoint_tensor(c, TENSOR_W2, 3, 5);
    char *bytes;
    size_t len;
    char path[2 * PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s", demo, SINGLE);
    cr_assert_eq(file_read(path, SIZE_MAX - 1, &bytes, &len, &eb), MOE_OK);
    const char *found = memmem(bytes, len, t->data, t->bytes);
    cr_assert_not_null(found);
    const size_t at = (size_t)(found - bytes);
    const long begin = (long)at, end = (long)(at + t->bytes) - 1;
    checkpoint_close(c);
    free(bytes);

    temp_flip(dir, SINGLE, begin);
    cr_expect_neq(fingerprint(dir), want);
    temp_flip(dir, SINGLE, begin);
    temp_flip(dir, SINGLE, end);
    cr_expect_neq(fingerprint(dir), want);
    temp_flip(dir, SINGLE, end);
    cr_expect_eq(fingerprint(dir), want);
}
