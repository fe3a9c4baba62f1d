/* notify: tells a service manager how far a process has come.
 *
 * systemd gives a service of Type=notify the address of a socket in NOTIFY_SOCKET; a datagram on it
 * says "READY=1" or "STOPPING=1".  Without that variable nothing is sent.
 *
 * Source: sd_notify(3), whose protocol is stable and documented; no library is needed for it.
 *
 * Threads: any.
 */
#ifndef MOE_COMMON_NOTIFY_H
#define MOE_COMMON_NOTIFY_H

#include <stdbool.h>

#define NOTIFY_READY "READY=1"
#define NOTIFY_STOPPING "STOPPING=1"

/* Never blocks.  True if the manager was told; false without one, or if its socket can't be used:
 * it notices by its own time limit. */
bool notify_manager(const char *state);

#endif
