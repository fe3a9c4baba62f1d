/* paths: where tests find their files.
 *
 * CONCLAVE_GOLDEN_DIR points at a set of golden vectors (default: the copy in tests/golden), so
 * that other sets of the same formats can be run through the same tests.
 */
#ifndef MOE_TESTS_SUPPORT_PATHS_H
#define MOE_TESTS_SUPPORT_PATHS_H

#include <stdio.h>
#include <stdlib.h>

static inline const char *
test_root(void)
{
    const char *root = getenv("CONCLAVE_TEST_ROOT");
    return root ? root : ".";
}

/* Write "ROOT/relative" into buf and return it. */
static inline const char *
test_path(char *buf, size_t size, const char *relative)
{
    snprintf(buf, size, "%s/%s", test_root(), relative);
    return buf;
}

/* Write "GOLDEN/relative" into buf and return it. */
static inline const char *
golden_path(char *buf, size_t size, const char *relative)
{
    const char *dir = getenv("CONCLAVE_GOLDEN_DIR");
    if (dir != NULL && *dir != '\0')
        snprintf(buf, size, "%s/%s", dir, relative);
    else
        snprintf(buf, size, "%s/tests/golden/%s", test_root(), relative);
    return buf;
}

#endif
