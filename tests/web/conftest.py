"""Airflow's API server in this process, with three accounts, the page of this package, and real services.

Airflow reads the accounts and the secret from the environment when its application is made.
"""

import os

os.environ |= {
    "AIRFLOW__API_AUTH__JWT_SECRET": "a secret of the tests that is long enough for HS512, which needs 64 bytes",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "vera:viewer,edith:user,adam:admin",
}

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.storage.s3 import ObjectStore

Login = Callable[[str | None], TestClient]


@pytest.fixture(scope="session")
def airflow_app() -> Any:
    """The application of Airflow's API server with a migrated database."""
    from airflow.api_fastapi.app import create_app
    from airflow.utils.db import initdb

    initdb()
    return create_app(apps="core")


@pytest.fixture(scope="session")
def dag(airflow_app: Any) -> str:
    """The DAG of the package in Airflow's database, as a DAG processor stores it."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db

    from s2v_tasks.schemas.steps import JOB_DAG

    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(str(Path(__file__).parents[2] / "dags" / f"{JOB_DAG}.py"), bundle_name="dags-folder")
    assert bag.import_errors == {}
    sync_bag_to_db(bag, "dags-folder", None)
    return JOB_DAG


@pytest.fixture(autouse=True)
def no_runs(dag: str) -> None:
    """Airflow without runs, whatever the tests before have started: pages show the runs of ended jobs."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session() as session:
        session.execute(sa.delete(DagRun))


@pytest.fixture
def installation(
    s3_settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[MetadataStore, ObjectStore]]:
    """Metadata store and object store that the page reads."""
    from s2v_tasks.web.services import services

    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    load_settings.cache_clear()
    services.cache_clear()
    shared = services()
    yield shared.metadata, shared.store
    shared.metadata.close()
    services.cache_clear()


@pytest.fixture
def metadata(installation: tuple[MetadataStore, ObjectStore]) -> MetadataStore:
    """The metadata store of the page."""
    return installation[0]


@pytest.fixture
def store(installation: tuple[MetadataStore, ObjectStore]) -> ObjectStore:
    """The object store of the page."""
    return installation[1]


@pytest.fixture
def login(airflow_app: Any, installation: Any) -> Login:
    """Return a browser with a logged-in account; None: without a login."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    roles = {"vera": "viewer", "edith": "user", "adam": "admin"}

    def login(name: str | None) -> TestClient:
        browser = TestClient(airflow_app, base_url="http://airflow.test", follow_redirects=False)
        if name is not None:
            token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=name, role=roles[name].upper()))
            browser.cookies.set("_token", token)
        return browser

    return login
