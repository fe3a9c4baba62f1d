#include "frontend/word_merge.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/tokenizer_impl.h"
#include "frontend/utf8.h"

#define NO_RANK UINT32_MAX
#define NO_SYMBOL UINT32_MAX
#define MERGED_AWAY UINT32_MAX

bool
id_list_reserve(id_list *list, size_t n)
{
    if (n <= list->capacity - list->count) return true;
    size_t capacity = list->capacity != 0 ? list->capacity * 2 : 64;
    while (capacity < list->count + n) {
        capacity *= 2;
    }
    uint32_t *ids = realloc(list->ids, capacity * sizeof ids[0]);
    list->failed |= ids == NULL;
    if (ids == NULL) return false;
    list->ids = ids;
    list->capacity = capacity;
    return true;
}

/* ---- windows beyond WORD_INLINE: a heap of candidates over linked symbols ---- */

/* Candidates are (rank, position) words.  One is checked when it is popped: if the pair that now
 * begins at its position has the same rank, the merge is due; if not, the pair it was made for is
 * gone. */
typedef struct word_heap {
    uint32_t capacity;               /* symbols */
    uint32_t count;                  /* candidates */
    uint32_t *ids, *previous, *next; /* [capacity], in the tail */
    uint64_t candidates[];           /* [2 * capacity], rank << 32 | position, then the arrays */
} word_heap;

static word_heap *
heap_create(uint32_t capacity)
{
    word_heap *h = malloc(sizeof *h + capacity * (2 * sizeof(uint64_t) + 3 * sizeof(uint32_t)));
    if (h == NULL) return NULL;
    h->capacity = capacity;
    h->count = 0;
    h->ids = (uint32_t *)(h->candidates + 2 * (size_t)capacity);
    h->previous = h->ids + capacity;
    h->next = h->previous + capacity;
    return h;
}

static void
heap_push(word_heap *h, uint64_t word)
{
    assert(h->count < 2 * h->capacity);
    uint32_t at = h->count++;
    while (at > 0 && h->candidates[(at - 1) / 2] > word) {
        h->candidates[at] = h->candidates[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    h->candidates[at] = word;
}

static uint64_t
heap_pop(word_heap *h)
{
    const uint64_t top = h->candidates[0], last = h->candidates[--h->count];
    uint32_t at = 0;
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= h->count) break;
        if (child + 1 < h->count && h->candidates[child + 1] < h->candidates[child]) child++;
        if (h->candidates[child] >= last) break;
        h->candidates[at] = h->candidates[child];
        at = child;
    }
    h->candidates[at] = last;
    return top;
}

/* The merge of the symbol at this position with its right neighbour; NULL if there is none. */
static const bpe_merge *
merge_at(const tokenizer *tok, const word_heap *h, uint32_t at)
{
    if (h->ids[at] == MERGED_AWAY || h->next[at] == NO_SYMBOL) return NULL;
    return tokenizer_find_merge(tok, h->ids[at], h->ids[h->next[at]]);
}

static void
push_candidate(const tokenizer *tok, word_heap *h, uint32_t at)
{
    const bpe_merge *m = merge_at(tok, h, at);
    if (m != NULL) heap_push(h, (uint64_t)m->rank << 32 | at);
}

/* Each merge takes one candidate and brings at most two, so that 2n are never exceeded. */
static void
heap_merge(const tokenizer *tok, word_heap *h)
{
    while (h->count > 0) {
        const uint64_t word = heap_pop(h);
        const uint32_t at = (uint32_t)word;
        const bpe_merge *m = merge_at(tok, h, at);
        if (m == NULL || m->rank != word >> 32) continue;
        const uint32_t right = h->next[at];
        h->ids[at] = m->id;
        h->ids[right] = MERGED_AWAY;
        h->next[at] = h->next[right];
        if (h->next[at] != NO_SYMBOL) h->previous[h->next[at]] = at;
        if (h->previous[at] != NO_SYMBOL) push_candidate(tok, h, h->previous[at]);
        push_candidate(tok, h, at);
    }
}

