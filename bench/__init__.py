"""The benchmark behind `make bench`: cloche beside runc and runsc, in one interleaved run."""
