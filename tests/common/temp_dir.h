/* temp_dir: a new folder below /tmp for one test's files. */
#ifndef MOE_TESTS_COMMON_TEMP_DIR_H
#define MOE_TESTS_COMMON_TEMP_DIR_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct temp_dir {
    char path[64]; /* links resolved */
} temp_dir;

static inline temp_dir
temp_dir_make(void)
{
    temp_dir d;
    char made[] = "/tmp/conclave-common-test.XXXXXX";
    cr_assert_not_null(mkdtemp(made));
    char *real = realpath(made, NULL);
    cr_assert(real != NULL && strlen(real) < sizeof d.path);
    snprintf(d.path, sizeof d.path, "%s", real);
    free(real);
    return d;
}

/* Write "DIR/name" into path and, unless bytes is NULL, make that file. */
static inline const char *
temp_file(const temp_dir *d, char path[128], const char *name, const void *bytes, size_t len)
{
    snprintf(path, 128, "%s/%s", d->path, name);
    if (bytes != NULL) {
        FILE *f = fopen(path, "wb");
        cr_assert_not_null(f);
        cr_assert_eq(fwrite(bytes, 1, len, f), len);
        cr_assert_eq(fclose(f), 0);
    }
    return path;
}

#endif
