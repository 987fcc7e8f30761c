"""Attention kernels, one a file: ``attend(q, k, v, visible) -> out`` on ``b n h d`` arrays."""
