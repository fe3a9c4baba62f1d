/* stream: a client of a streamed completion that reads as much as it likes, and leaves when it
 * likes.
 *
 * Threads: no shared state; no function here fails a test.
 */
#ifndef MOE_TESTS_INTEGRATION_STREAM_H
#define MOE_TESTS_INTEGRATION_STREAM_H

#include <stdbool.h>
#include <stddef.h>

/* Connect to a fleet's url, and post body to /v1/completions; reads fail after 90 s.  -1: could not
 * connect.  close() ends it. */
int stream_open(const char *url, const char *body);

/* Append what comes to buf [size], which holds a text, until that has `until` in it.  False if the
 * connection ends first, or buf is full. */
bool stream_read_until(int fd, char *buf, size_t size, const char *until);

#endif
