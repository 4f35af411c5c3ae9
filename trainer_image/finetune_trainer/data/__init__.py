"""From files to batches, one small step a module: files -> rows -> formats -> templates -> tokenize -> pack -> order ->
collate.

Nothing here but `collate` needs torch, so that data can be checked on any machine.
"""
