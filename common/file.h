/* file: whole files, read or mapped, with errors that name the path.
 *
 * Threads: no shared state.
 */
#ifndef MOE_COMMON_FILE_H
#define MOE_COMMON_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

/* Read a whole file into memory.  On MOE_OK *out holds *len bytes and a NUL after them; free() it.
 *   MOE_ENOTFOUND  no such file
 *   MOE_ERANGE     larger than max bytes
 *   MOE_EIO        not a regular file, or a read failed
 *   MOE_ENOMEM  */
moe_err file_read(const char *path, size_t max, char **out, size_t *len, errbuf *eb);

bool file_is_folder(const char *path);

/* Map a whole file read-only.  On MOE_OK release with file_unmap().  An empty file gives *out =
 * NULL. MOE_ENOTFOUND, MOE_EIO  as above */
moe_err file_map(const char *path, const void **out, size_t *len, errbuf *eb);
void file_unmap(const void *map, size_t len);

#endif
