"""Check and convert single settings.

Settings that have forms of their own, on the command line or from Python, belong here. Their defaults and
help texts do not: ``config`` lists all settings.

Uses ``files``.
"""
