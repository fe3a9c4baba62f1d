/* file: whole files, their limits, and what is no file. */
#include <criterion/criterion.h>

#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "common/hash.h"
#include "tests/common/temp_dir.h"

static temp_dir dir;

static void
setup(void)
{
    dir = temp_dir_make();
}

static void
teardown(void)
{
    rmdir(dir.path);
}

TestSuite(file, .init = setup, .fini = teardown, .timeout = 20);

Test(file, reads_and_maps_what_was_written)
{
    static const size_t sizes[] = {0, 1, 4095, 4096, 4097, 100000};
    static unsigned char bytes[100000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)hash_mix(i); /* NULs too */
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        char path[128], *text;
        const void *map;
        size_t len;
        temp_file(&dir, path, "f", bytes, sizes[i]);

        cr_assert_eq(file_read(path, sizes[i], &text, &len, NULL), MOE_OK);
        cr_expect_eq(len, sizes[i]);
        cr_expect_eq(memcmp(text, bytes, len), 0);
        cr_expect_eq(text[len], '\0');
        free(text);

        cr_assert_eq(file_map(path, &map, &len, NULL), MOE_OK);
        cr_expect_eq(len, sizes[i]);
        cr_expect_eq(map == NULL, len == 0);
        if (len != 0) cr_expect_eq(memcmp(map, bytes, len), 0);
        file_unmap(map, len);
        unlink(path);
    }
    file_unmap(NULL, 0);
}

Test(file, refuses_a_byte_more_than_max_and_names_the_path)
{
    char path[128], *text;
    size_t len = 9;
    errbuf eb = {""};
    temp_file(&dir, path, "f", "12345", 5);
    cr_expect_eq(file_read(path, 4, &text, &len, &eb), MOE_ERANGE);
    cr_expect_null(text);
    cr_expect_eq(len, 0);
    cr_expect_not_null(strstr(eb.text, path));
    cr_expect_eq(file_read(path, 0, &text, &len, &eb), MOE_ERANGE);
    unlink(path);
}

Test(file, says_what_is_missing_and_what_is_no_file)
{
    char plain[128], below[128], missing[128], fifo[128];
    temp_file(&dir, plain, "plain", "x", 1);
    temp_file(&dir, below, "plain/below", NULL, 0);
    temp_file(&dir, missing, "missing", NULL, 0);
    temp_file(&dir, fifo, "fifo", NULL, 0);
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    const struct {
        const char *path;
        moe_err want;
    } cases[] = {{missing, MOE_ENOTFOUND}, {below, MOE_ENOTFOUND}, {"", MOE_ENOTFOUND},
                 {dir.path, MOE_EIO},      {fifo, MOE_EIO},        {"/dev/null", MOE_EIO}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *text;
        const void *map;
        size_t len;
        errbuf eb = {""};
        cr_expect_eq(file_read(cases[i].path, 100, &text, &len, &eb), cases[i].want);
        cr_expect_null(text);
        cr_expect_not_null(strstr(eb.text, cases[i].path));
        eb.text[0] = '\0';
        cr_expect_eq(file_map(cases[i].path, &map, &len, &eb), cases[i].want);
        cr_expect_null(map);
        cr_expect_not_null(strstr(eb.text, cases[i].path));
    }
    unlink(fifo);
    unlink(plain);
}

Test(file, tells_folders_from_everything_else)
{
    char plain[128], missing[128];
    temp_file(&dir, plain, "plain", "x", 1);
    temp_file(&dir, missing, "missing", NULL, 0);
    cr_expect(file_is_folder(dir.path));
    cr_expect_not(file_is_folder(plain));
    cr_expect_not(file_is_folder(missing));
    cr_expect_not(file_is_folder(""));
    unlink(plain);
}
