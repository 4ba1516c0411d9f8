"""Networks and the layers they are built from: modules with the official names and keys, computed by the
kernels or by PyTorch.

A layer, a network architecture, or a question about what a layer is belongs here, and so does a network's
form on the hub. Losses and training do not, nor do files of weights other than the hub's.

Uses ``reference``, ``kernels``, ``config`` and ``tensor_files``.
"""
