/* affinity: which CPUs a process runs on.
 *
 * Memory belongs to the NUMA node whose CPU touches it first.  A process that packs and multiplies
 * its weights on the CPUs of one node therefore has them there.  Within a node each thread of a
 * compute pool keeps to one CPU; router and workers take turns, so their pools share the CPUs.
 *
 * Threads: the main thread.
 */
#ifndef MOE_COMMON_AFFINITY_H
#define MOE_COMMON_AFFINITY_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/pool.h"

#define AFFINITY_NODES "/sys/devices/system/node"
#define AFFINITY_NODE_MAX 64

/* "0-3,8,10-11", as sysfs and taskset write it.
 *   MOE_EINVAL  not of that form, empty, or a CPU number above CPU_SETSIZE - 1; the text says where
 */
moe_err affinity_parse(const char *list, cpu_set_t *out, errbuf *eb);

/* What `choice` means for the index-th process of its kind (a worker's id):
 *   "none"  every CPU it may use already
 *   "auto"  the CPUs of NUMA node (index mod nodes) among those; of a machine with one node, all
 *   LIST    these CPUs
 *   allowed  what the process may use now
 *   nodes    a folder as AFFINITY_NODES; a machine without it has one node
 *   MOE_EINVAL  as affinity_parse(), or no CPU of the list is allowed  */
moe_err affinity_choose(const char *choice, uint32_t index, const cpu_set_t *allowed,
                        const char *nodes, cpu_set_t *out, errbuf *eb);

/* Choose, and bind this process to it.  Before threads are started: they inherit it.
 *   MOE_EINVAL  as affinity_choose()
 *   MOE_EIO     the kernel refuses  */
moe_err affinity_apply(const char *choice, uint32_t index, errbuf *eb);

/* At which of `cpus` CPUs the index-th pool begins: pools that are smaller than the machine lie
 * side by side, others begin a CPU further each. */
uint32_t affinity_first(uint32_t index, uint32_t threads, uint32_t cpus);

/* pool_bind() for the index-th pool of the fleet (0: the router's), unless choice is "none". */
void affinity_bind_pool(const char *choice, pool *p, uint32_t index);

#endif
