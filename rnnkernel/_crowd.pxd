# Whether a call of so much arithmetic had better leave other cores alone.
cpdef bint is_crowded(double flops) noexcept
# What a call has lost of its time by waiting for cores, both in nanoseconds.
cpdef void report(long long time, long long lost) noexcept
