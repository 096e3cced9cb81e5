/* What the threads that run one Program share. */
#ifndef FASTAE_TEAM_H
#define FASTAE_TEAM_H

#include <stdint.h>
#if defined(_WIN32)
#include <windows.h>
#define FASTAE_YIELD() SwitchToThread()
#else
#include <sched.h>
#define FASTAE_YIELD() sched_yield()
#endif
#if defined(__x86_64__)
#define FASTAE_PAUSE() __builtin_ia32_pause()
#else
#define FASTAE_PAUSE() ((void)0)
#endif

#define FASTAE_SPINS 2000

/* Numbers below the smallest normal one are taken as 0 while a Program runs: moments of parameters that no longer
 * learn decay into them, and arithmetic on them is a hundred times slower. Returns what to restore. */
static inline uint64_t flush_denormals(void)
{
#if defined(__x86_64__)
    const unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040u); /* FTZ and DAZ */
    return before;
#elif defined(__aarch64__)
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | (1u << 24))); /* FZ */
    return before;
#else
    return 0;
#endif
}

static inline void restore_denormals(uint64_t before)
{
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
#else
    (void)before;
#endif
}

typedef struct {
    int64_t arrived;
    char apart[56]; /* the two on cache lines of their own */
    int64_t round;
} Barrier;

/* What the first thread has decided: 1 all are there, go; -1 not all could be started, go home; 0 wait. */
static inline int wait_for_start(const int64_t *start)
{
    int64_t decided;
    for (int spins = 0; (decided = __atomic_load_n(start, __ATOMIC_ACQUIRE)) == 0;) {
        if (++spins < FASTAE_SPINS)
            FASTAE_PAUSE();
        else
            FASTAE_YIELD();
    }
    return decided > 0;
}

static inline void decide_start(int64_t *start, int64_t decided)
{
    __atomic_store_n(start, decided, __ATOMIC_RELEASE);
}

/* Spin for a moment, then give the processor away: more threads than processors slow down and do not stop. */
static inline void barrier_wait(Barrier *barrier, Py_ssize_t parts)
{
    if (parts == 1) return;
    const int64_t round = __atomic_load_n(&barrier->round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_ACQ_REL) == parts) {
        __atomic_store_n(&barrier->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&barrier->round, round + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int spins = 0; __atomic_load_n(&barrier->round, __ATOMIC_ACQUIRE) == round;) {
        if (++spins < FASTAE_SPINS)
            FASTAE_PAUSE();
        else
            FASTAE_YIELD();
    }
}

#endif
