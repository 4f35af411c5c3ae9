"""The application: its routes, and what lies around them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from finetune_ui import guard
from finetune_ui.guard import changed, shown
from finetune_ui.pages import actions, compare, entry, estimate, job, jobs, logs, namespaces, report, train
from finetune_ui.security import Guard, TooLarge
from finetune_ui.session import Sessions
from finetune_ui.settings import Settings
from finetune_ui.state import State

STATIC = Path(__file__).parent / "static"
NAMESPACE = "/ns/{namespace:name}"
JOB = NAMESPACE + "/jobs/{name:name}"


class Page(Starlette):
    """Starlette with our guard around everything, also around its own answers to errors."""

    def build_middleware_stack(self) -> ASGIApp:
        return Guard(super().build_middleware_stack())


def create(settings: Settings) -> Page:
    """The application. Raises Problem for settings that do not fit."""
    state = State(settings, Sessions(settings))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        state.close()

    page = Page(
        routes=[*public(), *private()],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts), www_redirect=False)],
        exception_handlers={HTTPException: guard.refused, TooLarge: guard.too_large, Exception: guard.broken},
        lifespan=lifespan,
    )
    page.state.ui = state
    return page


def public() -> list[Route | Mount]:
    """Routes that show nothing of a cluster, so that they need no user."""
    return [
        Route("/healthz", entry.healthy, methods=["GET"]),
        Route("/login", entry.login, methods=["GET"]),
        Route("/login", entry.log_in, methods=["POST"]),
        Route("/logout", entry.log_out, methods=["POST"]),
        Route("/enter", entry.enter, methods=["GET"]),
        Mount("/static", StaticFiles(directory=STATIC), name="static"),
    ]


def private() -> list[Route]:
    """Routes for users."""
    return [
        shown("/", namespaces.home),
        shown("/go", namespaces.choose),
        shown(NAMESPACE + "/jobs", jobs.jobs_page),
        shown(NAMESPACE + "/live", jobs.jobs_live),
        shown(NAMESPACE + "/compare", compare.compare_page),
        shown(NAMESPACE + "/compare/live", compare.compare_live),
        shown(NAMESPACE + "/train", train.train_page),
        changed(NAMESPACE + "/train", train.train_change),
        shown(NAMESPACE + "/estimate/{name:name}", estimate.estimate_part),
        shown(JOB, job.job_page),
        shown(JOB + "/live", job.job_live),
        shown(JOB + "/timeline", job.job_timeline),
        shown(JOB + "/graph", job.job_graph),
        shown(JOB + "/logs", logs.job_logs),
        shown(JOB + "/logs/live", logs.job_logs_live),
        shown(JOB + "/report", report.job_report),
        changed(JOB + "/report", report.job_report_fetch),
        shown(JOB + "/confirm/{verb}", actions.job_confirm),
        changed(JOB + "/do/{verb}", actions.job_act),
    ]
