"""What we take of TRL and transformers beyond their public promises: each member that we override, with its signature.

Read by a test, which fails when an upgrade changes one of them: then look at what changed, adapt the override, and
write the new signature here. A member that is overridden and not listed fails the test too.
"""

OVERRIDDEN: dict[str, dict[str, str]] = {
    "transformers.trainer.Trainer": {
        "log": "(self, logs, start_time=None)",
        "_get_train_sampler": "(self, train_dataset=None)",
        "compute_loss": "(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
        "create_optimizer": "(self, model=None)",
        "get_batch_samples": "(self, epoch_iterator, num_batches, device)",
        "_get_grad_norm": "(self, model, grad_norm=None)",
        "_evaluate": "(self, trial, ignore_keys_for_eval, skip_scheduler=False)",
        "_load_optimizer_and_scheduler": "(self, checkpoint)",
        "_load_from_checkpoint": "(self, resume_from_checkpoint, model=None)",
        "_save_rng_state": "(self, output_dir)",
        "_load_rng_state": "(self, checkpoint)",
    },
    "trl.trainer.base_trainer._BaseTrainer": {
        "create_model_card": "(self, model_name=None, dataset_name=None, tags=None)",
        "_send_telemetry": "(self)",
    },
    "trl.trainer.sft_trainer.SFTTrainer": {
        "__init__": (
            "(self, model, args=None, data_collator=None, train_dataset=None, eval_dataset=None, processing_class=None,"
            " compute_loss_func=None, compute_metrics=None, callbacks=None, optimizers=(None, None),"
            " optimizer_cls_and_kwargs=None, preprocess_logits_for_metrics=None, quantization_config=None,"
            " peft_config=None, formatting_func=None)"
        ),
        "compute_loss": "(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
        "log": "(self, logs, start_time=None)",
        "training_step": "(self, *args, **kwargs)",
        "_save_checkpoint": "(self, model, trial)",
    },
}
"""Class -> member -> signature without types. The class is the one whose version ours runs before."""

USED: dict[str, str] = {
    "transformers.trainer.Trainer.get_optimizer_cls_and_kwargs": "(args, model=None)",
    "transformers.trainer.Trainer._prepare_inputs": "(self, inputs)",
    "transformers.trainer.Trainer.compute_loss_context_manager": "(self)",
    # Packed documents are kept apart by it, from position_ids alone.
    "transformers.masking_utils.find_packed_sequence_indices": "(position_ids)",
    # Log, then evaluation, then save; and files go below args.output_dir.
    "transformers.trainer.Trainer._maybe_log_save_evaluate": (
        "(self, tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=None)"
    ),
    "transformers.trainer.Trainer._get_output_dir": "(self, trial)",
    # Between two steps, the order of calls that `steps` relies on is tested by training itself.
    "transformers.trainer.Trainer.train": "(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None)",
    "trl.trainer.utils.add_fused_lm_head": (
        "(model, temperature=1.0, cast_lm_head_to_fp32=False, outputs=('log_probs',))"
    ),
    # `model.head` stands in for it on CPUs, under the name of trl.trainer.utils._ChunkedLogProbFunction.
    "trl.kernels.ChunkedLogProbFunction.forward": (
        "(ctx, hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping=None, logit_scale=1.0,"
        " outputs=('entropy', 'log_sum_sq_probs', 'mean_logits', 'is_top1'))"
    ),
    # States that may leave the GPU.
    "bitsandbytes.optim.optimizer.Optimizer8bit.load_state_dict": "(self, state_dict, move_to_device=True)",
    "bitsandbytes.optim.optimizer.Optimizer8bit.get_state_buffer": "(self, p, dtype=torch.float32)",
    "bitsandbytes.optim.optimizer.GlobalOptimManager.override_config": (
        "(self, parameters, key=None, value=None, key_value_dict=None)"
    ),
    # The reference of stages dpo, kto and ppo: in shares as the policy is, or a copy of its adapter.
    "accelerate.utils.fsdp_utils.fsdp2_prepare_model": "(accelerator, model)",
    "peft.peft_model.PeftModel.add_adapter": (
        "(self, adapter_name, peft_config, low_cpu_mem_usage=False, autocast_adapter_dtype=True)"
    ),
}
"""Functions that we don't override, but whose inner workings `model.head`, `model.optimizer`, `collate`, `engine`,
`evaluation` and `steps` build on."""

NEVER_ENTERED = "trl.trainer.sft_trainer.SFTTrainer._prepare_dataset"
"""TRL would tokenize, cut and pack again what is ready."""
