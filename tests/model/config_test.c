/* config: what a config.json may say, which defaults it takes, and which message each refusal
 * carries. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "model/config.h"
#include "tests/model/support.h"

TestSuite(config, .timeout = 20);

/* The tiny model's config with one key set to raw JSON, or removed (NULL). */
static char *
config_with(const char *key, const char *value)
{
    cJSON *root = cJSON_Parse(tiny_config);
    cJSON_DeleteItemFromObjectCaseSensitive(root, key);
    if (value) cJSON_AddRawToObject(root, key, value);
    char *text = cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    cr_assert_not_null(text);
    return text;
}

static moe_err
parse_with(model_config *c, const char *key, const char *value, errbuf *eb)
{
    char *text = config_with(key, value);
    eb->text[0] = '\0';
    const moe_err err = model_config_parse(c, text, strlen(text), eb);
    free(text);
    return err;
}

Test(config, reads_a_public_mixtral_config)
{
    static const char text[] =
        "{\"architectures\":[\"MixtralForCausalLM\"],\"attention_dropout\":0.0,"
        "\"bos_token_id\":1,\"eos_token_id\":2,\"hidden_act\":\"silu\",\"hidden_size\":4096,"
        "\"initializer_range\":0.02,\"intermediate_size\":14336,"
        "\"max_position_embeddings\":32768,\"model_type\":\"mixtral\","
        "\"num_attention_heads\":32,\"num_experts_per_tok\":2,\"num_hidden_layers\":32,"
        "\"num_key_value_heads\":8,\"num_local_experts\":8,\"output_router_logits\":false,"
        "\"rms_norm_eps\":1e-05,\"rope_theta\":1000000.0,\"router_aux_loss_coef\":0.02,"
        "\"sliding_window\":null,\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\","
        "\"transformers_version\":\"4.36.0.dev0\",\"use_cache\":true,\"vocab_size\":32000}\n";
    model_config c;
    errbuf eb;
    cr_assert_eq(model_config_parse(&c, text, strlen(text), &eb), MOE_OK, "%s", eb.text);
    cr_expect_eq(c.vocab_size, 32000);
    cr_expect_eq(c.hidden_size, 4096);
    cr_expect_eq(c.intermediate_size, 14336);
    cr_expect_eq(c.num_layers, 32);
    cr_expect_eq(c.num_heads, 32);
    cr_expect_eq(c.num_kv_heads, 8);
    cr_expect_eq(c.head_dim, 128);
    cr_expect_eq(c.num_experts, 8);
    cr_expect_eq(c.top_k, 2);
    cr_expect_eq(c.max_position, 32768);
    cr_expect_eq(c.sliding_window, 0);
    cr_expect_eq(c.rms_norm_eps, 1e-5f);
    cr_expect_eq(c.rope_theta, 1e6);
    cr_expect_not(c.tie_word_embeddings);
    cr_expect_eq(c.bos_id, 1);
    cr_expect_eq(c.eos_count, 1);
    cr_expect_eq(c.eos_ids[0], 2);
}

Test(config, absent_keys_take_the_reference_defaults)
{
    model_config c;
    errbuf eb;
    cr_assert_eq(model_config_parse(&c, tiny_config, strlen(tiny_config), &eb), MOE_OK);
    cr_expect_eq(c.head_dim, 4);
    cr_expect_eq(c.top_k, 2);
    cr_expect_eq(c.max_position, 131072);
    cr_expect_eq(c.sliding_window, 0);
    cr_expect_eq(c.rms_norm_eps, 1e-5f);
    cr_expect_eq(c.rope_theta, 1e6);
    cr_expect_eq(c.bos_id, 1);
    cr_expect_eq(c.eos_ids[0], 2);

    cr_assert_eq(parse_with(&c, "num_key_value_heads", "null", &eb), MOE_OK, "%s", eb.text);
    cr_expect_eq(c.num_kv_heads, 2, "null means as many as attention heads");
    cr_assert_eq(parse_with(&c, "num_local_experts", NULL, &eb), MOE_OK);
    cr_expect_eq(c.num_experts, 8);
    cr_assert_eq(parse_with(&c, "bos_token_id", "null", &eb), MOE_OK);
    cr_expect_eq(c.bos_id, UINT32_MAX);
    cr_assert_eq(parse_with(&c, "eos_token_id", "null", &eb), MOE_OK);
    cr_expect_eq(c.eos_count, 0);
}

