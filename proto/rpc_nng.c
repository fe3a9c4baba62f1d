#include "proto/rpc_nng.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

void
rpc_nng_mend(void)
{
}

ssize_t
sendmsg(int fd, const struct msghdr *message, int flags)
{
    const ssize_t n = syscall(SYS_sendmsg, fd, message, flags);
    if (n < 0 && errno == EPIPE && flags == MSG_NOSIGNAL) errno = ECONNRESET;
    return n;
}
