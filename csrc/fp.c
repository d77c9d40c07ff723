/* fp.c - denormals flushed to zero for the duration of a call, in the calling thread only. */
#include "rnnkernel.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
enum { FTZ_DAZ = 0x8040 };
unsigned long long rk_fp_enter(void)
{
    const unsigned saved = _mm_getcsr();
    /* all exceptions masked: a trap in the middle of a kernel would be a crash */
    _mm_setcsr(saved | FTZ_DAZ | 0x1f80);
    return saved;
}
void rk_fp_leave(unsigned long long saved) { _mm_setcsr((unsigned)saved); }

#elif defined(__aarch64__)
/* traps of the five exceptions and of denormals; another format than binary16 */
enum { FZ = 1 << 24, AHP = 1 << 26, TRAPS = 0x9f00 };
unsigned long long rk_fp_enter(void)
{
    unsigned long long saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    __asm__ volatile("msr fpcr, %0" : : "r"((saved & ~(TRAPS | AHP)) | FZ));
    return saved;
}
void rk_fp_leave(unsigned long long saved) { __asm__ volatile("msr fpcr, %0" : : "r"(saved)); }

#else
unsigned long long rk_fp_enter(void) { return 0; }
void rk_fp_leave(unsigned long long saved) { (void)saved; }
#endif
