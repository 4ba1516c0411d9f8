"""Run every command and every example of the pages as their readers would, and check their links."""
