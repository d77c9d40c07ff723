"""Large blocks of memory that go from call to call."""

# Whether blocks and what comes of an arena are filled with NaN when they are taken, and every array
# is a block.
cdef bint poison
# Whether a block has no more bytes than it was asked for, and nothing is used twice.
cdef bint exact
# At least so many bytes, uninitialised, at a multiple of 64; NULL where they do not fit.
cdef char *take_block(size_t size) noexcept nogil
# Of a block that was taken: how many bytes it has.
cdef size_t block_size(const char *block) noexcept nogil
# Hands a block back.
cdef void give_block(char *block) noexcept nogil
# A layer begins, or ends: idle blocks wait for the next call as long as there are any.
cdef void layer_begins() noexcept
cdef void layer_ends() noexcept
