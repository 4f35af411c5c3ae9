"""Checkpoints: each is complete or absent, verified before it is used, and deleted when newer checkpoints replace it.

The files are those of transformers' Trainer, in checkpoints/<attempt>-<run id>/checkpoint-<step>, and a manifest with
the size and sha256 of each of them. `saver` writes a checkpoint, `resume` finds the newest intact checkpoint, `best`
the checkpoint with the lowest evaluation loss, and `retention` deletes old checkpoints.
"""
