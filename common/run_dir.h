/* run_dir: the folder that holds everything of one running fleet, and the names derived from it.
 *
 * Control sockets, pid files and logs lie in it; shared-memory objects carry its run id, so that
 * two fleets with two run directories never touch each other and a fleet's leftovers can be found.
 *
 * Threads: plain data.
 */
#ifndef MOE_COMMON_RUN_DIR_H
#define MOE_COMMON_RUN_DIR_H

#include <stdint.h>

#include "common/err.h"

#define RUN_DIR_PATH_MAX 80 /* bytes: a unix socket's path holds 107 */
#define RUN_URL_MAX 128

typedef struct run_dir {
    char path[RUN_DIR_PATH_MAX + 1]; /* absolute, links resolved */
    char id[17];                     /* 16 hex digits of the path's hash */
} run_dir;

/* Create the folder (mode 0700) if it is missing, and resolve it.
 *   MOE_ERANGE  the absolute path is longer than RUN_DIR_PATH_MAX
 *   MOE_EIO     can't be made, or is no folder  */
moe_err run_dir_open(run_dir *out, const char *path, errbuf *eb);

/* "ipc://PATH/<role>-<id>.sock", written into url. */
void run_dir_url(const run_dir *run, const char *role, uint32_t id, char url[RUN_URL_MAX]);

/* A random number that names one life of a process; never 0. */
uint64_t incarnation_draw(void);

#endif
