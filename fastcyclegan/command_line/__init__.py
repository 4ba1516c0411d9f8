"""What command lines have in common, and the commands that need no library to print their help.

Exit codes, the import of what a command needs, and the parsers of commands belong here. What a command does,
does not: that is in the room whose work it is.

Uses ``settings`` and ``training``.
"""
