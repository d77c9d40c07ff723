/* _team.h - threads that meet again and again inside one parallel region.
 *
 * Opening a region costs microseconds, and tens of them where threads sleep; a loop that needs
 * everybody's last step before the next one meets here instead. Each member counts the meetings it
 * has come to in a cache line of its own.
 *
 * Cores are not always there: other programs want them, or a host takes them from a virtual
 * machine. Then every meeting waits until the last member has a core again, and a call that meets
 * hundreds of times would take as many slices of the scheduler's. So who comes too late leaves the
 * team, and the others go on without it.
 *
 * And cores are not equally fast: members take blocks (rk_range) and rows (rk_handover) of one
 * another. Regions are opened elsewhere, and what a block or a row is, is not known here. */
#ifndef RNNKERNEL_TEAM_H
#define RNNKERNEL_TEAM_H

#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#define rk_members omp_get_num_threads
#define rk_member omp_get_thread_num
#define rk_cores omp_get_num_procs
#else
static inline int rk_members(void) { return 1; }
static inline int rk_member(void) { return 0; }
static inline int rk_cores(void) { return 1; }
#endif
#if defined(__x86_64__) || defined(__i386__)
#define rk_pause __builtin_ia32_pause
#elif defined(__aarch64__)
static inline void rk_pause(void) { __asm__ volatile("yield"); }
#else
static inline void rk_pause(void) {}
#endif

enum { RK_SPINS = 500, RK_SOON = 200000, RK_PATIENCE = 1000000 /* ns */ };

typedef struct {
    _Alignas(64) atomic_llong met;
    atomic_llong late;     /* the meeting from which others do without this member */
    long long since, lost; /* ns: when it began, and for how long it has waited since */
} rk_flag;

static const long long RK_LEFT = 1LL << 62; /* added to `met` of who is gone */

static inline int rk_has_met(rk_flag *flag, long long count)
{
    return atomic_load_explicit(&flag->met, memory_order_acquire) >= count;
}

static inline int rk_spin(rk_flag *flag, long long count)
{
    for (int spins = 0; spins < RK_SPINS; spins++) {
        if (rk_has_met(flag, count)) return 1;
        rk_pause();
    }
    return 0;
}

static inline long long rk_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Whoever is waited for has a core, or had one until another program took it for a slice of the
 * scheduler's. Who yields at once gives that program a second core, and at every meeting one of the
 * members is away. So members keep their cores for about a slice, and not for exactly one, since
 * cores often change hands together. Only where there are fewer cores than members the one that is
 * waited for may need this very core.
 *
 * Returns how long it took. After `most` the other one is told that it is late, but not where
 * there are fewer cores than members: some are always late there. */
static long long rk_wait_long(rk_flag *flag, long long count, long long most)
{
    const int keeps = rk_members() <= rk_cores();
    const long long begin = rk_now();
    long long now = begin;
    while (!rk_has_met(flag, count)) {
        const long long patience = now + (keeps ? RK_PATIENCE << (now >> 6 & 3) : 0);
        while (now < patience && !rk_spin(flag, count)) {
            now = rk_now();
            if (now - begin > most) atomic_store_explicit(&flag->late, count, memory_order_relaxed);
        }
        if (now >= patience) sched_yield();
        now = rk_now();
    }
    return now - begin;
}

static inline void rk_await(rk_flag *flag, long long count)
{
    if (!rk_spin(flag, count)) rk_wait_long(flag, count, LLONG_MAX);
}

static inline void rk_raise(rk_flag *flag, long long count)
{
    atomic_store_explicit(&flag->met, count, memory_order_release);
}

static inline void rk_meet(rk_flag *flags, int members, int member)
{
    rk_flag *const own = &flags[member];
    const long long mine = atomic_load_explicit(&own->met, memory_order_relaxed) + 1;
    rk_raise(own, mine);
    for (int other = 0; other < members; other++)
        if (!rk_spin(&flags[other], mine))
            own->lost += rk_wait_long(&flags[other], mine, LLONG_MAX);
}

/* All members of a region, which may be new threads, have begun. */
static inline void rk_gather(rk_flag *flags, int members, int member)
{
    rk_raise(&flags[member], 1);
    for (int other = 0; other < members; other++)
        while (!rk_spin(&flags[other], 1))
            sched_yield(); /* it may need this core for that */
}

/* How long a meeting takes, in ns, as member 0 finds: the shortest mean of some batches, since
 * other programs only make it longer. `past`, another zeroed flag, tells the others when it has
 * enough. Nobody yields: other libraries' threads spin and do, and would have the core for a slice.
 */
