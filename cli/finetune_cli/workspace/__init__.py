"""What reads the workspace of a job: a pod for as long as the command runs, by the rights of the user."""
