"""Links of a run to its results: the video, the report, the contact sheet.

A link leads to this installation's Airflow (`web/application.py`), which sends whoever is logged in on to the file.
So it never expires, and no signed URL is kept in Airflow's database.
"""

from typing import Any, ClassVar
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf

from s2v_tasks.schemas.steps import PUBLISH, VALIDATE, Step

URL_PREFIX = "/s2v"


class JobLink(BaseOperatorLink):  # type: ignore[misc]
    """A link to one file of the job of a task; the task's operator has `job_id` from the moment it runs."""

    name: ClassVar[str]
    file: ClassVar[str]

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the URL at Airflow's API server; called in the worker when the task ends."""
        base_url = conf.get("api", "base_url", fallback="").rstrip("/")
        return f"{base_url}{URL_PREFIX}/jobs/{quote(operator.job_id)}/{self.file}"


class VideoLink(JobLink):
    """The published video."""

    name = "Video"
    file = "video"


class ReportLink(JobLink):
    """The report of the checks."""

    name = "Report"
    file = "report"


class ContactSheetLink(JobLink):
    """The contact sheet."""

    name = "Contact sheet"
    file = "contact-sheet"


# A video that fails its checks has only a report.
LINKS_OF_STEP: dict[Step, tuple[JobLink, ...]] = {
    VALIDATE: (ReportLink(),),
    PUBLISH: (VideoLink(), ReportLink(), ContactSheetLink()),
}