static inline void rk_time_meetings(rk_flag *flags, rk_flag *past, int members, int member,
                                    double *shortest)
{
    enum { BATCH = 8, BATCHES = 40, LONGEST = 2000000 /* ns */ };
    rk_gather(flags, members, member);
    const long long begin = rk_now();
    long long since = begin, best = LLONG_MAX;
    for (long long meeting = 2;; meeting++) {
        rk_raise(&flags[member], meeting);
        for (int other = 0; other < members; other++)
            while (!rk_spin(&flags[other], meeting))
                if (rk_now() - begin > LONGEST) sched_yield();
        const long long last = atomic_load_explicit(&past->met, memory_order_acquire);
        if (last != 0 && last <= meeting) break;
        if (member != 0) continue;
        const long long now = rk_now();
        if (meeting == BATCH * BATCHES || (now - begin > LONGEST && best < LLONG_MAX))
            rk_raise(past, meeting + 1);
        if (meeting % BATCH != 0) continue;
        if (meeting > BATCH && now - since < best) best = now - since; /* the first has fewer */
        since = rk_now();
    }
    if (member == 0) *shortest = (double)best / BATCH;
}

typedef struct {
    rk_flag *flags;
    int size, mate;      /* of those that began */
    int members, member; /* of those that are there */
} rk_team;

static inline rk_team rk_join(rk_flag *flags, int size, int mate)
{
    const rk_team team = {flags, size, mate, size, mate};
    if (size > 1) flags[mate].since = rk_now() - flags[mate].lost;
    return team;
}

/* How long to wait for a member that may be late: until all waiting has cost twice as much as this
 * member's own share of all steps takes. A share is at most twice another, so nobody waits so long
 * for one that has its core; and what is lost is bounded, whether it comes or not. */
static long long rk_worth(const rk_flag *own, ptrdiff_t done, ptrdiff_t left)
{
    const double busy = (double)(rk_now() - own->since - own->lost);
    const double most = 2 * busy / (done < 1 ? 1 : done) * (done + left) - own->lost;
    return most > RK_SOON ? (long long)most : RK_SOON;
}

static inline int rk_meet_or_leave(rk_team *team, ptrdiff_t done, ptrdiff_t left)
{
    rk_flag *const own = &team->flags[team->mate];
    const long long mine = atomic_load_explicit(&own->met, memory_order_relaxed) + 1;
    int members = 1, member = 0;
    if (atomic_load_explicit(&own->late, memory_order_relaxed) == mine) {
        rk_raise(own, mine | RK_LEFT);
        return 0;
    }
    rk_raise(own, mine);
    for (int other = 0; other < team->size; other++) {
        rk_flag *const flag = &team->flags[other];
        if (other == team->mate) continue;
        if (!rk_spin(flag, mine)) {
            if (left < 0)
                rk_wait_long(flag, mine, LLONG_MAX);
            else
                own->lost += rk_wait_long(flag, mine, rk_worth(own, done, left));
        }
        const long long met = atomic_load_explicit(&flag->met, memory_order_relaxed);
        if (met & RK_LEFT && (met & ~RK_LEFT) <= mine) continue;
        members++;
        member += other < team->mate;
    }
    team->members = members;
    team->member = member;
    return 1;
}

static inline void rk_expel(rk_flag *flag, long long meeting)
{
    atomic_store_explicit(&flag->late, meeting, memory_order_relaxed);
}

static inline long long rk_lost(const rk_flag *flags, int size)
{
    long long lost = 0;
    for (int mate = 0; mate < size; mate++)
        if (flags[mate].lost > lost) lost = flags[mate].lost;
    return lost;
}

static inline int rk_has_left(rk_flag *flag) { return rk_has_met(flag, RK_LEFT); }

static inline int rk_gone(rk_flag *flags, int size)
{
    int gone = 0;
    for (int mate = 0; mate < size; mate++)
        gone += rk_has_left(&flags[mate]);
    return gone;
}

/* the first in the low half, the end in the high one */
typedef struct {
    _Alignas(64) atomic_ullong ends;
} rk_range;

static inline unsigned long long rk_ends(ptrdiff_t first, ptrdiff_t past)
{
    return (unsigned long long)first | (unsigned long long)past << 32;
}

static inline void rk_offer(rk_range *range, ptrdiff_t first, ptrdiff_t past)
{
    atomic_store_explicit(&range->ends, rk_ends(first, past), memory_order_relaxed);
}

static inline int rk_take(rk_range *range, int back, ptrdiff_t most, ptrdiff_t *first,
                          ptrdiff_t *past)
{
    unsigned long long seen = atomic_load_explicit(&range->ends, memory_order_relaxed), left;
    do {
        const ptrdiff_t begin = (ptrdiff_t)(seen & 0xffffffff), end = (ptrdiff_t)(seen >> 32);
        const ptrdiff_t half = (end - begin + 1) / 2;
        const ptrdiff_t count = most > 0 && most < half ? most : half;
        if (begin >= end) return 0;
        *first = back ? end - count : begin;
        *past = *first + count;
        left = back ? rk_ends(begin, *first) : rk_ends(*past, end);
    } while (!atomic_compare_exchange_weak_explicit(&range->ends, &seen, left, memory_order_relaxed,
                                                    memory_order_relaxed));
    return (left & 0xffffffff) < left >> 32 ? 2 : 1;
}

