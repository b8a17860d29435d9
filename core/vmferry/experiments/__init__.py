"""Comparative experiments: one file describes them, a sweep runs them, a database keeps them.

``definition`` reads the file, ``matrix`` makes the runs, ``sweep`` has them done by an executor and
stores them through ``records``, ``report`` shows them. What a run *is* depends on the hypervisor
that the matrix names: see ``backends``.
"""
