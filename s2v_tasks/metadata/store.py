"""The metadata store: all data of jobs in PostgreSQL, in one object with one part per concern."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import sqlalchemy as sa

from s2v_tasks.metadata.approvals import ApprovalRepository
from s2v_tasks.metadata.attempts import AttemptRepository, ConditionsRepository
from s2v_tasks.metadata.clips import ArtifactRepository, ClipRepository
from s2v_tasks.metadata.costs import CostRepository
from s2v_tasks.metadata.events import EventRepository, NotificationRepository
from s2v_tasks.metadata.gallery import GalleryRepository
from s2v_tasks.metadata.housekeeping import HousekeepingRepository
from s2v_tasks.metadata.ingestion import BatchRepository, DropRepository
from s2v_tasks.metadata.jobs import JobRepository
from s2v_tasks.metadata.queue import JobQueue
from s2v_tasks.metadata.session import engine_from_settings, transaction
from s2v_tasks.metadata.sql import NOW
from s2v_tasks.settings import Settings


class MetadataStore:
    """Metadata of all jobs. Each call of a part is one short, idempotent transaction.

    Calls raise PermanentError for a job that was never queued. `webhook_url`: the receiver of messages of jobs whose
    request names none.
    """

    def __init__(self, engine: sa.Engine, *, webhook_url: str | None = None) -> None:
        self._engine = engine
        self.events = EventRepository(engine, webhook_url)
        self.jobs = JobRepository(engine, self.events)
        self.clips = ClipRepository(engine, self.events)
        self.approvals = ApprovalRepository(engine, self.events)
        self.conditions = ConditionsRepository(engine)
        self.attempts = AttemptRepository(engine)
        self.artifacts = ArtifactRepository(engine)
        self.queue = JobQueue(engine)
        self.drops = DropRepository(engine)
        self.batches = BatchRepository(engine)
        self.notifications = NotificationRepository(engine)
        self.costs = CostRepository(engine)
        self.gallery = GalleryRepository(engine)
        self.housekeeping = HousekeepingRepository(engine)

    @classmethod
    def from_settings(cls, settings: Settings) -> "MetadataStore":
        """Return the store of this installation; ConfigurationError when no database is configured."""
        webhook_url = settings.webhook_url.get_secret_value() if settings.webhook_url else None
        return cls(engine_from_settings(settings), webhook_url=webhook_url)

    def now(self) -> datetime:
        """Return the time of the database, the clock of all its records."""
        with transaction(self._engine) as connection:
            now: datetime = connection.execute(sa.select(NOW)).scalar_one()
        return now

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


@contextmanager
def open_metadata(settings: Settings) -> Iterator[MetadataStore]:
    """Yield the store of this installation and close its connections at the end."""
    metadata = MetadataStore.from_settings(settings)
    try:
        yield metadata
    finally:
        metadata.close()
