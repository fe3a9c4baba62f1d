/* tsan_nng: what ThreadSanitizer must know about nng.  Included by one source of a program.
 *
 * nng counts the references to what it connects with by atomics that ThreadSanitizer can't see (the
 * library is not instrumented), so it takes the last owner's pthread_mutex_destroy() for a race.
 * Nothing else of nng's is left out: races on our own memory are still found.
 */
#ifndef MOE_TESTS_SUPPORT_TSAN_NNG_H
#define MOE_TESTS_SUPPORT_TSAN_NNG_H

#if defined(__SANITIZE_THREAD__)
const char *__tsan_default_suppressions(void);

const char *
__tsan_default_suppressions(void)
{
    return "race:pthread_mutex_destroy\n";
}
#endif

#endif
