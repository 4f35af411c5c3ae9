"""A run on an MLflow tracking server, by its REST interface (mlflow.org/docs, REST API, version 2.0).

Called by `callback`, in the tracker's thread. Standard library alone: the client brings thirty packages, a web server
and a cloud's software among them, for the six calls here. Credentials are in MLFLOW_TRACKING_TOKEN, or in
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""

import base64
import json
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib import error, parse, request

from finetune_api.output import MlflowSpec

from finetune_trainer.reporting.trackers.line import Refused

TIMEOUT = 15.0
TAG = "finetune-operator.uid"
"""Of a run: the job that it is of. How a later attempt finds it."""


class Client:
    """The job's run in the experiment: that of an earlier attempt, or a new one."""

    def __init__(self, spec: MlflowSpec, name: str, uid: str, settings: Mapping[str, object]) -> None:
        self._url = f"{spec.tracking_uri.rstrip('/')}/api/2.0/mlflow/"
        experiment = self._experiment(spec.experiment)
        self._run = self._found(experiment, uid) or self._made(experiment, name, uid, settings)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = _now()
        metrics = [{"key": key, "value": value, "timestamp": now, "step": step} for key, value in values.items()]
        self._call("runs/log-batch", {"run_id": self._run, "metrics": metrics})

    def close(self, done: bool) -> None:
        """A run that is only interrupted stays as it is: running."""
        if done:
            self._call("runs/update", {"run_id": self._run, "status": "FINISHED", "end_time": _now()})

    def _experiment(self, name: str) -> str:
        query = f"experiments/get-by-name?experiment_name={parse.quote(name, safe='')}"
        try:
            found = self._call(query)
        except Refused as refused:
            if "RESOURCE_DOES_NOT_EXIST" not in str(refused):
                raise
            try:
                return str(self._call("experiments/create", {"name": name})["experiment_id"])
            except Refused as raced:
                if "RESOURCE_ALREADY_EXISTS" not in str(raced):
                    raise
                found = self._call(query)  # another job made it just now
        return str(found["experiment"]["experiment_id"])

    def _found(self, experiment: str, uid: str) -> str | None:
        wanted = {"experiment_ids": [experiment], "filter": f"tags.`{TAG}` = '{uid}'", "max_results": 1}
        runs = self._call("runs/search", wanted).get("runs") or []
        if not runs:
            return None
        run = str(runs[0]["info"]["run_id"])
        self._call("runs/update", {"run_id": run, "status": "RUNNING"})
        return run

    def _made(self, experiment: str, name: str, uid: str, settings: Mapping[str, object]) -> str:
        tags = [{"key": TAG, "value": uid}]
        asked = {"experiment_id": experiment, "run_name": name, "start_time": _now(), "tags": tags}
        run = str(self._call("runs/create", asked)["run"]["info"]["run_id"])
        params = [{"key": key, "value": str(value)} for key, value in settings.items()]
        self._call("runs/log-batch", {"run_id": run, "params": params})
        return run

    def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """POST where there is a body. Raises Refused for an answer that would be the same again."""
        headers = {"Content-Type": "application/json", **_authorization()}
        asked = request.Request(self._url + path, json.dumps(body).encode() if body is not None else None, headers)
        try:
            with request.urlopen(asked, timeout=TIMEOUT) as response:
                answer = json.loads(response.read())
        except error.HTTPError as refused:
            said = refused.read().decode(errors="replace")[:400]
            if refused.code >= 500 or refused.code == 429:
                raise
            raise Refused(f"{refused.code} {said or refused.reason}") from refused
        return answer if isinstance(answer, dict) else {}


def _authorization() -> dict[str, str]:
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}


def _now() -> int:
    return time.time_ns() // 1_000_000
