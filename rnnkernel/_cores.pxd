# Where weights are read from while rows are multiplied with them.
cdef struct Level:
    double gigabytes              # a second
    bint hides                    # whether a step takes the longer of products and arrival
    double delay                  # how much of the arrival comes on top,
    double delay_once             # and in a single step, before which nobody has read them


# Figures that estimates of time are made of; no result depends on them. Those "apart" are of cores
# between which a meeting costs the most (rnnkernel/_teamwork.pyx), and less in proportion.
cdef struct Cores:
    Level l2, l3, beyond
    double beyond_bytes           # weights of more come from beyond L3
    double step                   # us of a step beside its products
    double crowding               # share of the time by which threads at once take longer
    double meeting, meeting_apart  # us that threads wait to meet, and what that adds
    double byte, byte_apart       # us a byte of h that another core wrote, and likewise
    # us that threads wait for each other's rows of y in a step, for each byte of them, and at most
    double rows_apart, rows_byte_apart, rows_most_apart
    double piece, piece_byte      # us that a piece of time takes by itself, and a byte of W_ih
    double wave                   # of a wavefront's estimate what one team must promise
    # us that halves of a row of y cost, or a byte of one that the layer above reads, where another
    # core writes some lines of it in one go
    double half_row, half_row_apart, below_byte_apart
    double gigaflops              # of float32 in training
    double passing                # us a byte of weights that training passes on
    double at_once_bytes          # of W_hh, up to which BPTT of two directions has a team for each
    double opening, opening_byte  # us to open a team for training, and a byte of its weights
    double serial_bytes           # fewer are moved faster by one thread than by far ones
    double l2_bytes               # of this machine


cdef const Cores *cores() noexcept nogil
