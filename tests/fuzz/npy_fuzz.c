/* npy_fuzz: a server's array of expert ids; what can be read can be counted. */
#include <stdint.h>
#include <stdlib.h>

#include "loadgen/select.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    routed_ids ids;
    errbuf eb = {{0}};
    const moe_err err = routed_ids_read((const char *)data, size, &ids, &eb);
    if (err && (eb.text[0] == '\0' || ids.ids != NULL)) abort();
    if (err) return 0;
    select_uses u;
    if (select_uses_init(&u, 1, 64, &eb) != MOE_OK) abort();
    if (select_uses_add(&u, &ids, &eb) == MOE_OK && !(select_skew(&u, NULL, 1) >= 1 - 1e-3))
        abort();
    select_uses_fini(&u);
    routed_ids_fini(&ids);
    return 0;
}