Test(config, reads_every_accepted_spelling)
{
    model_config c;
    errbuf eb;
    cr_assert_eq(parse_with(&c, "eos_token_id", "[2, 7, 2]", &eb), MOE_OK);
    cr_expect_eq(c.eos_count, 2);
    cr_expect_eq(c.eos_ids[1], 7);
    cr_assert_eq(parse_with(&c, "rope_theta", "10000", &eb), MOE_OK);
    cr_expect_eq(c.rope_theta, 1e4);
    cr_assert_eq(parse_with(&c, "rope_parameters", "{\"rope_theta\":5e4}", &eb), MOE_OK);
    cr_expect_eq(c.rope_theta, 5e4);
    cr_assert_eq(parse_with(&c, "rope_parameters", "null", &eb), MOE_OK);
    cr_expect_eq(c.rope_theta, 1e6);
    cr_assert_eq(parse_with(&c, "head_dim", "6", &eb), MOE_OK);
    cr_expect_eq(c.head_dim, 6);
    cr_assert_eq(parse_with(&c, "sliding_window", "4096", &eb), MOE_OK);
    cr_expect_eq(c.sliding_window, 4096);
    cr_assert_eq(parse_with(&c, "tie_word_embeddings", "true", &eb), MOE_OK);
    cr_expect(c.tie_word_embeddings);
    cr_expect_eq(parse_with(&c, "model_type", NULL, &eb), MOE_OK, "the architecture is enough");
    cr_expect_eq(parse_with(&c, "architectures", NULL, &eb), MOE_OK, "the model type is enough");
    cr_expect_eq(parse_with(&c, "attention_bias", "false", &eb), MOE_OK);
    cr_expect_eq(parse_with(&c, "rope_scaling", "null", &eb), MOE_OK);
}

