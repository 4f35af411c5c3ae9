"""The workspace: its layout, its files and their errors, the fence and the result of a job, and what is prepared."""
