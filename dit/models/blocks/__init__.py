"""Transformer blocks, one a file: ``build(**keyword_only)`` gives a module ``(x, condition) -> x``.

A block's class says with ``uses`` how it takes its condition (see ``models/condition.py``), with
``positions`` which positions the model uses if none are asked for, and with ``macs(n, k, m, d)`` its
multiply-adds, by part, for ``n`` tokens of width ``d``, ``k`` rows of the condition's vector and
``m`` tokens in its sequence.
"""
