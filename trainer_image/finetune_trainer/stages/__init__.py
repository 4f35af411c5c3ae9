"""One package per training stage, each with its workflow: ``run(run) -> Outcome``. What stages share lies here: the
engine (what we change in TRL's trainers), its arguments, and what happens between two optimizer steps."""
