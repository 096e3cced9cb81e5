/* What the threads that run one Program share. */
#ifndef FASTAE_TEAM_H
#define FASTAE_TEAM_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__GLIBC__) && defined(CPU_SETSIZE)
#define FASTAE_PLACES_THREADS
#endif
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

#define FASTAE_SPINS 2000  /* some 30 to 50 us */
#define FASTAE_LONG 20000  /* some 500 us */

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

/* Sleep until `word` is not `seen` any more, or for no reason; and wake all that sleep on it. Where there is no such
 * call the core is given away instead, which is enough unless others want it too. */
#if defined(__linux__)
static inline void sleep_while(const uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, 128 /* FUTEX_WAIT_PRIVATE */, seen, NULL, NULL, 0);
}

static inline void wake_all(const uint32_t *word)
{
    syscall(SYS_futex, word, 129 /* FUTEX_WAKE_PRIVATE */, INT32_MAX, NULL, NULL, 0);
}
#else
static inline void sleep_while(const uint32_t *word, uint32_t seen)
{
    (void)word, (void)seen;
    FASTAE_YIELD();
}

static inline void wake_all(const uint32_t *word) { (void)word; }
#endif

/* Where one thread tells how far it is, on cache lines of its own (which are fetched in pairs). */
typedef struct {
    uint32_t round;
    uint32_t asleep; /* how many sleep until it goes on */
    int processor;   /* one more than the number of that on which it was seen last; 0: not seen */
    double slept;    /* seconds that its thread has slept for others */
    char apart[104];
} Seat;

static inline void tell(Seat *seat, uint32_t round)
{
    __atomic_store_n(&seat->round, round, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&seat->asleep, __ATOMIC_SEQ_CST))
        wake_all(&seat->round);
}

/* Where several tell, how many have. */
static inline void tell_one_more(Seat *seat)
{
    __atomic_add_fetch(&seat->round, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&seat->asleep, __ATOMIC_SEQ_CST))
        wake_all(&seat->round);
}

/* Whether `seat` comes to the round within so many spins. */
static inline int spin_for(const Seat *seat, uint32_t round, int spins)
{
    for (; spins > 0; spins--) {
        if ((int32_t)(__atomic_load_n(&seat->round, __ATOMIC_ACQUIRE) - round) >= 0) return 1;
        FASTAE_PAUSE();
    }
    return 0;
}

static inline void sleep_for(Seat *seat, uint32_t round)
{
    __atomic_add_fetch(&seat->asleep, 1, __ATOMIC_SEQ_CST);
    for (uint32_t seen; (int32_t)((seen = __atomic_load_n(&seat->round, __ATOMIC_SEQ_CST)) - round) < 0;)
        sleep_while(&seat->round, seen);
    __atomic_sub_fetch(&seat->asleep, 1, __ATOMIC_SEQ_CST);
}

static inline void wait_for(Seat *seat, uint32_t round)
{
    if (!spin_for(seat, round, FASTAE_SPINS)) sleep_for(seat, round);
}

/* How many use something. */
static inline void enter(uint32_t *users) { __atomic_add_fetch(users, 1, __ATOMIC_SEQ_CST); }
static inline uint32_t leave(uint32_t *users) { return __atomic_sub_fetch(users, 1, __ATOMIC_SEQ_CST); }

/* How many have come until it was closed. */
#define FASTAE_CLOSED 0x80000000u
static inline int arrive(uint32_t *count) { return !(__atomic_fetch_add(count, 1, __ATOMIC_SEQ_CST) & FASTAE_CLOSED); }
static inline uint32_t arrived(const uint32_t *count) { return __atomic_load_n(count, __ATOMIC_ACQUIRE); }
static inline uint32_t close_for_others(uint32_t *count)
{
    return __atomic_fetch_or(count, FASTAE_CLOSED, __ATOMIC_SEQ_CST);
}

/* A thread of a team, and what it does. */
typedef struct {
    void (*work)(void *crew, Py_ssize_t part);
    void *crew;
    Py_ssize_t part;
#if defined(FASTAE_PLACES_THREADS)
    cpu_set_t allowed; /* where the thread may run */
#endif
} Member;

