#include "frontend/completion.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "common/clock.h"
#include "frontend/choice.h"

#define ID_BYTES 16
#define DATA "data: " /* what a stream's event begins with */
#define DATA_LEN (sizeof DATA - 1)
#define HEAD_BYTES_MAX 4096 /* id, created and the model's name */

/* One sequence. */
typedef struct slot {
    completion *owner;
    choice choice;    /* the engine thread's until the sequence has ended */
    uint64_t last_ns; /* when its latest token came; 0: none yet */
    seq_id id;        /* guarded by the owner's lock; 0: not submitted, or ended */
    bool ended;       /* guarded by the owner's lock: its last event has come */
} slot;

struct completion {
    atomic_uint refs;
    const completion_env *env;
    completion_host host;
    completion_request request;
    uint64_t arrival_ns;
    uint64_t prompt_tokens;
    strbuf head; /* what every chunk begins with; an answer too, but for DATA */

    pthread_mutex_t lock; /* guards what follows */
    bool dead;            /* aborted or failed: sequences end at their next event */
    bool broken;          /* aborted from outside: nobody reads any more */
    bool ended;           /* stream: [DONE] is in `out` */
    bool too_slow;
    uint32_t live; /* sequences that have not ended */
    uint64_t completion_tokens;
    size_t ready_bytes; /* gathered in all choices since they began, and not taken */
    api_error error;    /* the first failure */
    strbuf out;         /* stream: text not read yet, from out_read on */
    size_t out_read;
    size_t chunk_max; /* bytes of the largest event so far */

    uint32_t slot_count;
    slot slots[];
};

/* ---- text ---- */

static void
print_usage(completion *c, uint64_t completion_tokens, strbuf *out)
{
    uint64_t cached = 0; /* of each prompt's first choice: a prompt counts once */
    for (uint32_t i = 0; i < c->slot_count; i += c->request.n)
        cached += c->slots[i].choice.cached_tokens;
    strbuf_printf(
        out,
        "{\"prompt_tokens\":%" PRIu64 ",\"completion_tokens\":%" PRIu64 ",\"total_tokens\":%" PRIu64
        ",\"prompt_tokens_details\":{\"cached_tokens\":%" PRIu64 "}}",
        c->prompt_tokens, completion_tokens, c->prompt_tokens + completion_tokens, cached);
}

static void
print_head(const completion *c, strbuf *out)
{
    strbuf_append(out, strbuf_text(&c->head) + DATA_LEN, c->head.len - DATA_LEN);
}

static void
print_chunk_head(const completion *c, strbuf *out)
{
    strbuf_append(out, strbuf_text(&c->head), c->head.len);
}

/* Once per token: what does not change is copied in one piece. */
static void
write_chunk_locked(completion *c, slot *s)
{
    strbuf *out = &c->out;
    print_chunk_head(c, out);
    choice_take(&s->choice, out);
    if (c->request.continuous_usage) {
        strbuf_puts(out, "],\"usage\":");
        print_usage(c, c->completion_tokens, out);
        strbuf_puts(out, "}\n\n");
    } else {
        strbuf_puts(out, c->request.include_usage ? "],\"usage\":null}\n\n" : "]}\n\n");
    }
}

static void
write_done_locked(completion *c)
{
    strbuf_puts(&c->out, DATA "[DONE]\n\n");
    c->ended = true;
}

static void
write_end_locked(completion *c)
{
    if (c->request.include_usage) {
        print_chunk_head(c, &c->out);
        strbuf_puts(&c->out, "],\"usage\":");
        print_usage(c, c->completion_tokens, &c->out);
        strbuf_puts(&c->out, "}\n\n");
    }
    write_done_locked(c);
}

static bool
print_new_head(completion *c)
{
    unsigned char random[ID_BYTES];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) return false;
    strbuf_init(&c->head, HEAD_BYTES_MAX);
    strbuf_puts(&c->head, DATA "{\"id\":\"cmpl-");
    for (size_t i = 0; i < sizeof random; i++)
        strbuf_printf(&c->head, "%02x", random[i]);
    strbuf_printf(&c->head, "\",\"object\":\"text_completion\",\"created\":%lld,\"model\":",
                  (long long)time(NULL));
    strbuf_json_string(&c->head, c->env->model, strlen(c->env->model));
    strbuf_puts(&c->head, ",\"choices\":[");
    return !c->head.failed;
}

/* ---- lifetime ---- */