static bool
reserve_long(word_merger *m, uint32_t n)
{
    if (n > m->token_capacity) {
        word_token *tokens = malloc(n * sizeof tokens[0]);
        if (tokens == NULL) return false;
        if (m->tokens != m->inline_tokens) free(m->tokens);
        m->tokens = tokens;
        m->token_capacity = n;
    }
    if (m->heap == NULL || n > m->heap->capacity) {
        free(m->heap);
        m->heap = heap_create(n);
    }
    return m->heap != NULL;
}

/* As merge_short; 0: out of memory. */
static uint32_t
merge_long(word_merger *m, const uint32_t *symbols, uint32_t n)
{
    if (!reserve_long(m, n)) return 0;
    word_heap *h = m->heap;
    for (uint32_t i = 0; i < n; i++) {
        h->ids[i] = symbols[i];
        h->previous[i] = i != 0 ? i - 1 : NO_SYMBOL;
        h->next[i] = i + 1 != n ? i + 1 : NO_SYMBOL;
    }
    h->count = 0;
    for (uint32_t i = 0; i + 1 < n; i++) {
        push_candidate(m->tok, h, i);
    }
    heap_merge(m->tok, h);
    uint32_t count = 0;
    for (uint32_t at = 0; at != NO_SYMBOL; at = h->next[at]) {
        m->tokens[count++] = (word_token){.id = h->ids[at], .start = at};
    }
    return count;
}

/* ---- short windows: arrays without gaps ---- */

/* The pair that begins at a symbol. */
typedef struct pair {
    uint32_t rank; /* NO_RANK: it does not merge */
    uint32_t id;   /* of the result */
} pair;

static pair
find_pair(const tokenizer *tok, uint32_t left, uint32_t right)
{
    const bpe_merge *m = tokenizer_find_merge(tok, left, right);
    return m != NULL ? (pair){m->rank, m->id} : (pair){NO_RANK, 0};
}

static uint32_t
lowest_rank(const pair *pairs, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++) {
        if (pairs[i].rank < pairs[best].rank) best = i;
    }
    return best;
}

/* Merge symbols [n], 1 <= n <= WORD_INLINE, into m->tokens; returns their number. */
static uint32_t
merge_short(word_merger *m, const uint32_t *symbols, uint32_t n)
{
    const tokenizer *tok = m->tok;
    word_token *t = m->tokens;
    pair pairs[WORD_INLINE]; /* the last symbol's never merges */
    for (uint32_t i = 0; i < n; i++) {
        t[i] = (word_token){.id = symbols[i], .start = i};
        pairs[i] = i + 1 < n ? find_pair(tok, symbols[i], symbols[i + 1]) : (pair){NO_RANK, 0};
    }
    for (;;) {
        const uint32_t at = lowest_rank(pairs, n);
        if (pairs[at].rank == NO_RANK) return n;
        t[at].id = pairs[at].id;
        n--;
        memmove(t + at + 1, t + at + 2, (n - at - 1) * sizeof t[0]);
        memmove(pairs + at + 1, pairs + at + 2, (n - at - 1) * sizeof pairs[0]);
        if (at > 0) pairs[at - 1] = find_pair(tok, t[at - 1].id, t[at].id);
        pairs[at] = at + 1 < n ? find_pair(tok, t[at].id, t[at + 1].id) : (pair){NO_RANK, 0};
    }
}

static uint32_t
merge_window(word_merger *m, const uint32_t *symbols, uint32_t n)
{
    return n <= WORD_INLINE ? merge_short(m, symbols, n) : merge_long(m, symbols, n);
}

/* ---- words ---- */