static void be_member(void *given)
{
    const Member *member = (const Member *)given;
    member->work(member->crew, member->part);
}

#if defined(FASTAE_PLACES_THREADS)
static void *be_placed_member(void *given)
{
    sched_setaffinity(0, sizeof(cpu_set_t), &((const Member *)given)->allowed);
    be_member(given);
    return NULL;
}
#endif

/* Start a thread that nobody joins; gives 0, or -1 where the system has none. It begins on another processor than this
 * one if it may: the system likes to put it here, where it would wait for the end of a time slice. */
static int start_member(Member *member)
{
#if defined(FASTAE_PLACES_THREADS)
    cpu_set_t others;
    const int here = sched_getcpu();
    if (here >= 0 && here < CPU_SETSIZE && !sched_getaffinity(0, sizeof(member->allowed), &member->allowed)) {
        others = member->allowed;
        CPU_CLR(here, &others);
        if (CPU_COUNT(&others) > 0) {
            pthread_attr_t attributes;
            pthread_t thread;
            if (pthread_attr_init(&attributes)) return -1;
            const int failed = pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) ||
                               pthread_attr_setaffinity_np(&attributes, sizeof(others), &others) ||
                               pthread_create(&thread, &attributes, be_placed_member, member);
            pthread_attr_destroy(&attributes);
            if (!failed) return 0;
        }
    }
#endif
    return PyThread_start_new_thread(be_member, member) == PYTHREAD_INVALID_THREAD_ID ? -1 : 0;
}

/* Leave a processor on which another of the team is. A thread that has just been started or woken is often put on the
 * processor of the one that did it, though others are idle, and it takes the system some 15 ms to notice: the team
 * would be slower than one thread for as long. Where the thread may run afterwards stays as it was.
 * Gives whether it still has its processor with another. */
static inline int move_apart(Seat *seats, Py_ssize_t part, Py_ssize_t parts)
{
#if defined(__linux__) && defined(CPU_SETSIZE)
    const int here = sched_getcpu();
    __atomic_store_n(&seats[part].processor, here + 1, __ATOMIC_RELAXED);
    int shared = 0;
    for (Py_ssize_t other = 0; other < parts; other++)
        shared |= other != part && __atomic_load_n(&seats[other].processor, __ATOMIC_RELAXED) == here + 1;
    cpu_set_t allowed, others;
    if (!shared || sched_getaffinity(0, sizeof(allowed), &allowed)) return shared;
    others = allowed;
    for (Py_ssize_t other = 0; other < parts; other++) {
        const int taken = __atomic_load_n(&seats[other].processor, __ATOMIC_RELAXED) - 1;
        if (taken >= 0 && taken < CPU_SETSIZE) CPU_CLR(taken, &others);
    }
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof(others), &others)) return shared;
    __atomic_store_n(&seats[part].processor, sched_getcpu() + 1, __ATOMIC_RELAXED);
    sched_setaffinity(0, sizeof(allowed), &allowed);
#else
    (void)seats, (void)part, (void)parts;
#endif
    return 0;
}

static inline double seconds(void)
{
#if defined(_WIN32)
    LARGE_INTEGER count, rate;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&rate);
    return (double)count.QuadPart / (double)rate.QuadPart;
#else
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
#endif
}

/* Seconds of a processor that this thread has had; where that is not known it has had one all the time. */
static inline double seconds_worked(void)
{
#if defined(CLOCK_THREAD_CPUTIME_ID)
    struct timespec time;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0) return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
#endif
    return seconds();
}

/* A barrier: everyone tells, and looks at all others, so that it costs one way between two cores.
 *
 * Who has to wait spins, for to be woken takes a hundred times as long as to go on and may lead to the processor of the
 * one that wakes. But not for long: where there are more threads than processors the one that is waited for may need
 * this one. To spin on, or to yield, would take it away for the whole of a time slice, at every barrier. */
