#include "loadgen/schedule.h"

#include <assert.h>
#include <stdlib.h>

bool
schedule_is_turn(const schedule *s, size_t i)
{
    return i > 0 && s->prompts[i].turn > 0;
}

static void
skip_turns(schedule *s)
{
    while (s->root < s->count && schedule_is_turn(s, s->root))
        s->root++;
}

moe_err
schedule_init(schedule *s, const prompt *prompts, const uint64_t *arrivals_ns, size_t count)
{
    *s = (schedule){.prompts = prompts, .arrivals_ns = arrivals_ns, .count = count};
    size_t turns = 0;
    for (size_t i = 0; i < count; i++) {
        turns += schedule_is_turn(s, i);
    }
    s->heap = malloc((turns + 1) * sizeof *s->heap);
    skip_turns(s);
    return s->heap ? MOE_OK : MOE_ENOMEM;
}

void
schedule_fini(schedule *s)
{
    free(s->heap);
    *s = (schedule){0};
}

static bool
is_before(schedule_item a, schedule_item b)
{
    return a.due_ns < b.due_ns || (a.due_ns == b.due_ns && a.index < b.index);
}

bool
schedule_peek(const schedule *s, schedule_item *out)
{
    const bool has_root = s->root<s->count, has_turn = s->turn_count> 0;
    if (!has_root && !has_turn) return false;
    const schedule_item root = {.due_ns = has_root ? s->arrivals_ns[s->root] : 0, .index = s->root};
    *out = has_turn && (!has_root || is_before(s->heap[0], root)) ? s->heap[0] : root;
    return true;
}

static void
sift_down(schedule *s, schedule_item item)
{
    size_t at = 0;
    for (size_t child = 1; child < s->turn_count; child = 2 * at + 1) {
        if (child + 1 < s->turn_count && is_before(s->heap[child + 1], s->heap[child])) child++;
        if (!is_before(s->heap[child], item)) break;
        s->heap[at] = s->heap[child];
        at = child;
    }
    s->heap[at] = item;
}

void
schedule_pop(schedule *s)
{
    schedule_item first;
    if (!schedule_peek(s, &first)) return;
    if (!schedule_is_turn(s, first.index)) {
        s->root++;
        skip_turns(s);
    } else if (--s->turn_count > 0) {
        sift_down(s, s->heap[s->turn_count]);
    }
}

void
schedule_add(schedule *s, size_t index, uint64_t due_ns)
{
    assert(schedule_is_turn(s, index));
    const schedule_item item = {.due_ns = due_ns, .index = index};
    size_t at = s->turn_count++;
    for (; at > 0 && is_before(item, s->heap[(at - 1) / 2]); at = (at - 1) / 2) {
        s->heap[at] = s->heap[(at - 1) / 2];
    }
    s->heap[at] = item;
}
