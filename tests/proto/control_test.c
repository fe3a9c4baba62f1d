/* control: which addresses and secrets the options give, and which are refused with what text. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/control.h"
#include "proto/rpc_auth.h"
#include "tests/common/temp_dir.h"

static temp_dir dir;
static char secret[128];
static run_dir run;
static control_plane plane;
static errbuf eb;

static void
setup(void)
{
    dir = temp_dir_make();
    temp_file(&dir, secret, "secret", "0123456789abcdef\n", 17);
    chmod(secret, 0600);
    snprintf(run.path, sizeof run.path, "/run/cell");
}

static void
teardown(void)
{
    unlink(secret);
    rmdir(dir.path);
}

TestSuite(control, .init = setup, .fini = teardown, .timeout = 20);

static moe_err
open_with(const char *urls, const char *host, const char *secret_file, uint32_t routers)
{
    const control_options options = {urls, host, secret_file};
    eb.text[0] = '\0';
    return control_open(&plane, &options, &run, routers, &eb);
}

static void
expect_text(const char *words)
{
    cr_expect_not_null(strstr(eb.text, words), "no \"%s\" in: %s", words, eb.text);
}

Test(control, on_one_host_processes_meet_in_the_run_directory)
{
    char url[RUN_URL_MAX];
    cr_assert_eq(open_with("", "", "", 3), MOE_OK, "%s", eb.text);
    control_router_url(&plane, 2, url);
    cr_expect_str_eq(url, "ipc:///run/cell/router-2.sock");
    cr_expect_eq(control_worker_url(&plane, 7, url, &eb), MOE_OK);
    cr_expect_str_eq(url, "ipc:///run/cell/worker-7.sock");
    control_link_url(&plane, 7, false, url);
    cr_expect_str_eq(url, "ipc:///run/cell/link-w7");
    control_link_url(&plane, 7, true, url);
    cr_expect_str_eq(url, "tcp://127.0.0.1:0");
}

Test(control, between_hosts_they_meet_at_the_addresses_given)
{
    char url[RUN_URL_MAX];
    cr_assert_eq(open_with("tcp://node-1.site:7000,tcp://[fe80::1]:65535", "10.0.0.9", secret, 2),
                 MOE_OK, "%s", eb.text);
    control_router_url(&plane, 0, url);
    cr_expect_str_eq(url, "tcp://node-1.site:7000");
    control_router_url(&plane, 1, url);
    cr_expect_str_eq(url, "tcp://[fe80::1]:65535");
    cr_expect_eq(control_worker_url(&plane, 7, url, &eb), MOE_OK);
    cr_expect_str_eq(url, "tcp://10.0.0.9:0");
    control_link_url(&plane, 7, false, url); /* whatever else was asked for */
    cr_expect_str_eq(url, "tcp://10.0.0.9:0");
}

Test(control, a_worker_between_hosts_needs_an_address)
{
    char url[RUN_URL_MAX];
    cr_assert_eq(open_with("tcp://a:1", "", secret, 0), MOE_OK, "%s", eb.text);
    cr_expect_eq(control_worker_url(&plane, 0, url, &eb), MOE_EINVAL);
    expect_text("--control-host");
}

Test(control, what_is_no_address_is_refused_by_name)
{
    const char *const bad[] = {
        "tcp://a",        "tcp://:7000",    "tcp://a:0",      "tcp://a:65536",
        "ipc:///a:1",     "a:7000",         "tcp://a:7x",     "tcp://a b:1",
        "tcp://a:1,",     ",tcp://a:1",     "tcp://[]:1",     "tcp://[::1:1",
        "tcp://a:000001", "tcp://[g::1]:1", "tcp://a/b:7000", "tcp://"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cr_expect_eq(open_with(bad[i], "", secret, 0), MOE_EINVAL, "%s", bad[i]);
        expect_text("--router-urls");
    }
    char longest[CONTROL_HOST_MAX + 32];
    snprintf(longest, sizeof longest, "tcp://%0*d:65535", CONTROL_HOST_MAX, 1);
    cr_expect_eq(open_with(longest, "", secret, 1), MOE_OK, "%s", eb.text);
    snprintf(longest, sizeof longest, "tcp://%0*d:65535", CONTROL_HOST_MAX + 1, 1);
    cr_expect_eq(open_with(longest, "", secret, 1), MOE_EINVAL);
    cr_expect_eq(open_with("tcp://a:1", "a:2", secret, 1), MOE_EINVAL);
    expect_text("--control-host");
}

