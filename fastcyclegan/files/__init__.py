"""Download files, and check their structure before anything else reads them.

Transfers, the layout of archives, JSON, and rules for the values in a file belong here. What a particular
file must contain does not: its reader states that with these rules.

Uses nothing else of the package.
"""
