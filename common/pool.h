/* pool: a fixed set of threads that run one loop at a time.
 *
 * pool_run() hands out items 0 .. item_count-1 by an atomic counter, so that items of unequal cost
 * balance themselves; the calling thread takes part.  Idle threads spin briefly, then sleep on a
 * futex, because several processes may share the cores.
 *
 * Threads: pool_run() may be called by one thread at a time.  It allocates nothing.
 */
#ifndef MOE_COMMON_POOL_H
#define MOE_COMMON_POOL_H

#include <stdint.h>

#include "common/err.h"

#define POOL_THREAD_MAX 256
#define POOL_ITEM_MAX (UINT32_MAX - POOL_THREAD_MAX)

typedef struct pool pool;

/* One item of work.  thread is 0 .. pool_size()-1 and names the caller's scratch space. */
typedef void pool_fn(void *arg, uint32_t item, uint32_t thread);

/* thread_count includes the caller of pool_run(); 0 = as many as CPUs this process may use.
 *   MOE_ERANGE  thread_count > POOL_THREAD_MAX
 *   MOE_ENOMEM, MOE_EIO  the threads could not be started  */
moe_err pool_create(pool **out, uint32_t thread_count);

/* Stops and joins the threads.  Accepts NULL. */
void pool_free(pool *p);

uint32_t pool_size(const pool *p);

/* Bind thread i to the (first + i)-th CPU that this process may use, counted in a circle, so that
 * the kernel never puts two threads of a loop on one CPU.  Which of them calls pool_run() binds
 * itself, by pool_bind_caller() on its own thread.  Best effort: what the kernel refuses stays as
 * it is. */
void pool_bind(pool *p, uint32_t first);
void pool_bind_caller(const pool *p);

/* Call fn(arg, i, thread) once for every i, and return when all calls have returned; what they
 * wrote can then be read.  item_count <= POOL_ITEM_MAX. */
void pool_run(pool *p, pool_fn *fn, void *arg, uint32_t item_count);

#endif
