#include "common/affinity.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool
parse_number(const char **at, unsigned long *out)
{
    if (!isdigit((unsigned char)**at)) return false;
    char *end;
    *out = strtoul(*at, &end, 10);
    *at = end;
    return *out < CPU_SETSIZE;
}

moe_err
affinity_parse(const char *list, cpu_set_t *out, errbuf *eb)
{
    CPU_ZERO(out);
    const char *at = list;
    do {
        unsigned long first, last;
        bool good = parse_number(&at, &first);
        last = first;
        if (good && *at == '-') {
            at++;
            good = parse_number(&at, &last) && last >= first;
        }
        if (!good || (*at != ',' && *at != '\0'))
            return err_set(eb, MOE_EINVAL,
                           "CPU list \"%.64s\": no CPU number or range from %u to %d at \"%.16s\"",
                           list, 0u, CPU_SETSIZE - 1, at);
        for (unsigned long cpu = first; cpu <= last; cpu++) {
            CPU_SET(cpu, out);
        }
    } while (*at++ == ',');
    return MOE_OK;
}

/* The CPUs of one node; false if there is no such node. */
static bool
read_node(const char *nodes, uint32_t node, cpu_set_t *out)
{
    char path[512], list[4096];
    snprintf(path, sizeof path, "%s/node%u/cpulist", nodes, node);
    FILE *f = fopen(path, "r");
    if (f == NULL) return false;
    const bool good = fgets(list, sizeof list, f) != NULL;
    fclose(f);
    if (!good) return false;
    list[strcspn(list, "\n")] = '\0';
    return affinity_parse(list, out, NULL) == MOE_OK;
}

static void
choose_node(uint32_t index, const cpu_set_t *allowed, const char *nodes, cpu_set_t *out)
{
    cpu_set_t usable[AFFINITY_NODE_MAX];
    uint32_t count = 0;
    for (uint32_t n = 0; n < AFFINITY_NODE_MAX; n++) { /* numbers may have gaps */
        cpu_set_t cpus;
        if (!read_node(nodes, n, &cpus)) continue;
        CPU_AND(&usable[count], &cpus, allowed);
        if (CPU_COUNT(&usable[count]) > 0) count++;
    }
    *out = count > 1 ? usable[index % count] : *allowed;
}

moe_err
affinity_choose(const char *choice, uint32_t index, const cpu_set_t *allowed, const char *nodes,
                cpu_set_t *out, errbuf *eb)
{
    *out = *allowed;
    if (strcmp(choice, "none") == 0) return MOE_OK;
    if (strcmp(choice, "auto") == 0) {
        choose_node(index, allowed, nodes, out);
        return MOE_OK;
    }
    cpu_set_t listed;
    const moe_err err = affinity_parse(choice, &listed, eb);
    if (err) return err;
    CPU_AND(out, &listed, allowed);
    if (CPU_COUNT(out) == 0)
        return err_set(eb, MOE_EINVAL, "CPU list \"%.64s\": this process may use none of them",
                       choice);
    return MOE_OK;
}

moe_err
affinity_apply(const char *choice, uint32_t index, errbuf *eb)
{
    cpu_set_t allowed, chosen;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return MOE_OK; /* nothing to choose */
    const moe_err err = affinity_choose(choice, index, &allowed, AFFINITY_NODES, &chosen, eb);
    if (err) return err;
    if (CPU_EQUAL(&allowed, &chosen)) return MOE_OK;
    if (sched_setaffinity(0, sizeof chosen, &chosen) != 0)
        return err_set(eb, MOE_EIO, "binding to %d CPUs: %s", CPU_COUNT(&chosen), strerror(errno));
    return MOE_OK;
}

uint32_t
affinity_first(uint32_t index, uint32_t threads, uint32_t cpus)
{
    return threads % cpus == 0 ? index % cpus : index * threads % cpus;
}

void
affinity_bind_pool(const char *choice, pool *p, uint32_t index)
{
    cpu_set_t set;
    if (strcmp(choice, "none") == 0 || sched_getaffinity(0, sizeof set, &set) != 0) return;
    pool_bind(p, affinity_first(index, pool_size(p), (uint32_t)CPU_COUNT(&set)));
}
