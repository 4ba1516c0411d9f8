"""Compute a network tile by tile, with the result that the whole image would give.

``graph`` describes a network as maps that are computed from one another, and ``nodes`` how a window of each
map follows from windows of others. ``plan`` divides the computation into passes over the tiles: one for each
norm whose statistics are those of the whole image. ``execute`` runs it, with maps that ``storage`` keeps in
memory or in a file. ``independent`` blends tiles that were translated each by itself.

Uses ``files``, ``kernels``, ``nn`` and ``reference``.
"""
