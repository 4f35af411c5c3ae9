"""Checkpoints: when a run is saved, which one the next run goes on from, and which ones are kept.

The files themselves are those of transformers' Trainer, in checkpoints/<attempt>-<run id>/checkpoint-<step>.
"""
