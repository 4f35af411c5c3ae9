"""When things happen: FineTuneJobs become Jobs that prepare, and then Jobs that train.

    kopf event -> cache + keyed queue -> observe(key) -> plan(job, observed, now) -> act(plan)

``handlers`` only feed the cache; ``plan/`` decides without clock or I/O; ``manifests/`` build objects; ``cluster`` is
the one module that talks to the API server.
"""
