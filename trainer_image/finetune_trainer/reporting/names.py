"""The metrics that stages log, and their names in the log, the status and the curves.

Imports nothing, so that reading a log starts fast.
"""

LOGGED = {
    # pt, sft: tokens; rm: pairs
    "accuracy": "Accuracy",
    # rm
    "margin": "Margin",
    "mean_reward": "MeanReward",
    "min_reward": "MinReward",
    "max_reward": "MaxReward",
    # dpo, kto
    "rewards/chosen": "RewardChosen",
    "rewards/rejected": "RewardRejected",
    "rewards/accuracies": "Accuracy",
    "rewards/margins": "Margin",
    "logps/chosen": "LogpChosen",
    "logps/rejected": "LogpRejected",
    "sft_loss": "SftLoss",
    "odds_ratio_loss": "OddsRatioLoss",
    # kto, ppo
    "kl": "Kl",
    # ppo
    "reward": "Reward",
    "reward_normalized": "RewardNormalized",
    "kl_coefficient": "KlCoefficient",
    "policy_loss": "PolicyLoss",
    "value_loss": "ValueLoss",
    "clip_fraction": "ClipFraction",
    "entropy": "Entropy",
    "answer_length": "AnswerLength",
    "eos_rate": "EosRate",
}
"""Metric that a stage logs besides the loss -> end of its name in status.metrics. The name begins with eval, or with
final when the job has no evaluation."""

CURVES = {
    "loss": "loss",
    "lr": "learningRate",
    "grad_norm": "gradientNorm",
    "throughput": "tokensPerSecond",
    "eval_loss": "evalLoss",
    **{name: ending[0].lower() + ending[1:] for name, ending in LOGGED.items()},
    **{f"eval_{name}": f"eval{ending}" for name, ending in LOGGED.items()},
}
"""Key in the log -> name of the curve, as in status.progress and status.metrics."""
