"""Check the structure of files before anything else reads them.

What a file contains does not belong here: that is for the readers of its format.

Uses nothing else of the package.
"""
