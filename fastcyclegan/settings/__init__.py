"""The settings of a run, and what checks and converts them.

Each group of settings is a frozen dataclass, with all defaults and help texts: those that all runs have, the
bases of those that a recipe adds (``recipe``, which is public), and those of the official networks, which
several recipes share. Settings that have forms of their own, on the command line or from Python, belong here
as well. The whole configuration does not: that is ``config``.

Uses ``files``.
"""
