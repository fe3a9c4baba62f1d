/* --seed: requests without a seed of their own have answers that repeat. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "tests/integration/fleet.h"

static fleet f;

TestSuite(seed, .timeout = 60, .fini = fleet_clean_up);

Test(seed, a_seed_of_the_server_makes_answers_repeat)
{
    static const char body[] = "{\"prompt\":\"HAMLET.\",\"max_tokens\":24,\"temperature\":1.3}";
    char *texts[2];
    fleet_start(&f, &(fleet_options){.frontend_flags = "--seed=11"});
    for (int i = 0; i < 2; i++) {
        http_reply r = http_call(f.url, "POST", "/v1/completions", body, NULL);
        cr_assert_eq(r.status, 200);
        cJSON *root = cJSON_Parse(r.body);
        const cJSON *choice = cJSON_GetArrayItem(cJSON_GetObjectItem(root, "choices"), 0);
        texts[i] = strdup(cJSON_GetObjectItem(choice, "text")->valuestring);
        cJSON_Delete(root);
        http_reply_fini(&r);
    }
    cr_expect_str_eq(texts[0], texts[1]);
    free(texts[0]);
    free(texts[1]);
    fleet_stop(&f);
}
