from rnnkernel._run cimport Plan, Run

# What one member of a team does before the first step: its share of panels and table.
cdef void prepare_weights_of(
    const Run *r, const Plan *plan, int members, int member
) noexcept nogil
# What it does of the steps.
cdef void run_team(const Run *r, const Plan *plan, int members, int member) noexcept nogil
