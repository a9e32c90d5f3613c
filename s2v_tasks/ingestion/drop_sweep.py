"""Sweep the drop folder: incoming/<name>/ becomes a job and moves to accepted/, or to rejected/ with a reason.

A sweep may be killed at any point. It first writes a row with everything that is needed to continue (the claim), then
moves the files (copy, then delete), then updates the row. The next sweep first completes unfinished claims.
"""

import json
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from s2v_tasks import log
from s2v_tasks.errors import PermanentError, S2VError, TransientError
from s2v_tasks.ingestion.drop_folder import (
    MARKER,
    MAX_FILES,
    MAX_TEXT_BYTES,
    PROMPT,
    DropFolder,
    DropTexts,
    folders,
    plain_name,
    request_of_drop,
)
from s2v_tasks.metadata.ingestion import DropRepository
from s2v_tasks.metadata.ingestion_tables import Drop
from s2v_tasks.metadata.queue import NewJob
from s2v_tasks.schemas.catalogue import Catalogue
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_fields import URI_FIELDS
from s2v_tasks.settings import Settings
from s2v_tasks.storage.layout import drop_folder_uri
from s2v_tasks.storage.locations import parse_uri, printable
from s2v_tasks.storage.objects import ListedObject
from s2v_tasks.storage.s3 import ObjectStore

_FOLDERS_AT_ONCE = 8
_CLAIMS_TRIED = 5


