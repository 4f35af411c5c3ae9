"""The command line `finetune`, which is also `kubectl finetune`."""