completion *
completion_create(const completion_env *env, completion_request *request, uint64_t arrival_ns,
                  completion_host host)
{
    const uint32_t count = request->prompt_count * request->n;
    completion *c = calloc(1, sizeof *c + count * sizeof c->slots[0]);
    if (c == NULL) {
        completion_request_fini(request);
        return NULL;
    }
    c->env = env;
    if (!print_new_head(c)) {
        strbuf_fini(&c->head);
        free(c);
        completion_request_fini(request);
        return NULL;
    }
    atomic_init(&c->refs, 1);
    c->host = host;
    c->arrival_ns = arrival_ns;
    c->request = *request; /* prompts and params are borrowed by the choices from here on */
    *request = (completion_request){0};
    pthread_mutex_init(&c->lock, NULL);
    strbuf_init(&c->out, COMPLETION_ANSWER_BYTES_MAX);
    c->slot_count = c->live = count;
    for (uint32_t i = 0; i < count; i++) {
        const completion_prompt *prompt = &c->request.prompts[i / c->request.n];
        c->slots[i].owner = c;
        choice_init(&c->slots[i].choice, &c->request, prompt, env->tok, i, i % c->request.n,
                    COMPLETION_ANSWER_BYTES_MAX);
        if (i % c->request.n == 0) c->prompt_tokens += prompt->count;
    }
    return c;
}

void
completion_retain(completion *c)
{
    atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
}

void
completion_release(completion *c)
{
    /* Release, so that all uses come before the free; acquire, so that the free sees them. */
    if (atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1) return;
    const completion_host host = c->host;
    for (uint32_t i = 0; i < c->slot_count; i++)
        choice_fini(&c->slots[i].choice);
    completion_request_fini(&c->request);
    strbuf_fini(&c->head);
    strbuf_fini(&c->out);
    pthread_mutex_destroy(&c->lock);
    free(c);
    host.freed(host.user);
}

/* ---- events, on the engine's thread ---- */

static void
observe(slot *s, const gen_event *event)
{
    completion *c = s->owner;
    api_metrics *m = c->env->metrics;
    const uint64_t now = clock_now_ns();
    if (event->kind == GEN_TOKEN) {
        const double since = (double)(now - (s->last_ns ? s->last_ns : c->arrival_ns)) / NS_PER_S;
        if (s->last_ns == 0) {
            metric_observe(m->time_to_first_token, since);
        } else {
            metric_observe(m->inter_token_latency, since);
            metric_observe(m->time_per_output_token, since);
        }
        s->last_ns = now;
        metric_add(m->generation_tokens, 1);
    }
}

static void
observe_end(slot *s)
{
    completion *c = s->owner;
    const finish_reason finish = s->choice.finish;
    metric_observe(c->env->metrics->e2e_latency,
                   (double)(clock_now_ns() - c->arrival_ns) / NS_PER_S);
    metric_add(c->env->metrics->success[finish == FINISH_NONE ? FINISH_ABORT : finish], 1);
}

static void
fail_locked(completion *c, int status, const char *message)
{
    if (c->dead) return;
    c->dead = true;
    api_error_set(&c->error, status, NULL, "%s", message);
    if (!c->request.stream) return;
    strbuf_puts(&c->out, DATA);
    api_error_print(&c->error, &c->out);
    strbuf_puts(&c->out, "\n\n");
    write_done_locked(c);
}

static void
check_end_locked(completion *c, const slot *s, const gen_event *event)
{
    if (s->choice.finish == FINISH_ERROR)
        fail_locked(c, event->unserved ? 503 : 500,
                    event->error != NULL ? event->error : "the engine failed");
    else if (s->choice.finish == FINISH_ABORT)
        fail_locked(c, 503, "the server is stopping");
    else if (choice_failed(&s->choice) || c->out.failed ||
             c->ready_bytes > COMPLETION_ANSWER_BYTES_MAX)
        fail_locked(c, 500, "the answer is too long: out of memory, or beyond 64 MiB of text");
}

/* A stream's chunk, unless too much of the stream is unread already.  The largest chunk comes on
 * top of the bound: a long echo is not the client's fault. */
static void
stream_locked(completion *c, slot *s)
{
    const size_t before = c->out.len;
    if (before - c->out_read > c->env->stream_bytes_max + c->chunk_max) {
        c->dead = c->broken = c->too_slow = true;
        return;
    }
    const size_t ready = choice_ready_bytes(&s->choice);
    c->ready_bytes -= ready < c->ready_bytes ? ready : c->ready_bytes;
    write_chunk_locked(c, s);
    if (c->out.len - before > c->chunk_max) c->chunk_max = c->out.len - before;
}

static bool
on_event(void *user, const gen_event *event)
{
    slot *s = user;
    completion *c = s->owner;
    const size_t ready_before = choice_ready_bytes(&s->choice);
    const bool ended = choice_push(&s->choice, event);
    observe(s, event);

    pthread_mutex_lock(&c->lock);
    const bool was_slow = c->too_slow;
    if (event->kind == GEN_TOKEN) c->completion_tokens++;
    c->ready_bytes += choice_ready_bytes(&s->choice) - ready_before;
    check_end_locked(c, s, event);
    if (c->request.stream && !c->dead && (event->kind == GEN_TOKEN || ended)) stream_locked(c, s);
    const bool last = ended || c->dead;
    if (last) {
        s->ended = true;
        s->id = 0;
        if (--c->live == 0 && c->request.stream && !c->dead) write_end_locked(c);
    }
    const bool wake = c->request.stream || c->live == 0 || c->dead;
    const bool slow = c->too_slow && !was_slow;
    pthread_mutex_unlock(&c->lock);

    if (slow) c->host.too_slow(c->host.user);
    if (wake) c->host.wake(c->host.user);
    if (last) {
        observe_end(s);
        completion_release(c);
    }
    return last;
}

