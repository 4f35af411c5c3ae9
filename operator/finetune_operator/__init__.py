"""When things happen: a FineTuneJob becomes child jobs that prepare, and then child jobs that train.

    kopf event -> cache + keyed queue -> reconcile(key): plan(job, snapshot, now) <-> read what it needs -> act

``handlers`` only feed the cache; ``views/`` reduce objects to what decisions need; ``plan/`` decides without clock or
I/O, and says what it needs to read; ``observer`` reads it; ``manifests/`` build objects; ``cluster`` is the only module
that calls the API server.
"""
