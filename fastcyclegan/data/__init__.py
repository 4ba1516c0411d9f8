"""Pictures to batches: what sample i is (plan), how a file becomes pixels (picture), checks (scan), the loader (folder), the toy set."""
