#include "tests/integration/stream.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PATIENCE_S 90

int
stream_open(const char *url, const char *body)
{
    const char *colon = strrchr(url, ':');
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)strtoul(colon + 1, NULL, 10)),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct timeval patience = {.tv_sec = PATIENCE_S};
    char *text = NULL;
    const int len = asprintf(&text,
                             "POST /v1/completions HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
                             "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                             strlen(body), body);
    const bool good = fd >= 0 && len > 0 &&
                      setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0 &&
                      connect(fd, (const struct sockaddr *)&to, sizeof to) == 0 &&
                      send(fd, text, (size_t)len, MSG_NOSIGNAL) == len;
    free(text);
    if (good) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

bool
stream_read_until(int fd, char *buf, size_t size, const char *until)
{
    size_t len = strlen(buf);
    while (strstr(buf, until) == NULL) {
        const ssize_t n = len + 1 < size ? recv(fd, buf + len, size - len - 1, 0) : 0;
        if (n <= 0) return false;
        len += (size_t)n;
        buf[len] = '\0';
    }
    return true;
}
