"""The same as the baseline, for another instruction set."""

from fastae.kernels.compiled._baseline import *
