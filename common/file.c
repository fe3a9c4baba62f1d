#include "common/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static moe_err
open_regular(const char *path, int *fd, size_t *size, errbuf *eb)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* NONBLOCK: a FIFO must not hang us */
    if (*fd < 0) {
        const moe_err code = errno == ENOENT || errno == ENOTDIR ? MOE_ENOTFOUND : MOE_EIO;
        return err_set(eb, code, "%s: %s", path, strerror(errno));
    }
    struct stat st;
    if (fstat(*fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(*fd);
        return err_set(eb, MOE_EIO, "%s: not a regular file", path);
    }
    *size = (size_t)st.st_size;
    return MOE_OK;
}

bool
file_is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

moe_err
file_read(const char *path, size_t max, char **out, size_t *len, errbuf *eb)
{
    *out = NULL;
    *len = 0;
    int fd;
    size_t size;
    moe_err err = open_regular(path, &fd, &size, eb);
    if (err) return err;

    char *text = NULL;
    size_t got = 0;
    if (size > max) {
        err = err_set(eb, MOE_ERANGE, "%s: %zu bytes, at most %zu are read", path, size, max);
        goto fail;
    }
    text = malloc(size + 1);
    if (text == NULL) {
        err = err_set(eb, MOE_ENOMEM, "%s: no memory for %zu bytes", path, size);
        goto fail;
    }
    while (got < size) {
        const ssize_t n = read(fd, text + got, size - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            err = err_set(eb, MOE_EIO, "%s: %s", path, strerror(errno));
            goto fail;
        }
        if (n == 0) break; /* it shrank while we read */
        got += (size_t)n;
    }
    close(fd);
    text[got] = '\0';
    *out = text;
    *len = got;
    return MOE_OK;

fail:
    free(text);
    close(fd);
    return err;
}

moe_err
file_map(const char *path, const void **out, size_t *len, errbuf *eb)
{
    *out = NULL;
    *len = 0;
    int fd;
    size_t size;
    moe_err err = open_regular(path, &fd, &size, eb);
    if (err) return err;
    if (size != 0) {
        void *map = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            err = err_set(eb, MOE_EIO, "%s: mmap: %s", path, strerror(errno));
        else
            *out = map;
    }
    close(fd);
    if (!err) *len = size;
    return err;
}

void
file_unmap(const void *map, size_t len)
{
    if (map != NULL) munmap((void *)(uintptr_t)map, len);
}
