#include "common/run_dir.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/hash.h"

moe_err
run_dir_open(run_dir *out, const char *path, errbuf *eb)
{
    *out = (run_dir){0};
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return err_set(eb, MOE_EIO, "run directory %s: %s", path, strerror(errno));

    char *real = realpath(path, NULL);
    if (real == NULL) return err_set(eb, MOE_EIO, "run directory %s: %s", path, strerror(errno));
    moe_err err = MOE_OK;
    struct stat st;
    if (strlen(real) > RUN_DIR_PATH_MAX)
        err = err_set(eb, MOE_ERANGE,
                      "run directory %s: longer than %d bytes, so its sockets' names would not fit",
                      real, RUN_DIR_PATH_MAX);
    else if (stat(real, &st) != 0 || !S_ISDIR(st.st_mode))
        err = err_set(eb, MOE_EIO, "run directory %s: not a folder", real);
    if (!err) {
        snprintf(out->path, sizeof out->path, "%s", real);
        snprintf(out->id, sizeof out->id, "%016llx",
                 (unsigned long long)hash_bytes(0, real, strlen(real)));
    }
    free(real);
    return err;
}

void
run_dir_url(const run_dir *run, const char *role, uint32_t id, char url[RUN_URL_MAX])
{
    snprintf(url, RUN_URL_MAX, "ipc://%s/%s-%u.sock", run->path, role, id);
}

uint64_t
incarnation_draw(void)
{
    uint64_t v = 0;
    if (getrandom(&v, sizeof v, 0) != (ssize_t)sizeof v)
        v = hash_combine(clock_now_ns(), (uint64_t)getpid());
    return v == 0 ? 1 : v;
}
