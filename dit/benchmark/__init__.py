"""Throughput of training and sampling, with analytic FLOPs, and beside a torch DiT of the same shape.

``python -m dit.benchmark`` prints a table and writes JSON; see ``__main__``.
"""
