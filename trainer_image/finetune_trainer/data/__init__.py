"""From files to batches, a small step per module: files -> readers -> formats -> templates -> tokenize -> pack ->
splits -> order -> datasets -> collate.

Only `collate` and `datasets` import torch, so data can be checked without it.
"""
