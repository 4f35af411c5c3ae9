"""From files to batches, one small step a module: sources -> formats -> template -> tokenize -> order -> collate.

Nothing here but `collate` needs torch, so that data can be checked on any machine.
"""
