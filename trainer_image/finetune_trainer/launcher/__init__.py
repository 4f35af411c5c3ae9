"""PID 1 of the trainer's container and the processes that it starts: from the file of a job to the contract's exit
code.

`launch` is the flow of PID 1. `node_run` reads the job, `supervise` runs the ranks, `exit_reporter` reports the end. A
rank is a process that runs `worker`.
"""