Test(control, every_router_has_one_address_of_its_own)
{
    cr_expect_eq(open_with("tcp://a:1,tcp://b:1", "", secret, 3), MOE_EINVAL);
    expect_text("2 addresses for 3 routers");
    cr_expect_eq(open_with("tcp://a:1,tcp://a:1", "", secret, 2), MOE_EINVAL);
    expect_text("tcp://a:1 twice");
    char many[16 * (CONTROL_ROUTER_MAX + 2)];
    size_t at = 0;
    for (int i = 0; i <= CONTROL_ROUTER_MAX; i++) {
        if (i == CONTROL_ROUTER_MAX)
            cr_expect_eq(open_with(many, "", secret, 0), MOE_OK, "%s", eb.text);
        at += (size_t)snprintf(many + at, sizeof many - at, "%stcp://a:%d", i ? "," : "", i + 1);
    }
    cr_expect_eq(open_with(many, "", secret, 0), MOE_EINVAL);
    expect_text("more than 64");
}

Test(control, tcp_needs_a_secret_that_others_cannot_read)
{
    char path[128];
    cr_expect_eq(open_with("tcp://a:1", "", "", 1), MOE_EINVAL);
    expect_text("--cluster-secret-file");
    cr_expect_eq(open_with("tcp://a:1", "", "/nonexistent", 1), MOE_ENOTFOUND);
    chmod(secret, 0604);
    cr_expect_eq(open_with("tcp://a:1", "", secret, 1), MOE_EINVAL);
    expect_text("chmod");
    chmod(secret, 0440);
    cr_expect_eq(open_with("tcp://a:1", "", secret, 1), MOE_OK, "%s", eb.text);

    char text[RPC_SECRET_MAX + 1];
    memset(text, 'x', sizeof text);
    const struct {
        size_t bytes;
        moe_err want;
    } lengths[] = {{0, MOE_ERANGE},
                   {CONTROL_SECRET_MIN - 1, MOE_ERANGE},
                   {CONTROL_SECRET_MIN, MOE_OK},
                   {RPC_SECRET_MAX, MOE_OK},
                   {RPC_SECRET_MAX + 1, MOE_ERANGE}};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        temp_file(&dir, path, "other", text, lengths[i].bytes);
        chmod(path, 0600);
        cr_expect_eq(open_with("tcp://a:1", "", path, 1), lengths[i].want, "%zu: %s",
                     lengths[i].bytes, eb.text);
        unlink(path);
    }
}

Test(control, the_secret_becomes_the_one_of_the_process)
{
    rpc_secret s;
    cr_assert_eq(rpc_secret_set_own(&s, NULL, 0, &eb), MOE_OK);
    cr_expect_eq(s.len, 0);
    cr_assert_eq(open_with("", "", secret, 1), MOE_OK, "%s", eb.text); /* on one host, too */
    cr_assert_eq(rpc_secret_set_own(&s, NULL, 0, &eb), MOE_OK);
    cr_expect_eq(s.len, 16); /* without the line's end */
    cr_expect_arr_eq(s.bytes, "0123456789abcdef", 16);
    cr_assert_eq(rpc_secret_set_own(&s, "own", 3, &eb), MOE_OK);
    cr_expect_eq(s.len, 3);
}
