"""One package per training stage. Each has ``workflow.run(run) -> WorkflowResult`` and a trainer; `training` has what
they share."""
