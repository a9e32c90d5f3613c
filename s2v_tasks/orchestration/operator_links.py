"""Links of a run to its results: the video, the report, the contact sheet.

A link points to Airflow (`web/application.py`), which redirects logged-in users to the file. A link therefore never
expires, and Airflow's database contains no signed URL.
"""

from typing import Any, ClassVar
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf

from s2v_tasks.schemas.steps import PUBLISH, VALIDATE, Step

URL_PREFIX = "/s2v"


class JobLink(BaseOperatorLink):  # type: ignore[misc]
    """A link to one file of the job of a task; the operator has `job_id` as soon as the task runs."""

    name: ClassVar[str]
    file: ClassVar[str]

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the URL on Airflow's API server; called in the worker when the task ends."""
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
