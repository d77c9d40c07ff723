ctypedef fused real:
    float
    double