static inline void meet(Seat *seats, uint32_t *round, Py_ssize_t part, Py_ssize_t parts)
{
    if (parts == 1) return;
    tell(seats + part, ++*round);
    for (Py_ssize_t other = 0; other < parts; other++) {
        if (other == part || spin_for(seats + other, *round, FASTAE_SPINS)) continue;
        if (!move_apart(seats, part, parts) && spin_for(seats + other, *round, FASTAE_LONG)) continue;
        const double from = seconds();
        sleep_for(seats + other, *round);
        seats[part].slept += seconds() - from;
        move_apart(seats, part, parts);
    }
}

#define FASTAE_CALM 16   /* stretches in which nobody takes its processor, before a team is tried again */
#define FASTAE_CROWDED 4 /* of them that one counts in which somebody does */

/* Whether a batch is done faster by the team or by one thread alone is measured while they run, again and again, for
 * it changes with what else the machine has to do. The results have the same bits either way. */
typedef struct {
    int team;        /* who runs the batches now: 1 the team, 0 one thread */
    int trying;      /* whether that is only to see how long it takes */
    int64_t batches; /* of this stretch; the first one after a change does not count */
    int64_t left;    /* stretches until the other is tried */
    int64_t patience;
    int crowd;       /* calm stretches that are wanted */
    double last;     /* when the last batch ended, or the run began */
    double since;    /* when the stretch began, or the run */
    double worked;   /* seconds this thread had had of a processor then, or slept for its team */
    double spent;    /* seconds of this stretch, which may go over several runs */
    double cost[2];  /* seconds of a batch, as last measured */
} Tuner;

static inline Tuner new_tuner(void)
{
    const Tuner tuner = {.team = 1, .batches = -1, .left = 1, .patience = 1};
    return tuner;
}

/* A run begins, or its team is there; `slept` as of this thread's seat. */
static inline void time_from_now(Tuner *t, double slept)
{
    t->last = t->since = seconds();
    t->worked = seconds_worked() + slept;
}

/* Called after each batch that who should run it has run; gives who should run the next one. In a run without a team the
 * next run has to bring one. */
static inline int tune(Tuner *t, double slept, Py_ssize_t parts)
{
    const double now = seconds();
    t->spent += now - t->last;
    t->last = now;
    if (++t->batches == 0) {
        t->spent = 0;
        return t->team;
    }
    if (t->spent < 2e-3 || (t->batches < 4 && t->spent < 4e-3)) return t->team;
    const double before = t->cost[t->team], cost = t->spent / (double)t->batches, worked = seconds_worked() + slept;
    const int crowded = worked - t->worked < 0.9 * (now - t->since);
    t->since = now;
    t->worked = worked;
    t->cost[t->team] = cost;
    t->batches = 0;
    t->spent = 0;
    /* Who has its processor taken away by others would wait for two of them in a team, and what a stretch takes says
     * little there. A team does not go for a single such stretch, for a machine without other work has one now and then. */
    if (crowded) t->crowd = t->crowd < FASTAE_CALM - FASTAE_CROWDED ? t->crowd + FASTAE_CROWDED : FASTAE_CALM;
    else if (t->crowd > 0) t->crowd--;
    if (t->crowd > (t->team ? FASTAE_CROWDED : 0)) {
        if (t->team) t->batches = -1;
        t->team = t->trying = 0;
        t->left = 1;
        return t->team;
    }
    if (!t->trying) {
        /* A team whose batches are long is hardly slower than one thread unless it has to wait for processors. */
        if (t->team && cost > 500e-6 && !crowded && t->patience < 64) t->left = t->patience = 64;
        t->left = cost > 1.5 * before ? 0 : t->left - 1;
        if (t->left > 0 || parts == 1) return t->team;
        t->trying = 1;
    } else {
        t->trying = 0;
        if (cost < t->cost[!t->team]) { /* it stays, and is soon put in question: the first to be measured are cold */
            t->left = t->patience = 2;
            return t->team;
        }
        t->patience = t->patience < 32 ? 2 * t->patience : 64;
        t->left = t->patience;
    }
    t->team = !t->team;
    t->batches = -1;
    return t->team;
}

/* Whether a run of so many batches is done by one thread and needs no team: it does not come to be tried in it. */
static inline int alone(const Tuner *t, Py_ssize_t batches)
{
    return !t->team && !t->trying && t->left > 0 && batches < 256;
}

#endif
