/* peak.c - what the machine can do: fused multiply-adds per second, and reading memory.
 *
 * Compiled and called by roofline.py. On x86 the loops are assembly, because a compiler may spill
 * the accumulators, fold the arithmetic or drop loads whose values nobody uses.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BASELINE, AVX2, AVX512 }; /* as in roofline.py */
enum { F32, F64 };
enum { MAX_THREADS = 256 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Each returns the floating-point operations that it did in n rounds. */

#if defined(__x86_64__)
#define TARGET(isa) __attribute__((noinline, target(isa)))
#define STR_(x) #x
#define STR(x) STR_(x)
#define SIX(op, a, b, c, d, e, f) op(a) op(b) op(c) op(d) op(e) op(f)
#define XMM_16 \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

/* acc = acc * a + b with a < 1: values stay near 1, neither denormal nor infinite. */
#define FMA_Y(k, s) "vfmadd213" s " %%ymm15, %%ymm14, %%ymm" #k "\n\t"
#define FMA_Z(k, s) "vfmadd213" s " %%zmm31, %%zmm30, %%zmm" #k "\n\t"
#define ZERO_Y(k) "vxorps %%ymm" #k ", %%ymm" #k ", %%ymm" #k "\n\t"
#define ZERO_Z(k) "vpxord %%zmm" #k ", %%zmm" #k ", %%zmm" #k "\n\t"

#define TWELVE_Y(s) \
    FMA_Y(0, s) FMA_Y(1, s) FMA_Y(2, s) FMA_Y(3, s) FMA_Y(4, s) FMA_Y(5, s) \
    FMA_Y(6, s) FMA_Y(7, s) FMA_Y(8, s) FMA_Y(9, s) FMA_Y(10, s) FMA_Y(11, s)
#define TWENTY_FOUR_Z(s) \
    FMA_Z(0, s) FMA_Z(1, s) FMA_Z(2, s) FMA_Z(3, s) FMA_Z(4, s) FMA_Z(5, s) \
    FMA_Z(6, s) FMA_Z(7, s) FMA_Z(8, s) FMA_Z(9, s) FMA_Z(10, s) FMA_Z(11, s) \
    FMA_Z(12, s) FMA_Z(13, s) FMA_Z(14, s) FMA_Z(15, s) FMA_Z(16, s) FMA_Z(17, s) \
    FMA_Z(18, s) FMA_Z(19, s) FMA_Z(20, s) FMA_Z(21, s) FMA_Z(22, s) FMA_Z(23, s)
#define ZERO_12_Y \
    SIX(ZERO_Y, 0, 1, 2, 3, 4, 5) SIX(ZERO_Y, 6, 7, 8, 9, 10, 11)
#define ZERO_24_Z \
    SIX(ZERO_Z, 0, 1, 2, 3, 4, 5) SIX(ZERO_Z, 6, 7, 8, 9, 10, 11) \
    SIX(ZERO_Z, 12, 13, 14, 15, 16, 17) SIX(ZERO_Z, 18, 19, 20, 21, 22, 23)

#define DEFINE_AVX2(name, type, s, sc) \
    TARGET("avx2,fma") static double name(long n) \
    { \
        type a = (type)0.9, b = (type)0.1; \
        double work = 2.0 * 12 * (32 / sizeof(type)) * 4 * (double)n; \
        __asm__ volatile(ZERO_12_Y \
                         "vbroadcasts" sc " %1, %%ymm14\n\t" \
                         "vbroadcasts" sc " %2, %%ymm15\n\t" \
                         ".p2align 5\n\t" \
                         "1:\n\t" TWELVE_Y(s) TWELVE_Y(s) TWELVE_Y(s) TWELVE_Y(s) \
                         "dec %0\n\t" \
                         "jnz 1b\n\t" \
                         "vzeroupper" \
                         : "+r"(n) \
                         : "m"(a), "m"(b) \
                         : "cc", XMM_16); \
        return work; \
    }
#define DEFINE_AVX512(name, type, s, sc) \
    TARGET("avx512f") static double name(long n) \
    { \
        type a = (type)0.9, b = (type)0.1; \
        double work = 2.0 * 24 * (64 / sizeof(type)) * 2 * (double)n; \
        __asm__ volatile(ZERO_24_Z \
                         "vbroadcasts" sc " %1, %%zmm30\n\t" \
                         "vbroadcasts" sc " %2, %%zmm31\n\t" \
                         ".p2align 5\n\t" \
                         "1:\n\t" TWENTY_FOUR_Z(s) TWENTY_FOUR_Z(s) \
                         "dec %0\n\t" \
                         "jnz 1b\n\t" \
                         "vzeroupper" \
                         : "+r"(n) \
                         : "m"(a), "m"(b) \
                         : "cc", XMM_16, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", \
                           "xmm22", "xmm23", "xmm30", "xmm31"); \
        return work; \
    }

DEFINE_AVX2(fma_avx2_f32, float, "ps", "s")
DEFINE_AVX2(fma_avx2_f64, double, "pd", "d")
DEFINE_AVX512(fma_avx512_f32, float, "ps", "s")
DEFINE_AVX512(fma_avx512_f64, double, "pd", "d")

/* SSE2 has no fused multiply-add: a product and a sum, which is also what kernels there can do. */
#define MUL_ADD(k, t, s) \
    "movaps %%xmm14, %%xmm" #t "\n\tmul" s " %%xmm" #k ", %%xmm" #t "\n\tadd" s " %%xmm" #t \
    ", %%xmm" #k "\n\t"
#define SIX_MUL_ADD(s) \
    MUL_ADD(0, 8, s) MUL_ADD(1, 9, s) MUL_ADD(2, 10, s) MUL_ADD(3, 11, s) MUL_ADD(4, 12, s) \
    MUL_ADD(5, 13, s) MUL_ADD(6, 15, s) MUL_ADD(7, 8, s)
#define DEFINE_SSE(name, type, s) \
    static double name(long n) \
    { \
        type factor[16 / sizeof(type)], start[16 / sizeof(type)]; \
        double work = 2.0 * 8 * (16 / sizeof(type)) * 4 * (double)n; \
        for (size_t i = 0; i < 16 / sizeof(type); i++) { \
            factor[i] = (type)1e-9; /* acc *= 1 + 1e-9: stays near 1 for a burst */ \
            start[i] = 1; \
        } \
        __asm__ volatile("movups %1, %%xmm14\n\t" \
                         "movups %2, %%xmm0\n\t" \
                         "movaps %%xmm0, %%xmm1\n\tmovaps %%xmm0, %%xmm2\n\t" \
                         "movaps %%xmm0, %%xmm3\n\tmovaps %%xmm0, %%xmm4\n\t" \
                         "movaps %%xmm0, %%xmm5\n\tmovaps %%xmm0, %%xmm6\n\t" \
                         "movaps %%xmm0, %%xmm7\n\t" \
                         ".p2align 5\n\t" \
                         "1:\n\t" SIX_MUL_ADD(s) SIX_MUL_ADD(s) SIX_MUL_ADD(s) SIX_MUL_ADD(s) \
                         "dec %0\n\t" \
                         "jnz 1b" \
                         : "+r"(n) \
                         : "m"(factor), "m"(start) \
                         : "cc", XMM_16); \
        return work; \
    }
DEFINE_SSE(fma_baseline_f32, float, "ps")
DEFINE_SSE(fma_baseline_f64, double, "pd")

/* Loads alone; bytes is a multiple of 1024. */
#define LOAD_X(o, k) "movaps " #o "(%0), %%xmm" #k "\n\t"
#define LOAD_Y(o, k) "vmovaps " #o "(%0), %%ymm" #k "\n\t"
#define LOAD_Z(o, k) "vmovaps " #o "(%0), %%zmm" #k "\n\t"
#define DEFINE_READ(name, attribute, loads, bytes_per_round, end) \
    attribute static void name(const char *from, size_t bytes) \
    { \
        const char *stop = from + bytes; \
        __asm__ volatile(".p2align 5\n\t" \
                         "1:\n\t" loads "add $" STR(bytes_per_round) ", %0\n\t" \
                         "cmp %1, %0\n\t" \
                         "jb 1b\n\t" end \
                         : "+r"(from) \
                         : "r"(stop) \
                         : "cc", "memory", XMM_16); \
    }
DEFINE_READ(read_baseline, __attribute__((noinline)),
            LOAD_X(0, 0) LOAD_X(16, 1) LOAD_X(32, 2) LOAD_X(48, 3) LOAD_X(64, 4) LOAD_X(80, 5)
            LOAD_X(96, 6) LOAD_X(112, 7) LOAD_X(128, 8) LOAD_X(144, 9) LOAD_X(160, 10)
            LOAD_X(176, 11) LOAD_X(192, 12) LOAD_X(208, 13) LOAD_X(224, 14) LOAD_X(240, 15),
            256, "")
DEFINE_READ(read_avx2, TARGET("avx2"),
            LOAD_Y(0, 0) LOAD_Y(32, 1) LOAD_Y(64, 2) LOAD_Y(96, 3) LOAD_Y(128, 4) LOAD_Y(160, 5)
            LOAD_Y(192, 6) LOAD_Y(224, 7) LOAD_Y(256, 8) LOAD_Y(288, 9) LOAD_Y(320, 10)
            LOAD_Y(352, 11) LOAD_Y(384, 12) LOAD_Y(416, 13) LOAD_Y(448, 14) LOAD_Y(480, 15),
            512, "vzeroupper")
DEFINE_READ(read_avx512, TARGET("avx512f"),
            LOAD_Z(0, 0) LOAD_Z(64, 1) LOAD_Z(128, 2) LOAD_Z(192, 3) LOAD_Z(256, 4) LOAD_Z(320, 5)
            LOAD_Z(384, 6) LOAD_Z(448, 7) LOAD_Z(512, 8) LOAD_Z(576, 9) LOAD_Z(640, 10)
            LOAD_Z(704, 11) LOAD_Z(768, 12) LOAD_Z(832, 13) LOAD_Z(896, 14) LOAD_Z(960, 15),
            1024, "vzeroupper")

int peak_has(int isa)
{
    if (isa == AVX512) return __builtin_cpu_supports("avx512f") != 0;
    if (isa == AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return 1;
}

typedef double (*fma_loop)(long);
typedef void (*read_loop)(const char *, size_t);
static const fma_loop fma_loops[3][2] = {
    {fma_baseline_f32, fma_baseline_f64},
    {fma_avx2_f32, fma_avx2_f64},
    {fma_avx512_f32, fma_avx512_f64},
};
static const read_loop read_loops[3] = {read_baseline, read_avx2, read_avx512};

#else /* any other machine: vectors of 16 bytes; NEON fuses acc * a + b with -ffp-contract=fast */

typedef float f32_vector __attribute__((vector_size(16), may_alias));
typedef double f64_vector __attribute__((vector_size(16), may_alias));

#define DEFINE_GENERIC(name, vector, type) \
    static double name(long n) \
    { \
        enum { ACC = 24 }; \
        vector acc[ACC], a = (vector){0} + (type)0.9, b = (vector){0} + (type)0.1; \
        for (int k = 0; k < ACC; k++) acc[k] = (vector){0}; \
        for (long r = 0; r < n; r++) { \
            _Pragma("GCC unroll 24") for (int k = 0; k < ACC; k++) acc[k] = acc[k] * a + b; \
        } \
        volatile vector sink = acc[0]; \
        for (int k = 1; k < ACC; k++) sink += acc[k]; \
        return 2.0 * ACC * (16 / sizeof(type)) * (double)n; \
    }
DEFINE_GENERIC(fma_generic_f32, f32_vector, float)
DEFINE_GENERIC(fma_generic_f64, f64_vector, double)

static void read_generic(const char *from, size_t bytes)
{
    f32_vector sum[8] = {{0}};
    for (const char *p = from; p < from + bytes; p += 128)
        for (int k = 0; k < 8; k++) sum[k] += ((const f32_vector *)p)[k];
    volatile f32_vector sink = sum[0];
    for (int k = 1; k < 8; k++) sink += sum[k];
}

int peak_has(int isa) { return isa == BASELINE; }

typedef double (*fma_loop)(long);
typedef void (*read_loop)(const char *, size_t);
static const fma_loop fma_loops[1][2] = {{fma_generic_f32, fma_generic_f64}};
static const read_loop read_loops[1] = {read_generic};
#endif

typedef struct {
    fma_loop fma; /* or */
    read_loop read;
    const char *memory;
    size_t bytes;
    double seconds, rate;
    atomic_int *ready;
    int threads;
} job;

/* One piece of the work, of some microseconds: how much it was. */
static double piece(const job *j)
{
    if (j->fma) return j->fma(1000);
    long repeats = (long)(65536 / j->bytes) + 1;
    for (long r = 0; r < repeats; r++) j->read(j->memory, j->bytes);
    return (double)repeats * (double)j->bytes;
}

/* Work for a while, in pieces much shorter than it; all threads start together. */
static void *run(void *argument)
{
    job *j = argument;
    double work = 0, start, end;
    piece(j);
    atomic_fetch_add(j->ready, 1);
    while (atomic_load(j->ready) < j->threads) {}
    start = now();
    do {
        work += piece(j);
        end = now();
    } while (end - start < j->seconds);
    j->rate = work / (end - start) * 1e-9;
    return NULL;
}

/* 1e9 operations a second of all threads together; negative where a thread did not start. */
static double run_all(job model, int threads)
{
    job jobs[MAX_THREADS];
    pthread_t ids[MAX_THREADS];
    atomic_int ready = 0;
    double total = 0;
    int started = 1;
    if (threads < 1 || threads > MAX_THREADS) return -1;
    for (int k = 0; k < threads; k++) {
        jobs[k] = model;
        jobs[k].memory = model.memory ? model.memory + (size_t)k * model.bytes : NULL;
        jobs[k].ready = &ready;
        jobs[k].threads = threads;
    }
    for (int k = 1; k < threads; k++, started++)
        if (pthread_create(&ids[k], NULL, run, &jobs[k])) break;
    if (started < threads) atomic_fetch_add(&ready, threads - started); /* let the others go */
    run(&jobs[0]);
    for (int k = 1; k < started; k++) pthread_join(ids[k], NULL);
    for (int k = 0; k < threads; k++) total += jobs[k].rate;
    return started < threads ? -1 : total;
}

/* GFLOP/s of one burst. */
double peak_fma(int isa, int dtype, int threads, double seconds)
{
    job model = {.fma = fma_loops[isa][dtype], .seconds = seconds};
    return run_all(model, threads);
}

/* GB/s of one burst; every thread reads its own share of memory, again and again. */
double peak_read(int isa, const char *memory, size_t bytes, int threads, double seconds)
{
    job model = {.read = read_loops[isa], .memory = memory, .seconds = seconds};
    model.bytes = bytes / (size_t)threads / 1024 * 1024;
    if (model.bytes == 0) return -1;
    return run_all(model, threads);
}
