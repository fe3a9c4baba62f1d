/* trace_fuzz: bytes of a trace file (--trace); what can be read is summarized, written and merged.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/json.h"
#include "loadgen/trace_merge.h"
#include "loadgen/trace_summary.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Whatever is merged is JSON. */
static void
merge(const char *const *paths)
{
    static trace_align align;
    errbuf eb = {{0}};
    if (trace_align_read(&align, paths, 1, &eb) != MOE_OK) {
        if (eb.text[0] == '\0') abort();
        return;
    }
    char *text = NULL;
    size_t len;
    cJSON *root;
    FILE *to = open_memstream(&text, &len);
    if (to == NULL || trace_merge(&align, paths, 1, to, &eb) != MOE_OK) abort();
    fclose(to);
    if (json_parse(text, len, &root, &eb) != MOE_OK) abort();
    cJSON_Delete(root);
    free(text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const int fd = memfd_create("trace", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    const char *const paths[] = {path};
    trace_summary s;
    errbuf eb = {{0}};
    if (trace_summarize(paths, 1, &s, &eb) == MOE_OK) {
        char *text = NULL;
        size_t len;
        FILE *to = open_memstream(&text, &len);
        if (to == NULL) abort();
        if (s.step_count == 0) abort();
        trace_summary_print(&s, to);
        trace_summary_write_json(&s, to, &eb);
        fclose(to);
        free(text);
        trace_summary_fini(&s);
    } else if (eb.text[0] == '\0') {
        abort();
    }
    merge(paths);
    close(fd);
    return 0;
}
