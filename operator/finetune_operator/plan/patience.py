"""How long an attempt may take to start, and when what the API server refuses is tried again."""

from datetime import datetime, timedelta

from finetune_api.status import Attempt

from finetune_operator.plan.context import Context
from finetune_operator.views.metadata import parse_time

CREATE_AGAIN_SECONDS, CREATE_AGAIN_SECONDS_MAX = 5.0, 300.0
"""Shortest and longest time between two tries to create what the API server refuses."""


def start_deadline(attempt: Attempt, context: Context, resumed: datetime | None = None) -> datetime:
    """When an attempt whose pods do not all run is ended, so that its GPUs become free. The time in which the child job
    is suspended does not count: it holds none."""
    return pods_due(attempt, resumed) + timedelta(seconds=context.job.spec.start_deadline_seconds)


def pods_due(attempt: Attempt, resumed: datetime | None) -> datetime:
    """Since when the attempt's pods are to start."""
    begun = parse_time(attempt.start_time)
    return max(begun, resumed or begun)


def create_again(context: Context, attempt: Attempt) -> datetime:
    """When to try again what the API server refuses: after as long as it has been refused so far, so that the pauses
    double."""
    refused_for = (context.now - parse_time(attempt.start_time)).total_seconds()
    pause = min(max(refused_for, CREATE_AGAIN_SECONDS), CREATE_AGAIN_SECONDS_MAX)
    return context.now + timedelta(seconds=pause)
