"""Networks and the layers they are built from: modules with the official names and keys, computed by the kernels or by PyTorch.

A layer, a network architecture, or a check of what a layer is belongs here, and so does the hub's form of a network. Losses and training do
not, nor do files of weights other than the hub's. Uses ``reference`` and ``kernels``.
"""
