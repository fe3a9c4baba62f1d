#include "router/eplb_config.h"

#include <string.h>

#include "common/json.h"
#include "router/placement.h"
#include "router/routing_stats.h"

eplb_config
eplb_default_config(void)
{
    return (eplb_config){.window_size = 1000, .step_interval = 3000};
}

static moe_err
check_keys(const cJSON *object, errbuf *eb)
{
    static const char *const keys[] = {"window_size", "step_interval", "num_redundant_experts",
                                       "log_balancedness"};
    for (const cJSON *item = object->child; item != NULL; item = item->next) {
        size_t i = 0;
        while (i < sizeof keys / sizeof keys[0] && strcmp(item->string, keys[i]) != 0)
            i++;
        if (i == sizeof keys / sizeof keys[0])
            return err_set(eb, MOE_EINVAL, "there is no key \"%s\"", item->string);
    }
    return MOE_OK;
}

moe_err
eplb_config_parse(const char *text, eplb_config *out, errbuf *eb)
{
    cJSON *object = NULL;
    *out = eplb_default_config();
    moe_err err = json_parse(text, strlen(text), &object, eb);
    if (!err && !cJSON_IsObject(object)) err = err_set(eb, MOE_EINVAL, "not a JSON object");
    if (!err) err = check_keys(object, eb);
    if (!err)
        err = json_get_u32(object, "window_size", 1, ROUTING_WINDOW_MAX, &out->window_size, eb);
    if (!err) err = json_get_u32(object, "step_interval", 1, 1u << 30, &out->step_interval, eb);
    if (!err)
        err = json_get_u32(object, "num_redundant_experts", 0, PLACEMENT_SLOT_MAX,
                           &out->num_redundant_experts, eb);
    if (!err) err = json_get_bool(object, "log_balancedness", &out->log_balancedness, eb);
    cJSON_Delete(object);
    return err ? err_wrap(eb, err, "--eplb-config") : MOE_OK;
}
