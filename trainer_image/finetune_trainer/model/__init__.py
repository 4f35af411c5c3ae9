"""The model of a job: its files, its tokenizer, its weights, and which of them are trained.

`build` makes the model that a stage trains, from these parts:

- files: `model_files` (directory, config, code), `weight_shapes` (safetensors headers), `saved_adapter`,
  `derived_files` (what is computed once and cached in the workspace)
- loading: `base`, `attention`, `tokenizer`, `vocabulary`, `merging`
- tuning methods: `trainable` (full, and what all methods share), `freeze`, `lora_adapter`, `pissa`
- heads: `lm_head` (log-probabilities), `reward_head` (scores), `value_head` (PPO's critic), `scalar_head` (their layer)
- training: `optimizer`, `sharding`
- inference: `reward_model`
"""