class Sweeper:
    """Turns the folders in the drop folder into jobs."""

    def __init__(self, settings: Settings, store: ObjectStore, drops: DropRepository, catalogue: Catalogue) -> None:
        self._settings, self._store, self._drops, self._catalogue = settings, store, drops, catalogue
        root = drop_folder_uri(settings)
        self._incoming, self._accepted, self._rejected = (f"{root}/{n}" for n in ("incoming", "accepted", "rejected"))
        self._defects: list[Exception] = []  # of this sweep

    def run(self, now: datetime) -> dict[str, int]:
        """Complete unfinished claims, claim ready folders, and return the numbers of accepted, rejected ... folders.

        TransientError when another sweep runs, or when every folder was postponed. A defect of this program that one
        folder meets is raised after the others are done.
        """
        self._defects.clear()
        with self._drops.sweep_lock():
            healed = self._each(self._drops.unfinished(), self._finish)
            # Files of a claim that are not moved yet look like a repeated drop, which would be refused.
            waiting = {drop.folder_uri for drop in self._drops.unfinished()}
            listing = self._store.listing(f"{self._incoming}/")
            found = [folder for folder in folders(listing, self._incoming) if folder.uri not in waiting]
            ready = [folder for folder in found if self._is_ready(folder, now)]
            taken = self._each(ready, self._take)
        if self._defects:
            raise self._defects[0]
        counts = healed + taken
        if counts["postponed"] and not counts.total() - counts["postponed"]:
            raise TransientError(f"None of {counts['postponed']} folders could be moved: the log has the reasons.")
        names = ("accepted", "rejected", "postponed")
        return {name: counts[name] for name in names} | {"unready": len(found) - len(ready)}

    def _each(self, items: Iterable[Any], work: Any) -> Counter[str]:
        """Do the work for each item and count the outcomes; a failed item is logged and left to the next sweep."""

        def outcome(item: Any) -> str:
            name = printable(item.folder_uri if isinstance(item, Drop) else item.uri)
            try:
                return str(work(item))
            except S2VError as error:
                log.get_logger().warning("drop_postponed", folder=name, error=str(error))
            except Exception as defect:  # noqa: BLE001 - it must not keep the other folders waiting
                log.get_logger().exception("drop_postponed", folder=name)
                self._defects.append(defect)
            return "postponed"

        with ThreadPoolExecutor(_FOLDERS_AT_ONCE) as pool:
            return Counter(pool.map(outcome, items))

    def _is_ready(self, folder: DropFolder, now: datetime) -> bool:
        if not self._addressable(folder):
            log.get_logger().warning("drop_not_addressable", folder=printable(folder.uri))
            return False
        if (num_files := len(folder.files) + len(folder.ignored)) > MAX_FILES:
            log.get_logger().warning("drop_has_too_many_files", folder=printable(folder.uri), files=num_files)
            return False
        return folder.is_ready(
            now,
            settle_seconds=self._settings.drop_settle_seconds,
            abandoned_seconds=self._settings.drop_abandoned_seconds,
        )

    def _take(self, folder: DropFolder) -> str:
        """Claim one folder, with a job or as refused, and move it."""
        for _ in range(_CLAIMS_TRIED):
            drop, job = self._decide(folder)
            if self._drops.claim(drop, job):
                return self._finish(drop, [*folder.files.values(), *folder.ignored.values()])
        raise TransientError(
            "Other sweeps claimed the name of this drop or its job_id each time. The next sweep tries again."
        )

    def _decide(self, folder: DropFolder) -> tuple[Drop, NewJob | None]:
        """Return the claim of a folder with its job, or its refusal, by the present state of the database."""
        repetition, earlier_job_id = self._drops.earlier(folder.uri, folder.etag)
        drop_id = f"{folder.uri}@{folder.etag}" + (f"#{repetition}" if repetition else "")
        target_uri = self._free_target(self._accepted, folder)
        try:
            if earlier_job_id is not None:
                raise PermanentError(
                    f"Exactly these files were dropped here before and are job {earlier_job_id}: "
                    f"`s2v job {earlier_job_id}` shows it. Change a file for another video."
                )
            job_id, request = self._accept(folder, target_uri)
        except PermanentError as error:
            drop = self._record(folder, drop_id, self._free_target(self._rejected, folder), "refused")
            return replace(drop, error=_explanation(folder, error)), None
        drop = replace(self._record(folder, drop_id, target_uri, "claimed"), job_id=job_id)
        values = request.model_dump(mode="json", exclude_none=True)
        return drop, NewJob(job_id, values, folder.modified_at)

    def _accept(self, folder: DropFolder, target_uri: str) -> tuple[str, Request]:
        """Return job id and request of a folder; PermanentError without a valid request."""
        if bad := sorted(set(folder.files) - set(self._addressable(folder))):
            raise PermanentError(f"{', '.join(map(repr, bad[:5]))}: a name that S3 cannot address; rename it.")
        texts = DropTexts(self._text(folder, MARKER), self._text(folder, PROMPT))
        asked = request_of_drop(folder, texts, target_uri, self._settings.max_input_bytes)
        self._catalogue.check(asked.request)
        for field in URI_FIELDS:
            if uri := getattr(asked.request, field):
                self._store.access.check_input(parse_uri(uri))
        if self._drops.job_exists(asked.job_id):
            raise PermanentError(
                f"Job {asked.job_id} exists already: `s2v job {asked.job_id}` shows it. Choose another job_id."
            )
        return asked.job_id, asked.request

    def _text(self, folder: DropFolder, name: str) -> bytes | None:
        if name not in folder.files:
            return None
        size_bytes = folder.files[name].size_bytes
        if size_bytes > MAX_TEXT_BYTES:
            raise PermanentError(f"{name} has {size_bytes} bytes: expected at most {MAX_TEXT_BYTES}.")
        return self._store.get_bytes(folder.files[name].uri)

    def _free_target(self, parent_uri: str, folder: DropFolder) -> str:
        """Return the target of the folder: its own name, with a suffix if an earlier folder has that name."""
        name = plain_name(folder.name)
        repetitions = (f"{name}-{folder.etag[:8]}-{number}" for number in range(2, 1000))
        for candidate in (name, f"{name}-{folder.etag[:8]}", *repetitions):
            if not self._drops.is_target(f"{parent_uri}/{candidate}"):
                return f"{parent_uri}/{candidate}"
        raise PermanentError(f"{printable(folder.name)!r} was dropped a thousand times: expected another name.")

    def _record(self, folder: DropFolder, drop_id: str, target_uri: str, status: str) -> Drop:
        files = {
            name: {"etag": file.etag, "size_bytes": file.size_bytes, "target": plain_name(name)}
            for name, file in self._addressable(folder).items()
        }
        return Drop(
            drop_id=drop_id,
            folder_uri=folder.uri,
            target_uri=target_uri,
            etag=folder.etag,
            files=files,
            job_id=None,
            status=status,
            error=None,
        )

    def _addressable(self, folder: DropFolder) -> dict[str, ListedObject]:
        """Return the files whose names all stores interpret in the same way; the others cannot be moved."""
        found = {}
        for name, file in (folder.files | folder.ignored).items():
            with suppress(PermanentError):
                self._store.access.check_read(parse_uri(file.uri))
                found[name] = file
        return found

    def _finish(self, drop: Drop, present: Iterable[ListedObject] | None = None) -> str:
        """Move the files of a claim that are still there, and mark the claim as complete."""
        if present is None:
            present = self._store.listing(f"{drop.folder_uri}/")
        sources = []
        for item in present:
            file = drop.files.get(item.uri.removeprefix(f"{drop.folder_uri}/"))
            if file is not None and file["etag"] == item.etag:
                self._store.copy(item.uri, f"{drop.target_uri}/{file['target']}", size_bytes=item.size_bytes)
                sources.append(item.uri)
        if drop.error is not None:  # in place of the error.json of an earlier rejection, if the folder has one
            explanation = json.dumps(drop.error, indent=2, ensure_ascii=False).encode()
            self._store.put_bytes(f"{drop.target_uri}/error.json", explanation, "application/json")
        self._store.delete_all(sources)
        if drop.status == "claimed":
            self._drops.mark_accepted(drop.drop_id)
            log.get_logger().info("drop_accepted", folder=printable(drop.folder_uri), job_id=drop.job_id)
            return "accepted"
        self._drops.mark_rejected(drop.drop_id)
        log.get_logger().info(
            "drop_rejected", folder=printable(drop.folder_uri), target=drop.target_uri, error=drop.error
        )
        return "rejected"


def _explanation(folder: DropFolder, error: PermanentError) -> dict[str, Any]:
    """Return the content of error.json."""
    return {
        "error": str(error),
        "what_to_do": "Correct it and drop the folder again, with request.json written last.",
        "folder": folder.uri,
        "files": sorted(folder.files),
        "rejected_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
