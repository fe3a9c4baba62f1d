/* admin_fuzz: bodies of the admin API's POST routes.  The first byte says whose. */
#include <assert.h>
#include <string.h>

#include "frontend/admin_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check_drain(const char *body, size_t len)
{
    uint32_t ids[WORKER_MAX];
    size_t count;
    api_error error = {0};
    if (!admin_read_drain(body, len, ids, &count, &error)) {
        assert(error.status >= 400 && error.message[0] != '\0');
        return;
    }
    assert(count >= 1 && count <= WORKER_MAX);
    for (size_t i = 0; i < count; i++) {
        assert(ids[i] < WORKER_MAX);
        for (size_t j = 0; j < i; j++)
            assert(ids[i] != ids[j]);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    const char *body = (const char *)data + 1;
    api_error error = {0};
    uint32_t workers = 0;
    switch (data[0] % 3) {
    case 0: check_drain(body, size - 1); break;
    case 1:
        if (admin_read_scale(body, size - 1, &workers, &error))
            assert(workers >= 1 && workers <= WORKER_MAX);
        break;
    default: admin_read_nothing(body, size - 1, &error); break;
    }
    return 0;
}
