"""The logs of all pods of a job, across attempts: no line lost, and none twice."""
