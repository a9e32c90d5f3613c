"""Check the log lines of housekeeping."""

from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from s2v_tasks.housekeeping import Differences, Findings
from s2v_tasks.storage.objects import ListedObject


@pytest.mark.parametrize(("applied", "kind"), [(False, "would_delete"), (True, "delete")])
def test_the_log_has_the_first_hundred_of_each_kind(applied: bool, kind: str) -> None:
    """The log has a hundred entries of each kind and the total count; differences are logged in a dry run, too."""
    objects = tuple(ListedObject(f"s3://b/{k}", 1, datetime.now(UTC), "e") for k in range(103))
    differences = Differences(("s3://b/lost\n",), (), (), ())
    with capture_logs() as lines:
        Findings(objects, (), (), differences).log(applied=applied)
    assert [line["count"] for line in lines if line["event"] == kind and "count" in line] == [103]
    assert [line["what"] for line in lines if line["event"] == kind and "what" in line] == [
        f"s3://b/{k}" for k in range(100)
    ]
    assert [line["what"] for line in lines if line["event"] == "rows_without_object" and "what" in line] == [
        "s3://b/lost\\n"
    ]
