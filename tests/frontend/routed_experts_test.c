/* routed_experts: what comes step by step is one NumPy array in the end; gaps and shortages are
 * told as null. */
#include <criterion/criterion.h>

#include "frontend/routed_experts.h"
#include "tests/support/npy.h"

TestSuite(routed_experts, .timeout = 10);

static char *
print(routed_experts *r, uint32_t total)
{
    strbuf out;
    strbuf_init(&out, 1 << 20);
    routed_experts_print(r, total, &out);
    char *text = strdup(strbuf_text(&out));
    strbuf_fini(&out);
    return text;
}

static npy
read_back(routed_experts *r, uint32_t total)
{
    char *text = print(r, total);
    const size_t len = strlen(text);
    cr_assert(len > 2 && text[0] == '"' && text[len - 1] == '"', "%s", text);
    text[len - 1] = '\0';
    const npy a = npy_read(text + 1);
    free(text);
    return a;
}

static void
expect_null(routed_experts *r, uint32_t total)
{
    char *text = print(r, total);
    cr_expect_str_eq(text, "null");
    free(text);
}

Test(routed_experts, is_a_numpy_array_of_tokens_layers_and_choices)
{
    routed_experts r;
    routed_experts_init(&r, &(routing_shape){2, 2, 1}, 0, 5);
    routed_experts_put(&r, 0, (const uint8_t[]){1, 2, 3, 4, 5, 6, 7, 0}, 2);
    routed_experts_put(&r, 2, (const uint8_t[]){9, 8, 7, 255}, 1);
    npy a = read_back(&r, 3);
    cr_expect_eq(a.tokens, 3);
    cr_expect_eq(a.layers, 2);
    cr_expect_eq(a.top_k, 2);
    cr_expect_eq(a.id_bytes, 1);
    cr_expect_arr_eq(a.ids, ((const uint8_t[]){1, 2, 3, 4, 5, 6, 7, 0, 9, 8, 7, 255}), 12);
    free(a.file);
    a = read_back(&r, 2); /* the last one was sampled after all, and is not counted */
    cr_expect_eq(a.tokens, 2);
    free(a.file);
    routed_experts_fini(&r);
}

Test(routed_experts, has_two_bytes_for_many_experts_and_every_length_of_base64)
{
    for (uint32_t tokens = 1; tokens <= 1600; tokens = tokens < 8 ? tokens + 1 : tokens * 3) {
        routed_experts r;
        routed_experts_init(&r, &(routing_shape){1, 1, 2}, 0, tokens);
        for (uint32_t t = 0; t < tokens; t++)
            routed_experts_put(&r, t, (const uint8_t[]){(uint8_t)t, (uint8_t)(t >> 8)}, 1);
        npy a = read_back(&r, tokens);
        cr_expect_eq(a.tokens, tokens);
        cr_expect_eq(a.id_bytes, 2);
        for (uint32_t t = 0; t < tokens; t++)
            cr_expect_eq(npy_id(&a, t, 0), t);
        free(a.file);
        routed_experts_fini(&r);
    }
}

Test(routed_experts, takes_positions_again_and_leaves_out_the_first_and_what_is_beyond)
{
    routed_experts r;
    routed_experts_init(&r, &(routing_shape){1, 2, 1}, 2, 4);
    routed_experts_put(&r, 0, (const uint8_t[]){1, 1}, 1);
    routed_experts_put(&r, 1, (const uint8_t[]){2, 2, 3, 4}, 2);
    routed_experts_put(&r, 0, (const uint8_t[]){1, 1, 2, 2, 3, 4, 5, 6, 7, 8}, 5); /* replayed */
    npy a = read_back(&r, 4);
    cr_expect_eq(a.tokens, 2);
    cr_expect_arr_eq(a.ids, ((const uint8_t[]){3, 4, 5, 6}), 4);
    free(a.file);
    a = read_back(&r, 2);
    cr_expect_eq(a.tokens, 0);
    free(a.file);
    expect_null(&r, 5);
    routed_experts_fini(&r);
}

Test(routed_experts, is_null_when_a_position_is_missing)
{
    routed_experts r;
    routed_experts_init(&r, &(routing_shape){1, 1, 1}, 0, 8);
    expect_null(&r, 1);
    routed_experts_put(&r, 0, (const uint8_t[]){1, 2}, 2);
    expect_null(&r, 3);
    routed_experts_put(&r, 3, (const uint8_t[]){4}, 1);
    cr_expect(r.failed);
    expect_null(&r, 2);
    routed_experts_fini(&r);
    routed_experts_fini(&r);
}
