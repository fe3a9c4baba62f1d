/* two_hosts: a second host for tests: a network namespace that is joined with this one by a pair of
 * virtual interfaces, as by a cable that can be cut.  Both share everything but the network.
 *
 * A process holds the namespace; it ends with the test, and everything made here with it.
 *
 * Threads: one.
 */
#ifndef MOE_TESTS_INTEGRATION_TWO_HOSTS_H
#define MOE_TESTS_INTEGRATION_TWO_HOSTS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

typedef struct two_hosts {
    pid_t holder;
    int netns;                        /* of the far host, for setns() */
    char link[16], near[16], far[16]; /* this host's interface, and both hosts' addresses */
} two_hosts;

/* False: it can't be had here; why [size] says why. */
bool two_hosts_make(two_hosts *h, char *why, size_t size);
void two_hosts_remove(two_hosts *h); /* accepts one that was not made */

/* Cut the cable (false), or mend it. */
void two_hosts_connect(const two_hosts *h, bool up);

#endif
