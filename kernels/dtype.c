#include "kernels/packed.h"

#include <string.h>

const char *
dtype_name(moe_dtype dtype)
{
    switch (dtype) {
    case DTYPE_F32: return "f32";
    case DTYPE_BF16: return "bf16";
    case DTYPE_INT8: return "int8";
    case DTYPE_INT4: return "int4";
    case DTYPE_COUNT: break;
    }
    return "unknown";
}

moe_dtype
dtype_parse(const char *text)
{
    static const struct {
        const char *name;
        moe_dtype dtype;
    } names[] = {
        {"f32", DTYPE_F32},   {"float32", DTYPE_F32},   {"float", DTYPE_F32},
        {"bf16", DTYPE_BF16}, {"bfloat16", DTYPE_BF16}, {"int8", DTYPE_INT8},
        {"int4", DTYPE_INT4},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(text, names[i].name) == 0) return names[i].dtype;
    }
    return DTYPE_COUNT;
}