/* ---- start and abort ---- */

static bool
refuse(api_error *error, moe_err err, const errbuf *eb)
{
    if (err == MOE_EBUSY)
        return api_error_set(error, 429, NULL, "the queue is full; try again later");
    if (err == MOE_ECLOSED) return api_error_set(error, 503, NULL, "the server is stopping");
    if (err == MOE_ERANGE || err == MOE_EINVAL)
        return api_error_set(error, 400, "prompt", "prompt: %s", eb->text);
    return api_error_set(error, 500, NULL, "the request can't be queued: %s", eb->text);
}

/* Submission `from` failed: nothing from it on will run. */
static void
give_up(completion *c, uint32_t from)
{
    engine_unreserve(c->env->engine, c->slot_count - from);
    pthread_mutex_lock(&c->lock);
    c->live -= c->slot_count - from;
    pthread_mutex_unlock(&c->lock);
    completion_abort(c);
}

bool
completion_start(completion *c, api_error *error)
{
    engine *e = c->env->engine;
    errbuf eb = {""};
    moe_err err = engine_reserve(e, c->slot_count);
    if (err) return refuse(error, err, &eb);
    for (uint32_t i = 0; i < c->slot_count; i++) {
        slot *s = &c->slots[i];
        const completion_prompt *prompt = s->choice.prompt;
        seq_id id = 0;
        completion_retain(c);
        err =
            engine_submit(e, prompt->ids, prompt->count, &s->choice.params, on_event, s, &id, &eb);
        if (err) {
            give_up(c, i);
            completion_release(c);
            return refuse(error, err, &eb);
        }
        pthread_mutex_lock(&c->lock);
        if (!s->ended) s->id = id;
        const bool missed = c->dead && !s->ended;
        pthread_mutex_unlock(&c->lock);
        /* The client may have gone meanwhile: abort() has missed this one then. */
        if (missed) engine_abort(e, id);
    }
    metric_add(c->env->metrics->prompt_tokens, (double)c->prompt_tokens);
    return true;
}

void
completion_abort(completion *c)
{
    pthread_mutex_lock(&c->lock);
    c->dead = c->broken = true;
    pthread_mutex_unlock(&c->lock);
    for (uint32_t i = 0; i < c->slot_count; i++) {
        pthread_mutex_lock(&c->lock);
        const seq_id id = c->slots[i].id;
        pthread_mutex_unlock(&c->lock);
        if (id != 0) engine_abort(c->env->engine, id);
    }
    c->host.wake(c->host.user);
}

/* ---- reading ---- */

bool
completion_is_stream(const completion *c)
{
    return c->request.stream;
}

static size_t
take_locked(completion *c, char *out, size_t max)
{
    const size_t unread = c->out.len - c->out_read, n = unread < max ? unread : max;
    if (n != 0) memcpy(out, c->out.text + c->out_read, n);
    c->out_read += n;
    if (c->out_read == c->out.len) {
        strbuf_reset(&c->out);
        c->out_read = 0;
    } else if (c->out_read > c->out.len / 2) {
        memmove(c->out.text, c->out.text + c->out_read, c->out.len - c->out_read + 1);
        c->out.len -= c->out_read;
        c->out_read = 0;
    }
    return n;
}

completion_state
completion_read(completion *c, char *out, size_t max, size_t *len)
{
    pthread_mutex_lock(&c->lock);
    completion_state state = COMPLETION_WAIT;
    *len = 0;
    if (c->broken) {
        state = COMPLETION_BROKEN;
    } else if ((*len = take_locked(c, out, max)) != 0) {
        state = COMPLETION_READY;
    } else if (c->ended) {
        state = COMPLETION_END;
    }
    pthread_mutex_unlock(&c->lock);
    return state;
}

completion_state
completion_poll(completion *c)
{
    pthread_mutex_lock(&c->lock);
    const completion_state state = c->broken                 ? COMPLETION_BROKEN
                                   : c->live == 0 || c->dead ? COMPLETION_READY
                                                             : COMPLETION_WAIT;
    pthread_mutex_unlock(&c->lock);
    return state;
}

bool
completion_print(completion *c, strbuf *out, api_error *error)
{
    pthread_mutex_lock(&c->lock);
    *error = c->error;
    const uint64_t completion_tokens = c->completion_tokens;
    pthread_mutex_unlock(&c->lock);
    if (error->status != 0) return false;
    /* All choices have ended: the engine's thread is done with them. */
    print_head(c, out);
    for (uint32_t i = 0; i < c->slot_count; i++) {
        if (i != 0) strbuf_puts(out, ",");
        choice_take(&c->slots[i].choice, out);
    }
    strbuf_puts(out, "],\"usage\":");
    print_usage(c, completion_tokens, out);
    strbuf_puts(out, "}");
    if (!out->failed) return true;
    return api_error_set(error, 500, NULL, "the answer is too long: out of memory");
}