void
word_merger_init(word_merger *m, const tokenizer *tok)
{
    m->tok = tok;
    m->window = WORD_WINDOW;
    m->symbols = m->inline_symbols;
    m->count = 0;
    m->capacity = WORD_INLINE;
    m->tokens = m->inline_tokens;
    m->token_capacity = WORD_INLINE;
    m->heap = NULL;
}

void
word_merger_fini(word_merger *m)
{
    if (m->symbols != m->inline_symbols) free(m->symbols);
    if (m->tokens != m->inline_tokens) free(m->tokens);
    free(m->heap);
}

bool
word_merger_add(word_merger *m, uint32_t symbol)
{
    if (m->count == m->capacity) {
        const bool inside = m->symbols == m->inline_symbols;
        uint32_t *symbols =
            realloc(inside ? NULL : m->symbols, 2 * (size_t)m->capacity * sizeof symbols[0]);
        if (symbols == NULL) return false;
        if (inside) memcpy(symbols, m->inline_symbols, sizeof m->inline_symbols);
        m->symbols = symbols;
        m->capacity *= 2;
    }
    m->symbols[m->count++] = symbol;
    return true;
}

static void
emit(const tokenizer *tok, const word_token *tokens, uint32_t count, id_list *out)
{
    if (!id_list_reserve(out, 4 * (size_t)count)) return;
    for (uint32_t i = 0; i < count; i++) {
        if (tokens[i].id < UNKNOWN_CHARACTER) {
            out->ids[out->count++] = tokens[i].id;
            continue;
        }
        unsigned char bytes[4];
        const int n = utf8_encode(tokens[i].id & ~UNKNOWN_CHARACTER, bytes);
        for (int b = 0; b < n; b++) {
            out->ids[out->count++] = tok->byte_ids[bytes[b]];
        }
    }
}

/* The last token that begins in the first three quarters: what follows it in the window keeps the
 * window's end from showing. */
static uint32_t
choose_cut(const word_token *tokens, uint32_t count, uint32_t n)
{
    uint32_t cut = count - 1;
    while (tokens[cut].start > n - n / 4) {
        cut--;
    }
    return cut;
}

/* A window whose first token is settled, and what was known before it. */
typedef struct settled {
    uint32_t from;
    uint32_t first; /* the token that begins there; NO_SYMBOL at the word's beginning */
    uint32_t size;
    size_t emitted;
} settled;

/* Merge the word in windows of `size` symbols.  false: a larger one contradicts what a smaller one
 * had settled. */
static bool
merge_in_windows(word_merger *m, uint32_t size, id_list *out)
{
    settled last = {.from = 0, .first = NO_SYMBOL, .size = size, .emitted = out->count};
    for (settled now = last;;) {
        const uint32_t rest = m->count - now.from, n = now.size < rest ? now.size : rest;
        const uint32_t count = merge_window(m, m->symbols + now.from, n);
        out->failed |= count == 0;
        if (out->failed) return true;
        if (now.first != NO_SYMBOL && m->tokens[0].id != now.first) {
            if (now.from == last.from) return false;
            now = last; /* its end was merged wrongly: see further right */
            now.size *= 2;
            out->count = now.emitted;
            continue;
        }
        last = now;
        if (n == rest) {
            emit(m->tok, m->tokens, count, out);
            return true;
        }
        const uint32_t cut = choose_cut(m->tokens, count, n);
        if (m->tokens[cut].start < n / 4) { /* a token as long as that */
            now.size *= 2;
            continue;
        }
        emit(m->tok, m->tokens, cut, out);
        now = (settled){.from = now.from + m->tokens[cut].start,
                        .first = m->tokens[cut].id,
                        .size = size,
                        .emitted = out->count};
    }
}

void
word_merger_finish(word_merger *m, id_list *out)
{
    assert(m->window >= WORD_WINDOW_MIN);
    const size_t before = out->count;
    for (uint32_t size = m->window; m->count != 0 && !out->failed; size *= 4) {
        if (merge_in_windows(m, size, out)) break;
        out->count = before;
    }
    m->count = 0;
}
