"""Check that the next sweep of the drop folder completes the work of a killed one."""

from contextlib import suppress
from typing import Any

import pytest

from tests.integration.drop_folder import Folder, counts


class _KilledError(BaseException):
    """Takes the place of SIGKILL: nothing handles it."""


def killed_after(calls: int, folder: Folder, patch: pytest.MonkeyPatch) -> None:
    """Sweep, and stop before the call with this number to the store or the metadata store."""
    left = calls

    def counted(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                raise _KilledError
            left -= 1
            return real(*args, **kwargs)

        return call

    for target, names in [
        (folder.store, ["copy", "delete_all", "put_bytes", "get_bytes"]),
        (folder.drops, ["claim", "mark_accepted", "mark_rejected", "earlier"]),
    ]:
        for name in names:
            patch.setattr(target, name, counted(getattr(target, name)))
    with suppress(_KilledError):
        folder.sweep()


@pytest.mark.parametrize(("request_json", "calls"), [({}, 10), (b"{", 11)], ids=["accepted", "rejected"])
def test_a_sweep_that_is_killed_anywhere_is_finished_by_the_next(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, request_json: Any, calls: int
) -> None:
    """After a kill at any call to S3 or PostgreSQL, the next sweep leaves at most one job and loses no file."""
    for calls_before_the_end in range(calls):
        folder.drop(f"drop-{calls_before_the_end}", request_json)
        with monkeypatch.context() as patch:
            killed_after(calls_before_the_end, folder, patch)
        assert folder.sweep() in (counts(accepted=1), counts(rejected=1))
    assert folder.names("incoming/") == []
    place, num_files = ("accepted", 4) if request_json == {} else ("rejected", 5)
    assert len(folder.names(f"{place}/")) == len(folder.names()) == num_files * calls
    num_jobs = calls if request_json == {} else 0
    assert len(folder.jobs.recent()) == len(folder.queue.next(max_running=99)) == num_jobs
    folder.drop("drop-whole", request_json)
    with monkeypatch.context() as patch:
        killed_after(calls, folder, patch)
    assert folder.names("incoming/") == []  # so many calls are a whole sweep: none was left out above


def test_files_half_deleted_by_a_killed_sweep_are_no_new_drop(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that remain from an interrupted deletion are moved to their drop, however late."""
    folder.drop("anna", {})

    def only_the_request(addresses: list[str]) -> None:
        folder.store.delete(next(address for address in addresses if address.endswith("request.json")))
        raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(folder.store, "delete_all", only_the_request)
        with pytest.raises(_KilledError):
            folder.sweep()
    assert len(folder.names("incoming/")) == 3
    assert folder.queue.next(max_running=9) == []
    assert folder.sweep(seconds_later=10_000) == counts(accepted=1)
    assert len(folder.jobs.recent()) == 1
    assert folder.names("incoming/") == []


def test_a_file_that_is_overwritten_after_the_claim_stays(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only claimed files are moved: a new file of the same name is neither moved nor deleted."""
    folder.drop("anna", {})
    with monkeypatch.context() as patch:
        killed_after(4, folder, patch)  # behind the claim, before the first copy
    assert len(folder.queue.next(max_running=9)) == 0
    (claim,) = folder.drops.unfinished()
    etags = {name: file["etag"] for name, file in claim.files.items()}
    assert claim.files["speech.wav"] == {"etag": etags["speech.wav"], "size_bytes": 5, "target": "speech.wav"}
    assert len(set(etags.values())) == 4
    folder.put("anna/speech.wav", b"another speech")
    assert folder.sweep() == counts(accepted=1, unready=1)
    assert folder.names("incoming/") == ["incoming/anna/speech.wav"]
    assert folder.store.get_bytes(f"{folder.uri}/incoming/anna/speech.wav") == b"another speech"
    assert "accepted/anna/speech.wav" not in folder.names("accepted/")