/* Of a member that looks for work in a loop. */
typedef struct {
    long long spins, since; /* since when, where it has spun */
} rk_idle;

static inline void rk_wait(rk_idle *idle)
{
    rk_pause();
    if (idle->spins++ == 0) idle->since = rk_now();
    if (idle->spins % RK_SPINS != 0) return;
    if (rk_members() > rk_cores() || rk_now() - idle->since >= RK_PATIENCE) sched_yield();
}

static inline void rk_work(rk_idle *idle, rk_flag *own)
{
    if (idle->spins > 0) own->lost += rk_now() - idle->since;
    idle->spins = 0;
}

/* Where a member that has much left leaves a part of it for one that has nothing. */
typedef struct {
    _Alignas(64) atomic_int idle; /* members that wait for a part */
    atomic_int left;              /* parts that are not done */
    atomic_int state;
    ptrdiff_t first, past, step;
} rk_handover;

enum { RK_FREE, RK_TAKEN, RK_OFFERED }; /* state */

static inline void rk_begin_parts(rk_handover *h, int parts)
{
    atomic_store_explicit(&h->left, parts, memory_order_relaxed);
}

static inline int rk_wanted(rk_handover *h)
{
    return atomic_load_explicit(&h->idle, memory_order_relaxed) > 0 &&
           atomic_load_explicit(&h->state, memory_order_relaxed) == RK_FREE;
}

static inline int rk_hand_over(rk_handover *h, ptrdiff_t first, ptrdiff_t past, ptrdiff_t step)
{
    int expected = RK_FREE;
    if (!atomic_compare_exchange_strong_explicit(&h->state, &expected, RK_TAKEN,
                                                 memory_order_acquire, memory_order_relaxed))
        return 0;
    h->first = first;
    h->past = past;
    h->step = step;
    atomic_fetch_add_explicit(&h->left, 1, memory_order_relaxed); /* the giver's is one of them */
    atomic_store_explicit(&h->state, RK_OFFERED, memory_order_release);
    return 1;
}

static inline void rk_end_part(rk_handover *h)
{
    atomic_fetch_sub_explicit(&h->left, 1, memory_order_release);
}

static inline int rk_take_over(rk_handover *h, rk_flag *own, ptrdiff_t *first, ptrdiff_t *past,
                               ptrdiff_t *step)
{
    rk_idle idle = {0, 0};
    int found = 0;
    atomic_fetch_add_explicit(&h->idle, 1, memory_order_relaxed);
    while (atomic_load_explicit(&h->left, memory_order_acquire) > 0) {
        int expected = RK_OFFERED;
        if (atomic_load_explicit(&h->state, memory_order_relaxed) == RK_OFFERED &&
            atomic_compare_exchange_weak_explicit(&h->state, &expected, RK_TAKEN,
                                                  memory_order_acquire, memory_order_relaxed)) {
            *first = h->first;
            *past = h->past;
            *step = h->step;
            atomic_store_explicit(&h->state, RK_FREE, memory_order_release);
            found = 1;
            break;
        }
        rk_wait(&idle);
    }
    atomic_fetch_sub_explicit(&h->idle, 1, memory_order_relaxed);
    rk_work(&idle, own);
    return found;
}

static inline ptrdiff_t rk_next_before(rk_flag *counter, ptrdiff_t past)
{
    long long seen = atomic_load_explicit(&counter->met, memory_order_relaxed);
    do {
        if (seen >= past) return -1;
    } while (!atomic_compare_exchange_weak_explicit(&counter->met, &seen, seen + 1,
                                                    memory_order_relaxed, memory_order_relaxed));
    return (ptrdiff_t)seen;
}

static inline void rk_count(rk_flag *counter)
{
    atomic_fetch_add_explicit(&counter->met, 1, memory_order_release);
}

/* `met` is twice the stages that are done, and one more while somebody is at the next. */
static inline ptrdiff_t rk_claim(rk_flag *part, ptrdiff_t past)
{
    long long seen = atomic_load_explicit(&part->met, memory_order_relaxed);
    if (seen & 1 || seen >= 2 * past ||
        !atomic_compare_exchange_strong_explicit(&part->met, &seen, seen + 1, memory_order_acquire,
                                                 memory_order_relaxed))
        return -1;
    return (ptrdiff_t)(seen / 2);
}

static inline ptrdiff_t rk_passed(rk_flag *part)
{
    return (ptrdiff_t)(atomic_load_explicit(&part->met, memory_order_acquire) / 2);
}

#endif
