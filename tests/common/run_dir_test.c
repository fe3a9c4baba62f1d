/* run_dir: one folder, one id, and names that fit a socket's address. */
#include <criterion/criterion.h>

#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/hash.h"
#include "common/run_dir.h"
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

TestSuite(run_dir, .init = setup, .fini = teardown, .timeout = 20);

Test(run_dir, makes_a_private_folder_once)
{
    char path[128];
    run_dir run;
    struct stat st;
    temp_file(&dir, path, "run", NULL, 0);
    const mode_t mask = umask(0);
    cr_expect_eq(run_dir_open(&run, path, NULL), MOE_OK);
    umask(mask);
    cr_assert_eq(stat(path, &st), 0);
    cr_expect_eq(st.st_mode & 07777, 0700);
    cr_expect_str_eq(run.path, path);
    cr_expect_eq(run_dir_open(&run, path, NULL), MOE_OK);
    rmdir(path);
}

Test(run_dir, gives_one_folder_one_id_however_it_is_spelled)
{
    char path[128], link[128], other[128], spelled[256], want[17];
    run_dir run, again;
    temp_file(&dir, path, "run", NULL, 0);
    temp_file(&dir, other, "run2", NULL, 0);
    temp_file(&dir, link, "link", NULL, 0);
    cr_assert_eq(run_dir_open(&run, path, NULL), MOE_OK);
    snprintf(want, sizeof want, "%016llx", (unsigned long long)hash_bytes(0, path, strlen(path)));
    cr_expect_str_eq(run.id, want);

    cr_assert_eq(symlink(path, link), 0);
    snprintf(spelled, sizeof spelled, "%s/./../%s/", path, "run");
    const char *const same[] = {link, spelled};
    for (int i = 0; i < 2; i++) {
        cr_expect_eq(run_dir_open(&again, same[i], NULL), MOE_OK);
        cr_expect_str_eq(again.path, run.path);
        cr_expect_str_eq(again.id, run.id);
    }
    cr_expect_eq(run_dir_open(&again, other, NULL), MOE_OK);
    cr_expect_str_neq(again.id, run.id);
    unlink(link);
    rmdir(other);
    rmdir(path);
}

Test(run_dir, takes_paths_up_to_its_limit)
{
    for (size_t len = RUN_DIR_PATH_MAX - 1; len <= RUN_DIR_PATH_MAX + 1; len++) {
        char path[128];
        run_dir run;
        errbuf eb = {""};
        temp_file(&dir, path, "", NULL, 0);
        const size_t start = strlen(path);
        memset(path + start, 'd', len - start);
        path[len] = '\0';
        const moe_err want = len <= RUN_DIR_PATH_MAX ? MOE_OK : MOE_ERANGE;
        cr_expect_eq(run_dir_open(&run, path, &eb), want, "%zu bytes: %s", len, eb.text);
        cr_expect_str_eq(run.path, want ? "" : path);
        cr_expect(rmdir(path) == 0 || want);
    }
}

Test(run_dir, refuses_what_can_not_be_a_folder)
{
    char plain[128], deep[128];
    run_dir run;
    errbuf eb = {""};
    temp_file(&dir, plain, "plain", "x", 1);
    temp_file(&dir, deep, "missing/run", NULL, 0);
    cr_expect_eq(run_dir_open(&run, plain, &eb), MOE_EIO);
    cr_expect_not_null(strstr(eb.text, plain));
    cr_expect_eq(run_dir_open(&run, deep, &eb), MOE_EIO);
    cr_expect_not_null(strstr(eb.text, deep));
    cr_expect_eq(run_dir_open(&run, "", &eb), MOE_EIO);
    unlink(plain);
}

Test(run_dir, names_sockets_that_fit_their_address)
{
    run_dir run = {.path = "/run/x"};
    char url[RUN_URL_MAX];
    run_dir_url(&run, "worker", 3, url);
    cr_expect_str_eq(url, "ipc:///run/x/worker-3.sock");
    memset(run.path, 'd', RUN_DIR_PATH_MAX);
    run_dir_url(&run, "worker", UINT32_MAX, url);
    cr_expect_not_null(strstr(url, "d/worker-4294967295.sock"));
    cr_expect_lt(strlen(url) - strlen("ipc://"), sizeof((struct sockaddr_un *)NULL)->sun_path);
}

Test(run_dir, draws_another_incarnation_each_time)
{
    uint64_t drawn[100];
    for (int i = 0; i < 100; i++) {
        drawn[i] = incarnation_draw();
        cr_expect_neq(drawn[i], 0);
        for (int j = 0; j < i; j++)
            cr_expect_neq(drawn[i], drawn[j]);
    }
}
