"""Checkpoints: written so that one is there whole or not at all, verified before one is used, and which ones are kept.

The files themselves are those of transformers' Trainer, in checkpoints/<attempt>-<run id>/checkpoint-<step>, and a
manifest that vouches for every byte of them.
"""
