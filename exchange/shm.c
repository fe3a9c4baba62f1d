#include "exchange/link.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/log.h"

#define SHM_FOLDER "/dev/shm"
#define NAME_PREFIX "/conclave-"
#define RUN_DIGITS 16

bool
shm_run_valid(const char *run)
{
    return strlen(run) == RUN_DIGITS && strspn(run, "0123456789abcdef") == RUN_DIGITS;
}

static bool
name_valid(const char *name)
{
    return strnlen(name, EXCHANGE_NAME_MAX) < EXCHANGE_NAME_MAX &&
           strncmp(name, NAME_PREFIX, strlen(NAME_PREFIX)) == 0 && strchr(name + 1, '/') == NULL;
}

bool
shm_name_of_run(const char name[EXCHANGE_NAME_MAX], const char *run)
{
    char prefix[EXCHANGE_NAME_MAX];
    const int n = snprintf(prefix, sizeof prefix, NAME_PREFIX "%s-", run);
    return name_valid(name) && strncmp(name, prefix, (size_t)n) == 0;
}

/* A file system in memory hands out pages when they are touched, and kills the process that gets
 * none (SIGBUS): so say beforehand when it could come to that. */
static void
warn_if_short(int fd, const char *name, size_t bytes)
{
    struct statvfs fs;
    if (fstatvfs(fd, &fs) != 0) return;
    const unsigned long long left = (unsigned long long)fs.f_bavail * fs.f_frsize;
    if (bytes > left)
        LOG_WARN("exchange",
                 "shared memory may run out: raise the size of " SHM_FOLDER
                 " or lower the batch limits object=%s bytes=%zu free_bytes=%llu",
                 name, bytes, left);
}

static moe_err
map_fd(shm_object *out, int fd, const char *name, size_t bytes, errbuf *eb)
{
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED)
        return err_set(eb, MOE_EIO, "%s: mapping %zu bytes: %s", name, bytes, strerror(errno));
    out->base = base;
    out->bytes = bytes;
    snprintf(out->name, sizeof out->name, "%s", name);
    return MOE_OK;
}

moe_err
shm_object_create(shm_object *out, const char *name, size_t bytes, errbuf *eb)
{
    *out = (shm_object){0};
    if (!name_valid(name)) return err_set(eb, MOE_EINVAL, "shared memory: bad object name");
    const int fd = shm_open(name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) return err_set(eb, MOE_EIO, "%s: creating: %s", name, strerror(errno));

    moe_err err;
    if (ftruncate(fd, (off_t)bytes) != 0) {
        err = err_set(eb, MOE_EIO, "%s: asking for %zu bytes of " SHM_FOLDER ": %s", name, bytes,
                      strerror(errno));
    } else {
        warn_if_short(fd, name, bytes);
        err = map_fd(out, fd, name, bytes, eb);
    }
    close(fd);
    if (err != MOE_OK)
        shm_unlink(name);
    else
        out->owner = true;
    return err;
}

/* Only what its own user made, for nobody else, at the agreed size: a shorter object would fault
 * when its end is touched. */
static moe_err
check_fd(int fd, const char *name, size_t bytes, errbuf *eb)
{
    struct stat st;
    if (fstat(fd, &st) != 0) return err_set(eb, MOE_EIO, "%s: %s", name, strerror(errno));
    if (st.st_uid != geteuid() || (st.st_mode & 077) != 0)
        return err_set(eb, MOE_EMISMATCH, "%s: owner %u mode %o, expected owner %u mode 600", name,
                       (unsigned)st.st_uid, (unsigned)st.st_mode & 0777u, (unsigned)geteuid());
    if ((uint64_t)st.st_size != bytes)
        return err_set(eb, MOE_EMISMATCH, "%s: %lld bytes, expected %zu", name,
                       (long long)st.st_size, bytes);
    return MOE_OK;
}

moe_err
shm_object_open(shm_object *out, const char *name, size_t bytes, errbuf *eb)
{
    *out = (shm_object){0};
    if (!name_valid(name)) return err_set(eb, MOE_EINVAL, "shared memory: bad object name");
    const int fd = shm_open(name, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0)
        return err_set(eb, errno == ENOENT ? MOE_ENOTFOUND : MOE_EIO, "%s: opening: %s", name,
                       strerror(errno));
    moe_err err = check_fd(fd, name, bytes, eb);
    if (err == MOE_OK) err = map_fd(out, fd, name, bytes, eb);
    close(fd);
    return err;
}

moe_err
shm_object_private(shm_object *out, size_t bytes, errbuf *eb)
{
    *out = (shm_object){0};
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return err_set(eb, MOE_EIO, "mapping %zu bytes: %s", bytes, strerror(errno));
    out->base = base;
    out->bytes = bytes;
    return MOE_OK;
}

void
shm_object_close(shm_object *o)
{
    if (o->base != NULL) munmap(o->base, o->bytes);
    if (o->owner) shm_unlink(o->name);
    *o = (shm_object){0};
}

unsigned
shm_objects_remove(const char *run, const char *part)
{
    char prefix[EXCHANGE_NAME_MAX], name[EXCHANGE_NAME_MAX];
    unsigned count = 0;
    if (!shm_run_valid(run)) return 0;
    const int n = snprintf(prefix, sizeof prefix, NAME_PREFIX "%s-%s", run, part);
    if (n < 0 || (size_t)n >= sizeof prefix) return 0;

    DIR *folder = opendir(SHM_FOLDER);
    if (folder == NULL) return 0;
    struct dirent *entry;
    while ((entry = readdir(folder)) != NULL) {
        const int len = snprintf(name, sizeof name, "/%s", entry->d_name);
        if ((size_t)len >= sizeof name || strncmp(name, prefix, (size_t)n) != 0) continue;
        if (shm_unlink(name) == 0) count++;
    }
    closedir(folder);
    return count;
}
