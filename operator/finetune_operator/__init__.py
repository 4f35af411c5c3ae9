"""When things happen: FineTuneJobs become training Jobs.

    kopf event -> cache + keyed queue -> observe(key) -> plan(job, observed, now) -> act(plan)

``handlers`` only feed the cache; ``plan/`` decides without clock or I/O; ``manifests/`` build objects; ``cluster`` is
the one module that talks to the API server.
"""
