"""Kernels for processors, in C++, with the contracts of the operators that Triton computes on a GPU.

``library.py`` compiles the C++ files in ``source`` and loads them; ``operators.py`` and ``convolution.py``
register them with PyTorch; ``forms.py`` keeps weights in the forms that they read; ``choice.py`` selects
them where they were measured to be faster than PyTorch's operators.
"""
