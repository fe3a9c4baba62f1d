/* region: one large piece of private memory for weights, in huge pages where the system has them.
 *
 * A product streams through gigabytes of weights: with 4 KB pages it waits for the page table.  So
 * a region is made of 2 MB pages: reserved ones (hugetlbfs) when enough are free, else ordinary
 * memory for which the kernel is asked to use huge pages.
 *
 * Pages are zero.  Ordinary ones come into being where they are first written, so whoever fills a
 * region in parallel also takes its page faults in parallel; reserved ones are populated in
 * parallel by create(), because a reservation may be withdrawn (a cgroup's limit), which must be an
 * error here and not a SIGBUS later.
 *
 * Threads: plain memory.
 */
#ifndef MOE_COMMON_REGION_H
#define MOE_COMMON_REGION_H

#include <stddef.h>

#include "common/err.h"
#include "common/pool.h"

#define REGION_PAGE_BYTES ((size_t)2 << 20)

typedef enum region_pages { REGION_RESERVED, REGION_TRANSPARENT, REGION_SMALL } region_pages;

typedef struct region {
    char *bytes; /* at a multiple of REGION_PAGE_BYTES; NULL when empty */
    size_t size; /* what was asked for */
    size_t mapped;
    region_pages pages;
} region;

/* size 0 gives an empty region.  Which pages it got is logged at debug level.  The pool is used for
 * the call only.  On error *out is empty. MOE_ENOMEM  the text names the size  */
moe_err region_create(region *out, size_t size, pool *p, errbuf *eb);
void region_free(region *r); /* accepts a zeroed one; leaves it empty */

#endif
