"""What people say about TCP connection limits, each as an experiment that ends in a verdict.

A claim is a :class:`~bench.claims.model.Claim` in a module of this package. It has parameters for a
small and a full profile, a function that measures on a lab, and a pure function that judges the
measurement. :mod:`bench.claims.register` lists all claims.
"""
