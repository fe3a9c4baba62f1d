/* notify: what a service manager's socket receives, and that without one nothing happens. */
#include <criterion/criterion.h>

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/notify.h"
#include "tests/common/temp_dir.h"

TestSuite(notify, .timeout = 20);

/* Bind a manager's socket at name ("@..." = outside the file system), tell it, compare. */
static void
expect_told(const char *name)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    const size_t len = strlen(name);
    memcpy(at.sun_path, name, len);
    if (name[0] == '@') at.sun_path[0] = '\0';
    const int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    cr_assert_eq(bind(fd, (const struct sockaddr *)&at,
                      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)),
                 0);
    setenv("NOTIFY_SOCKET", name, 1);
    cr_expect(notify_manager(NOTIFY_READY));
    char got[64] = {0};
    cr_expect_eq(recv(fd, got, sizeof got - 1, MSG_DONTWAIT), (ssize_t)strlen("READY=1"));
    cr_expect_str_eq(got, "READY=1");
    close(fd);
}

Test(notify, a_manager_is_told_at_its_socket)
{
    char path[128], abstract[64];
    temp_dir dir = temp_dir_make();
    temp_file(&dir, path, "notify", NULL, 0);
    expect_told(path);
    unlink(path);
    rmdir(dir.path);
    snprintf(abstract, sizeof abstract, "@conclave-notify-test-%d", (int)getpid());
    expect_told(abstract);
}

Test(notify, without_a_manager_nothing_is_sent)
{
    unsetenv("NOTIFY_SOCKET");
    cr_expect_not(notify_manager(NOTIFY_READY));
    char too_long[256];
    memset(too_long, 'x', sizeof too_long - 1);
    too_long[0] = '/';
    too_long[sizeof too_long - 1] = '\0';
    const char *const bad[] = {"", "/", "@", "relative", "/nonexistent/socket", too_long};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        setenv("NOTIFY_SOCKET", bad[i], 1);
        cr_expect_not(notify_manager(NOTIFY_READY), "%s", bad[i]);
    }
}
