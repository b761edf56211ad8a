"""Tests of trio_subshells.kernel: kernels in this process, over real sockets."""