Test(config, a_refusal_names_the_key)
{
    static const struct {
        const char *key, *value;
        moe_err err;
        const char *text;
    } cases[] = {
        {"vocab_size", NULL, MOE_EINVAL, "vocab_size is missing"},
        {"hidden_size", NULL, MOE_EINVAL, "hidden_size is missing"},
        {"intermediate_size", "null", MOE_EINVAL, "intermediate_size is missing"},
        {"num_hidden_layers", NULL, MOE_EINVAL, "num_hidden_layers is missing"},
        {"num_attention_heads", NULL, MOE_EINVAL, "num_attention_heads is missing"},
        {"vocab_size", "0", MOE_EINVAL, "vocab_size must be an integer from 1 to 16777216"},
        {"vocab_size", "16777217", MOE_EINVAL, "vocab_size"},
        {"vocab_size", "\"16\"", MOE_EINVAL, "vocab_size"},
        {"hidden_size", "8.5", MOE_EINVAL, "hidden_size"},
        {"hidden_size", "1048577", MOE_EINVAL, "hidden_size"},
        {"intermediate_size", "1048577", MOE_EINVAL, "intermediate_size"},
        {"num_hidden_layers", "1025", MOE_EINVAL, "num_hidden_layers"},
        {"num_hidden_layers", "1e999", MOE_EINVAL, "num_hidden_layers"},
        {"num_local_experts", "513", MOE_EINVAL, "num_local_experts"},
        {"num_experts_per_tok", "9", MOE_EINVAL, "num_experts_per_tok"},
        {"num_experts_per_tok", "0", MOE_EINVAL, "num_experts_per_tok"},
        {"num_experts_per_tok", "3", MOE_EINVAL,
         "num_experts_per_tok 3 exceeds num_local_experts 2"},
        {"num_key_value_heads", "3", MOE_EINVAL,
         "num_key_value_heads 3 does not divide num_attention_heads 2"},
        {"num_attention_heads", "3", MOE_EINVAL,
         "num_attention_heads 3 does not divide hidden_size 8"},
        {"num_attention_heads", "8", MOE_EINVAL, "head_dim 1 is odd"},
        {"head_dim", "5", MOE_EINVAL, "head_dim 5 is odd"},
        {"head_dim", "1048576", MOE_EINVAL, "num_attention_heads 2 times head_dim 1048576"},
        {"max_position_embeddings", "16777217", MOE_EINVAL, "max_position_embeddings"},
        {"sliding_window", "0", MOE_EINVAL, "sliding_window"},
        {"rms_norm_eps", "0", MOE_EINVAL, "rms_norm_eps"},
        {"rms_norm_eps", "-1e-5", MOE_EINVAL, "rms_norm_eps"},
        {"rope_theta", "0", MOE_EINVAL, "rope_theta"},
        {"rope_theta", "\"1e6\"", MOE_EINVAL, "rope_theta"},
        {"rope_parameters", "[]", MOE_EINVAL, "rope_parameters must be an object"},
        {"rope_parameters", "{\"rope_theta\":0}", MOE_EINVAL, "rope_parameters: rope_theta"},
        {"rope_parameters", "{\"rope_type\":\"yarn\"}", MOE_EUNSUPPORTED, "rope_type yarn"},
        {"rope_parameters", "{\"partial_rotary_factor\":0.5}", MOE_EUNSUPPORTED,
         "partial_rotary_factor 0.5"},
        {"rope_parameters", "{\"rope_theta\":5,\"rope_type\":3}", MOE_EINVAL, "rope_type"},
        {"rope_scaling", "{\"type\":\"linear\",\"factor\":2}", MOE_EUNSUPPORTED, "rope_scaling"},
        {"tie_word_embeddings", "1", MOE_EINVAL, "tie_word_embeddings"},
        {"attention_bias", "true", MOE_EUNSUPPORTED, "attention_bias"},
        {"attention_bias", "\"no\"", MOE_EINVAL, "attention_bias"},
        {"hidden_act", "\"gelu\"", MOE_EUNSUPPORTED, "hidden_act gelu"},
        {"hidden_act", "3", MOE_EINVAL, "hidden_act"},
        {"quantization_config", "{\"quant_method\":\"awq\"}", MOE_EUNSUPPORTED,
         "quantization_config"},
        {"bos_token_id", "16", MOE_EINVAL, "bos_token_id"},
        {"bos_token_id", "-1", MOE_EINVAL, "bos_token_id"},
        {"eos_token_id", "16", MOE_EINVAL, "eos_token_id"},
        {"eos_token_id", "[1, \"2\"]", MOE_EINVAL, "eos_token_id"},
        {"eos_token_id", "[0,1,2,3,4,5,6,7,8]", MOE_EINVAL, "eos_token_id holds more than 8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        model_config c;
        errbuf eb;
        const moe_err err = parse_with(&c, cases[i].key, cases[i].value, &eb);
        const char *value = cases[i].value ? cases[i].value : "absent";
        cr_expect_eq(err, cases[i].err, "%s %s: %s", cases[i].key, value, eb.text);
        cr_expect_not_null(strstr(eb.text, cases[i].text), "%s %s: %s", cases[i].key, value,
                           eb.text);
        cr_expect_eq(c.hidden_size, 0, "nothing is left of a refused config");
    }
}

Test(config, contradicting_and_foreign_configs_are_refused)
{
    static const struct {
        const char *text, *reason;
        moe_err err;
    } cases[] = {
        {"", "not JSON", MOE_EINVAL},
        {"[]", "not a JSON object", MOE_EINVAL},
        {"{\"model_type\":\"mixtral\"", "not JSON", MOE_EINVAL},
        {"{}", "architecture unnamed", MOE_EUNSUPPORTED},
        {"{\"model_type\":\"llama\"}", "architecture llama", MOE_EUNSUPPORTED},
        {"{\"architectures\":[\"LlamaForCausalLM\"]}", "LlamaForCausalLM", MOE_EUNSUPPORTED},
        {"{\"architectures\":\"MixtralForCausalLM\"}", "architecture", MOE_EUNSUPPORTED},
        {"{\"architectures\":[3,null]}", "architecture", MOE_EUNSUPPORTED},
        {"{\"model_type\":\"mixtral\",\"vocab_size\":9,\"hidden_size\":8,"
         "\"intermediate_size\":8,\"num_hidden_layers\":1,\"num_attention_heads\":8,"
         "\"head_dim\":2,\"rope_theta\":10,\"rope_parameters\":{\"rope_theta\":20}}",
         "rope_theta 10 contradicts rope_parameters.rope_theta 20", MOE_EINVAL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        model_config c;
        errbuf eb = {{0}};
        cr_expect_eq(model_config_parse(&c, cases[i].text, strlen(cases[i].text), &eb),
                     cases[i].err, "%s: %s", cases[i].text, eb.text);
        cr_expect_not_null(strstr(eb.text, cases[i].reason), "%s: %s", cases[i].text, eb.text);
    }
}

Test(config, load_joins_the_stop_ids_of_both_files_and_names_the_file_at_fault)
{
    char dir[PATH_BYTES];
    model_config c;
    errbuf eb;
    temp_create(dir);

    cr_expect_eq(model_config_load(&c, dir, &eb), MOE_ENOTFOUND);
    cr_expect_not_null(strstr(eb.text, "/config.json"), "%s", eb.text);

    temp_write(dir, "config.json", tiny_config, strlen(tiny_config));
    cr_expect_eq(model_config_load(&c, dir, &eb), MOE_OK, "%s", eb.text);
    cr_expect_eq(c.eos_count, 1);

    static const char both[] = "{\"eos_token_id\":[2,5]}", bad[] = "{\"eos_token_id\":\"x\"}";
    temp_write(dir, "generation_config.json", both, strlen(both));
    cr_expect_eq(model_config_load(&c, dir, &eb), MOE_OK, "%s", eb.text);
    cr_expect_eq(c.eos_count, 2);
    cr_expect_eq(c.eos_ids[0], 2);
    cr_expect_eq(c.eos_ids[1], 5);

    temp_write(dir, "generation_config.json", bad, strlen(bad));
    cr_expect_eq(model_config_load(&c, dir, &eb), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "/generation_config.json: eos_token_id"), "%s", eb.text);
    temp_write(dir, "generation_config.json", "[", 1);
    cr_expect_eq(model_config_load(&c, dir, &eb), MOE_EINVAL);

    char *text = config_with("num_key_value_heads", "3");
    temp_write(dir, "config.json", text, strlen(text));
    free(text);
    cr_expect_eq(model_config_load(&c, dir, &eb), MOE_EINVAL);
    cr_expect_not_null(strstr(eb.text, "/config.json: num_key_value_heads 3 does not divide"), "%s",
                       eb.text);
    temp_remove(dir);
}
