#include "common/region.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "common/log.h"

#ifndef MAP_HUGE_2MB
#define MAP_HUGE_2MB (21 << 26)
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* What one work item populates. */
#define POPULATE_BYTES (16 * REGION_PAGE_BYTES)

typedef struct populate_job {
    char *bytes;
    size_t size;
    _Atomic bool failed;
} populate_job;

static void
populate_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    populate_job *job = arg;
    const size_t at = item * POPULATE_BYTES;
    const size_t left = job->size - at;
    if (madvise(job->bytes + at, left < POPULATE_BYTES ? left : POPULATE_BYTES,
                MADV_POPULATE_WRITE) != 0)
        atomic_store(&job->failed, true);
}

/* Reserved huge pages; false when there are too few, or the kernel can't populate (before 5.14). */
static bool
map_reserved(region *r, pool *p)
{
    void *map = mmap(NULL, r->mapped, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);
    if (map == MAP_FAILED) return false;
    populate_job job = {.bytes = map, .size = r->mapped};
    pool_run(p, populate_item, &job, (uint32_t)((r->mapped + POPULATE_BYTES - 1) / POPULATE_BYTES));
    if (atomic_load(&job.failed)) {
        munmap(map, r->mapped);
        return false;
    }
    r->bytes = map;
    r->pages = REGION_RESERVED;
    return true;
}

/* Ordinary memory, its start moved to a boundary so that every byte can be in a huge page. */
static bool
map_ordinary(region *r)
{
    const size_t span = r->mapped + REGION_PAGE_BYTES;
    char *map = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) return false;
    const size_t before =
        (REGION_PAGE_BYTES - (uintptr_t)map % REGION_PAGE_BYTES) % REGION_PAGE_BYTES;
    const size_t after = REGION_PAGE_BYTES - before;
    if (before != 0) munmap(map, before);
    if (after != 0) munmap(map + before + r->mapped, after);
    r->bytes = map + before;
    r->pages = madvise(r->bytes, r->mapped, MADV_HUGEPAGE) == 0 ? REGION_TRANSPARENT : REGION_SMALL;
    return true;
}

moe_err
region_create(region *out, size_t size, pool *p, errbuf *eb)
{
    *out = (region){.size = size, .pages = REGION_SMALL};
    if (size == 0) return MOE_OK;
    const bool fits = size <= SIZE_MAX / 4 && size / POPULATE_BYTES < POOL_ITEM_MAX;
    out->mapped = (size + REGION_PAGE_BYTES - 1) / REGION_PAGE_BYTES * REGION_PAGE_BYTES;
    if (fits && (map_reserved(out, p) || map_ordinary(out))) {
        static const char *const names[] = {"reserved-2m", "transparent-2m", "4k"};
        LOG_DEBUG("memory", "region mapped bytes=%zu pages=%s", out->mapped, names[out->pages]);
        return MOE_OK;
    }
    *out = (region){0};
    return err_set(eb, MOE_ENOMEM, "no memory for %zu bytes (%s)", size,
                   fits ? strerror(errno) : "too large");
}

void
region_free(region *r)
{
    if (r->bytes != NULL) munmap(r->bytes, r->mapped);
    *r = (region){0};
}
