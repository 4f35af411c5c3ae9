"""What we use of torch, transformers, TRL, peft, accelerate and bitsandbytes beyond their public interface.

A test fails if an upgrade changes a signature. Then check what changed, adapt our code, and write the new signature
here. The test also fails for a member that is overridden and not listed.
"""

OVERRIDDEN: dict[str, dict[str, str]] = {
    "transformers.trainer.Trainer": {
        "__init__": (
            "(self, model=None, args=None, data_collator=None, train_dataset=None, eval_dataset=None,"
            " processing_class=None, model_init=None, compute_loss_func=None, compute_metrics=None, callbacks=None,"
            " optimizers=(None, None), optimizer_cls_and_kwargs=None, preprocess_logits_for_metrics=None)"
        ),
        "log": "(self, logs, start_time=None)",
        "_get_train_sampler": "(self, train_dataset=None)",
        "compute_loss": "(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
        "create_optimizer": "(self, model=None)",
        "get_batch_samples": "(self, epoch_iterator, num_batches, device)",
        "training_step": "(self, model, inputs, num_items_in_batch=None)",
        "floating_point_ops": "(self, inputs)",
        "_get_grad_norm": "(self, model, grad_norm=None)",
        "_evaluate": "(self, trial, ignore_keys_for_eval, skip_scheduler=False)",
        "_save_checkpoint": "(self, model, trial)",
        "_load_optimizer_and_scheduler": "(self, checkpoint)",
        "_load_from_checkpoint": "(self, resume_from_checkpoint, model=None)",
        "_save_rng_state": "(self, output_dir)",
        "_load_rng_state": "(self, checkpoint)",
    },
}
"""Class -> member that we override -> signature without types."""

USED: dict[str, str] = {
    "transformers.trainer.Trainer.get_optimizer_cls_and_kwargs": "(args, model=None)",
    "transformers.trainer.Trainer._prepare_inputs": "(self, inputs)",
    "transformers.trainer.Trainer.compute_loss_context_manager": "(self)",
    # It separates packed documents, by position_ids alone.
    "transformers.masking_utils.find_packed_sequence_indices": "(position_ids)",
    # The order is log, evaluation, save; and files are written below args.output_dir.
    "transformers.trainer.Trainer._maybe_log_save_evaluate": (
        "(self, tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=None)"
    ),
    "transformers.trainer.Trainer._get_output_dir": "(self, trial)",
    # The order of calls between two steps, which `loop` relies on, is tested by training itself.
    "transformers.trainer.Trainer.train": "(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None)",
    "trl.trainer.utils.add_fused_lm_head": (
        "(model, temperature=1.0, cast_lm_head_to_fp32=False, outputs=('log_probs',))"
    ),
    # `model.lm_head` calls it on CPUs, with factors from the closure of the method that add_fused_lm_head installs.
    "trl.kernels.ChunkedLogProbFunction.forward": (
        "(ctx, hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping=None, logit_scale=1.0,"
        " outputs=('entropy', 'log_sum_sq_probs', 'mean_logits', 'is_top1'))"
    ),
    # `prepare.saved_activations` runs models on tensors without content.
    "torch.nn.utils.stateless._reparametrize_module": (
        "(module, parameters_and_buffers, tie_weights=False, strict=False, stack_weights=False)"
    ),
    "torch._subclasses.fake_tensor.FakeTensor.__new__": (
        "(cls, fake_mode_or_elem=None, elem=None, device=None, constant=None, real_tensor=None, pytype=None,"
        " dispatch_keys=None, *, fake_mode=None, fake_device=None, _fake_device=None, requires_grad=None,"
        " _is_param=False, **state)"
    ),
    "torch._subclasses.fake_tensor.FakeTensorMode.__init__": (
        "(self, *, allow_fallback_kernels=True, allow_non_fake_inputs=False, shape_env=None, static_shapes=None,"
        " export=False)"
    ),
    "transformers.modeling_utils.AttentionInterface.register": "(key, value)",
    # States of paged optimizers.
    "bitsandbytes.optim.optimizer.Optimizer8bit.load_state_dict": "(self, state_dict, move_to_device=True)",
    "bitsandbytes.optim.optimizer.Optimizer8bit.get_state_buffer": "(self, p, dtype=torch.float32)",
    "bitsandbytes.optim.optimizer.GlobalOptimManager.override_config": (
        "(self, parameters, key=None, value=None, key_value_dict=None)"
    ),
    # The reference of stages dpo, kto and ppo: sharded like the policy, or a copy of its adapter.
    "accelerate.utils.fsdp_utils.fsdp2_prepare_model": "(accelerator, model)",
    "peft.peft_model.PeftModel.add_adapter": (
        "(self, adapter_name, peft_config, low_cpu_mem_usage=False, autocast_adapter_dtype=True)"
    ),
}
"""Functions that we do not override, but whose inner workings our code relies on -> signature without types."""
