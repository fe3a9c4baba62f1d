#include "tests/model/support.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"
#include "common/strbuf.h"

const char tiny_config[] =
    "{\"architectures\":[\"MixtralForCausalLM\"],\"model_type\":\"mixtral\",\"vocab_size\":16,"
    "\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"num_local_experts\":2}";

#define LAYER "model.layers.0."
#define EXPERT LAYER "block_sparse_moe.experts."

const st_tensor tiny_tensors[TINY_TENSORS] = {
    {"model.embed_tokens.weight", "BF16", 2, {16, 8}, NULL},
    {"model.norm.weight", "F32", 1, {8}, NULL},
    {"lm_head.weight", "BF16", 2, {16, 8}, NULL},
    {LAYER "input_layernorm.weight", "F32", 1, {8}, NULL},
    {LAYER "post_attention_layernorm.weight", "F32", 1, {8}, NULL},
    {LAYER "self_attn.q_proj.weight", "BF16", 2, {8, 8}, NULL},
    {LAYER "self_attn.k_proj.weight", "BF16", 2, {4, 8}, NULL},
    {LAYER "self_attn.v_proj.weight", "BF16", 2, {4, 8}, NULL},
    {LAYER "self_attn.o_proj.weight", "F16", 2, {8, 8}, NULL},
    {LAYER "block_sparse_moe.gate.weight", "F32", 2, {2, 8}, NULL},
    {EXPERT "0.w1.weight", "BF16", 2, {12, 8}, NULL},
    {EXPERT "0.w2.weight", "BF16", 2, {8, 12}, NULL},
    {EXPERT "0.w3.weight", "BF16", 2, {12, 8}, NULL},
    {EXPERT "1.w1.weight", "BF16", 2, {12, 8}, NULL},
    {EXPERT "1.w2.weight", "BF16", 2, {8, 12}, NULL},
    {EXPERT "1.w3.weight", "BF16", 2, {12, 8}, NULL},
};

static const char *
join(char *buf, const char *dir, const char *file)
{
    snprintf(buf, PATH_BYTES, "%s/%s", dir, file);
    return buf;
}

void
temp_create(char *dir)
{
    const char *base = getenv("TMPDIR");
    snprintf(dir, PATH_BYTES, "%s/conclave-model-XXXXXX", base && *base ? base : "/tmp");
    cr_assert_not_null(mkdtemp(dir));
}

void
temp_remove(const char *dir)
{
    char path[PATH_BYTES];
    DIR *d = opendir(dir);
    cr_assert_not_null(d);
    const struct dirent *entry;
    while ((entry = readdir(d)) != NULL) {
        if (entry->d_name[0] != '.') unlink(join(path, dir, entry->d_name));
    }
    closedir(d);
    cr_assert_eq(rmdir(dir), 0);
}

void
temp_write(const char *dir, const char *file, const void *bytes, size_t len)
{
    char path[PATH_BYTES];
    FILE *f = fopen(join(path, dir, file), "wb");
    cr_assert_not_null(f, "%s", path);
    cr_assert_eq(fwrite(bytes, 1, len, f), len);
    cr_assert_eq(fclose(f), 0);
}

void
temp_copy(const char *dir, const char *from_dir, const char *file)
{
    char path[PATH_BYTES], *bytes;
    size_t len;
    errbuf eb;
    cr_assert_eq(file_read(join(path, from_dir, file), SIZE_MAX - 1, &bytes, &len, &eb), MOE_OK,
                 "%s", eb.text);
    temp_write(dir, file, bytes, len);
    free(bytes);
}

void
temp_copy_all(const char *dir, const char *from_dir)
{
    DIR *d = opendir(from_dir);
    cr_assert_not_null(d);
    const struct dirent *entry;
    while ((entry = readdir(d)) != NULL) {
        if (entry->d_name[0] != '.') temp_copy(dir, from_dir, entry->d_name);
    }
    closedir(d);
}

void
temp_flip(const char *dir, const char *file, long offset)
{
    char path[PATH_BYTES];
    FILE *f = fopen(join(path, dir, file), "r+b");
    cr_assert_not_null(f);
    const int whence = offset < 0 ? SEEK_END : SEEK_SET;
    cr_assert_eq(fseek(f, offset, whence), 0);
    const int byte = fgetc(f);
    cr_assert_neq(byte, EOF);
    cr_assert_eq(fseek(f, offset, whence), 0);
    fputc(byte ^ 1, f);
    cr_assert_eq(fclose(f), 0);
}

uint8_t *
st_file(const char *header, size_t data_bytes, size_t *len)
{
    const size_t n = strlen(header);
    uint8_t *file = malloc(8 + n + data_bytes);
    cr_assert_not_null(file);
    for (int i = 0; i < 8; i++) {
        file[i] = (uint8_t)((uint64_t)n >> 8 * i);
    }
    memcpy(file + 8, header, n);
    for (size_t i = 0; i < data_bytes; i++) {
        file[8 + n + i] = (uint8_t)(i & 0x3f);
    }
    *len = 8 + n + data_bytes;
    return file;
}

static size_t
tensor_bytes(const st_tensor *t)
{
    size_t bytes = strchr(t->dtype, '6') && t->dtype[0] != 'I' ? 2 : t->dtype[0] == 'I' ? 8 : 4;
    for (uint32_t i = 0; i < t->rank; i++) {
        bytes *= t->shape[i];
    }
    return bytes;
}

void
st_write(const char *dir, const char *file, const st_tensor *tensors, size_t count)
{
    strbuf header;
    strbuf_init(&header, 1 << 20);
    size_t at = 0, len;
    strbuf_puts(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < count; i++) {
        const st_tensor *t = &tensors[i];
        strbuf_printf(&header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, t->dtype);
        for (uint32_t d = 0; d < t->rank; d++) {
            strbuf_printf(&header, "%s%zu", d ? "," : "", (size_t)t->shape[d]);
        }
        strbuf_printf(&header, "],\"data_offsets\":[%zu,%zu]}", at, at + tensor_bytes(t));
        at += tensor_bytes(t);
    }
    strbuf_puts(&header, "} ");
    cr_assert(!header.failed);
    uint8_t *bytes = st_file(strbuf_text(&header), at, &len);
    uint8_t *data = bytes + (len - at);
    for (size_t i = 0; i < count; i++) {
        if (tensors[i].data) memcpy(data, tensors[i].data, tensor_bytes(&tensors[i]));
        data += tensor_bytes(&tensors[i]);
    }
    temp_write(dir, file, bytes, len);
    free(bytes);
    strbuf_fini(&header);
}
