"""Links to what a job made, for browsers: the video, the report, the contact sheet."""

from s2v_tasks.errors import PermanentError
from s2v_tasks.settings import Settings
from s2v_tasks.storage.layout import JobLayout, output_video_uri
from s2v_tasks.storage.s3 import ObjectStore

LINK_SECONDS = 3600


class JobLinks:
    """Signs links to files of jobs. One instance serves all threads of a process; nothing is contacted before use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = ObjectStore.from_settings(settings)
        self._public_store = ObjectStore.seen_by_browsers(settings)

    def url(self, job_id: str, file: str) -> str:
        """Return a URL that reads the file for an hour; PermanentError when the job has no such file."""
        layout = JobLayout(job_id)
        addresses = {
            "video": output_video_uri(self._settings, job_id),
            "report": layout.report,
            "contact-sheet": layout.contact_sheet,
        }
        if file not in addresses:
            raise PermanentError(f"{file!r} is not a file of a job: expected one of {', '.join(addresses)}.")
        if not self._store.exists(addresses[file]):
            raise PermanentError(f"Job {job_id} has no {file} yet: `s2v job {job_id}` shows how far it is.")
        return self._public_store.link(addresses[file], seconds=LINK_SECONDS)
