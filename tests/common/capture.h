/* capture: what a piece of a test writes to standard error, as text.
 *
 * Threads: one at a time, and no other thread may write meanwhile.
 */
#ifndef MOE_TESTS_COMMON_CAPTURE_H
#define MOE_TESTS_COMMON_CAPTURE_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <unistd.h>

typedef struct capture {
    FILE *file;
    int stderr_copy;
} capture;

static inline capture
capture_start(void)
{
    const capture c = {.file = tmpfile(), .stderr_copy = dup(STDERR_FILENO)};
    cr_assert_not_null(c.file);
    cr_assert_geq(dup2(fileno(c.file), STDERR_FILENO), 0);
    return c;
}

/* Writes what came since capture_start(), with a NUL, into text, and returns its length. */
static inline size_t
capture_stop(capture c, char *text, size_t size)
{
    dup2(c.stderr_copy, STDERR_FILENO);
    close(c.stderr_copy);
    rewind(c.file);
    const size_t len = fread(text, 1, size - 1, c.file);
    text[len] = '\0';
    fclose(c.file);
    return len;
}

#endif
