"""Check inputs whose names are stored in another normal form of Unicode."""

from unicodedata import normalize

import pytest

from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.storage.inputs import find_input, same_name
from s2v_tasks.storage.s3 import ObjectStore

KEY = "Fotos für Ängström/Tōkyō ガ/한글 é.png"


def nfd(text: str) -> str:
    return normalize("NFD", text)


def put(store: ObjectStore, *keys: str) -> None:
    for key in keys:
        store.put_bytes(key, b"x", "image/png")


@pytest.mark.parametrize("stored", [KEY, nfd(KEY), f"{nfd('Fotos für Ängström')}/Tōkyō ガ/{nfd('한글 é.png')}"])
@pytest.mark.parametrize("named", [KEY, nfd(KEY), f"Fotos für Ängström/{nfd('Tōkyō ガ')}/한글 é.png"])
def test_an_object_is_found_in_whichever_form_its_name_is_stored(
    object_store: ObjectStore, stored: str, named: str
) -> None:
    """Each folder and the file name may be in either normal form."""
    put(object_store, stored, "Fotos.png")
    assert find_input(object_store, object_store.uri(named)) == object_store.uri(stored)


def test_the_exact_name_comes_first(object_store: ObjectStore) -> None:
    """Two objects whose names differ only in their form are two objects."""
    put(object_store, "é.png", nfd("é.png"))
    for key in ("é.png", nfd("é.png")):
        assert find_input(object_store, object_store.uri(key)) == object_store.uri(key)


def test_an_ambiguous_name_is_refused(object_store: ObjectStore) -> None:
    """A name that matches two objects in other forms is refused."""
    put(object_store, "ü é.png", nfd("ü é.png"))
    with pytest.raises(PermanentError, match="matches 2 objects whose names differ only in their Unicode normal form"):
        find_input(object_store, object_store.uri(f"{nfd('ü')} é.png"))


def test_a_folder_is_distinguished_from_a_missing_object(object_store: ObjectStore) -> None:
    """A name with objects below it is a folder; a name that is only a prefix of others is not."""
    put(object_store, "pictures/anna.png", "é.pngx")
    with pytest.raises(PermanentError, match="pictures is a folder, not a file"):
        find_input(object_store, object_store.uri("pictures"))
    for key in ("pictures/berta.png", "pic", "é.png"):
        assert find_input(object_store, object_store.uri(key)) is None


def test_only_inputs_are_found(object_store: ObjectStore) -> None:
    """A place that requests may not name is refused."""
    with pytest.raises(PermanentError, match="may not be read for a request"):
        find_input(object_store, "s3://somewhere-else/é.png")


def test_an_object_is_found_without_permission_to_list(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that permission S3 answers 403 for a missing object, and the other form is still found."""
    put(object_store, nfd("é.png"))
    exists = object_store.exists

    def forbidding(address: str) -> bool:
        if exists(address):
            return True
        raise ConfigurationError(f"{address}: access denied")

    def listing(prefix: str) -> None:
        raise ConfigurationError(f"{prefix}: access denied")

    monkeypatch.setattr(object_store, "exists", forbidding)
    monkeypatch.setattr(object_store, "listing", listing)
    assert find_input(object_store, object_store.uri("é.png")) == object_store.uri(nfd("é.png"))
    assert find_input(object_store, object_store.uri("a.png")) is None


def test_names_in_two_forms_are_the_same() -> None:
    """Two normal forms of one name are equal; names that only look alike are not."""
    assert same_name(f"s3://b/{KEY}", f"s3://b/{nfd(KEY)}")
    assert not same_name("s3://b/é.png", "s3://b/e.png")
