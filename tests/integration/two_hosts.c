#include "tests/integration/two_hosts.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static bool
run(const char *command)
{
    return system(command) == 0;
}

/* The process that holds the far host's network; returns when that is there.  0: it can't. */
static pid_t
hold_network(void)
{
    int ready[2];
    char byte;
    if (pipe(ready) != 0) return 0;
    const pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent || unshare(CLONE_NEWNET) != 0 || write(ready[1], "x", 1) != 1)
            _exit(1);
        close(ready[0]);
        close(ready[1]);
        while (true)
            pause();
    }
    close(ready[1]);
    const bool good = pid > 0 && read(ready[0], &byte, 1) == 1;
    close(ready[0]);
    if (good) return pid;
    if (pid > 0) waitpid(pid, NULL, 0);
    return 0;
}

static bool
join(const two_hosts *h)
{
    char command[1024];
    snprintf(command, sizeof command,
             "{ ip link add %s type veth peer name far0 netns %d && ip addr add %s/24 dev %s && "
             "ip link set %s up && nsenter -t %d -n ip addr add %s/24 dev far0 && "
             "nsenter -t %d -n ip link set far0 up && nsenter -t %d -n ip link set lo up; } "
             ">/dev/null 2>&1",
             h->link, (int)h->holder, h->near, h->link, h->link, (int)h->holder, h->far,
             (int)h->holder, (int)h->holder);
    return run(command);
}

bool
two_hosts_make(two_hosts *h, char *why, size_t size)
{
    char path[64];
    const int pid = (int)getpid();
    *h = (two_hosts){.netns = -1};
    if (geteuid() != 0) {
        snprintf(why, size, "only root can make a network namespace");
        return false;
    }
    h->holder = hold_network();
    if (h->holder == 0) {
        snprintf(why, size, "a network namespace can't be made here");
        return false;
    }
    snprintf(h->link, sizeof h->link, "near%d", pid % 1000000);
    snprintf(h->near, sizeof h->near, "10.213.%d.1", pid % 250);
    snprintf(h->far, sizeof h->far, "10.213.%d.2", pid % 250);
    snprintf(path, sizeof path, "/proc/%d/ns/net", (int)h->holder);
    h->netns = open(path, O_RDONLY | O_CLOEXEC);
    if (h->netns >= 0 && join(h)) return true;
    snprintf(why, size, "two network namespaces can't be joined here (ip, nsenter, veth)");
    two_hosts_remove(h);
    return false;
}

void
two_hosts_remove(two_hosts *h)
{
    if (h->holder == 0) return;
    if (h->netns >= 0) close(h->netns);
    kill(h->holder, SIGKILL);
    waitpid(h->holder, NULL, 0);
    *h = (two_hosts){.netns = -1};
}

void
two_hosts_connect(const two_hosts *h, bool up)
{
    char command[64];
    snprintf(command, sizeof command, "ip link set %s %s", h->link, up ? "up" : "down");
    if (!run(command)) abort();
}
