"""What people say about TCP connection limits, each as an experiment that ends in a verdict.

A claim is a :class:`~bench.claims.model.Claim` in a module of this package: parameters for a small
and a full profile, a function that measures on a lab, and a pure one that judges what was measured.
:mod:`bench.claims.register` lists them all.
"""
