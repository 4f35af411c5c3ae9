"""The artifact of a job: weights, model card and provenance in the workspace, and copies outside of it."""
