#include "frontend/admin_request.h"

#include <cjson/cJSON.h>
#include <string.h>

#include "common/json.h"
#include "frontend/completion_request.h"

/* The body's "workers", the one field there may be; NULL with *error set.  *root is the caller's.
 */
static const cJSON *
read_workers(const char *body, size_t len, cJSON **root, api_error *error)
{
    *root = completion_body_parse(body, len, error);
    if (*root == NULL) return NULL;
    const cJSON *workers = NULL, *item;
    cJSON_ArrayForEach(item, *root)
    {
        if (strcmp(item->string, "workers") != 0 || workers != NULL) {
            api_error_set(error, 400, NULL, "the body has \"%.40s\"; it takes \"workers\", once",
                          item->string);
            return NULL;
        }
        workers = item;
    }
    if (workers == NULL) api_error_set(error, 400, "workers", "workers is missing");
    return workers;
}

static bool
add_id(const cJSON *item, uint32_t *ids, size_t *count, api_error *error)
{
    if (!json_is_int(item, 0, WORKER_MAX - 1))
        return api_error_set(error, 400, "workers",
                             "workers: entry %zu is no worker id; ids are integers from 0 to %d",
                             *count, WORKER_MAX - 1);
    const uint32_t id = (uint32_t)item->valuedouble;
    for (size_t i = 0; i < *count; i++) {
        if (ids[i] == id)
            return api_error_set(error, 400, "workers", "workers names worker %u twice", id);
    }
    ids[(*count)++] = id; /* ids differ, so there is room for all there are */
    return true;
}

static bool
read_ids(const cJSON *list, uint32_t *ids, size_t *count, api_error *error)
{
    if (!cJSON_IsArray(list) || list->child == NULL)
        return api_error_set(error, 400, "workers", "workers must be an array of worker ids");
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        if (!add_id(item, ids, count, error)) return false;
    }
    return true;
}

bool
admin_read_drain(const char *body, size_t len, uint32_t ids[WORKER_MAX], size_t *count,
                 api_error *error)
{
    cJSON *root;
    *count = 0;
    const cJSON *list = read_workers(body, len, &root, error);
    const bool good = list != NULL && read_ids(list, ids, count, error);
    cJSON_Delete(root);
    return good;
}

bool
admin_read_scale(const char *body, size_t len, uint32_t *workers, api_error *error)
{
    cJSON *root;
    const cJSON *item = read_workers(body, len, &root, error);
    bool good = item != NULL;
    if (good && !json_is_int(item, 1, WORKER_MAX))
        good = api_error_set(error, 400, "workers", "workers must be an integer from 1 to %d",
                             WORKER_MAX);
    if (good) *workers = (uint32_t)item->valuedouble;
    cJSON_Delete(root);
    return good;
}

bool
admin_read_nothing(const char *body, size_t len, api_error *error)
{
    if (len == 0) return true;
    cJSON *root = completion_body_parse(body, len, error);
    if (root == NULL) return false;
    const bool good = root->child == NULL ||
                      api_error_set(error, 400, NULL, "the body has \"%.40s\"; it takes none",
                                    root->child->string);
    cJSON_Delete(root);
    return good;
}

size_t
admin_surplus(const Conclave__RouterStats *s, uint32_t keep, uint32_t ids[WORKER_MAX],
              uint32_t *live)
{
    bool there[WORKER_MAX] = {false};
    size_t count = 0;
    *live = 0;
    for (size_t i = 0; i < s->n_workers; i++) {
        const Conclave__WorkerStatus *w = s->workers[i];
        const bool goes = strcmp(w->state, "draining") == 0 || strcmp(w->state, "lost") == 0;
        if (goes || w->worker_id >= WORKER_MAX || there[w->worker_id]) continue;
        there[w->worker_id] = true;
        ++*live;
    }
    for (uint32_t id = WORKER_MAX; id-- > 0 && *live - count > keep;) {
        if (there[id]) ids[count++] = id;
    }
    return count;
}
