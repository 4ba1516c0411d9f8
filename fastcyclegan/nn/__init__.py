"""Networks and layers with the official names and state_dict keys, run by our kernels or by PyTorch.

This package contains layers, network architectures, checks on layers, and the format of networks on the hub.
Losses, training and all other weight files are handled elsewhere.

Uses ``reference``, ``kernels``, ``settings``, ``tensor_files`` and ``files``.
"""
