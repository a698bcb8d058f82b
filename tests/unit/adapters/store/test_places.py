"""Addresses of remote stores: what is read, what is refused, and that no password is shown."""

from __future__ import annotations

import pytest

from datatask.adapters.store.places import BUCKETS, Place, check_endpoint, library, place
from datatask.schema.errors import InvalidValueError, NotInstalledError

ALL = (*BUCKETS, "mongodb", "docker")


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("s3://my-bucket", Place("s3", "my-bucket")),
        ("s3://my-bucket/", Place("s3", "my-bucket")),
        ("s3://my-bucket/a/b/", Place("s3", "my-bucket", "a/b")),
        ("az://container/a%20b", Place("az", "container", "a%20b")),
        ("mongodb://host:27017/jobs.input", Place("mongodb", "host:27017", "jobs.input")),
        ("mongodb://ann@host/jobs.input", Place("mongodb", "host", "jobs.input", "ann")),
        ("docker://localhost:5000/team/name", Place("docker", "localhost:5000", "team/name")),
    ],
)
def test_an_address_is_scheme_host_and_path(url: str, read: Place) -> None:
    assert place(url, ALL, "R") == read
    assert place(str(read), ALL, "R") == read


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("my-bucket", "of another kind"),
        ("http://my-bucket", "of another kind"),
        ("gs://my-bucket", "of another kind"),
        ("s3://", "names no host"),
        ("s3://a", "no bucket of that name"),
        ("s3://my_bucket!", "no bucket of that name"),
        ("s3://my-bucket/a//b", "an empty part"),
        ("s3://my-bucket/a/../b", "an empty part, '.' or '..'"),
        ("s3://key@my-bucket/a", "no bucket of that name"),
        ("s3://my-bucket/a?X-Amz-Signature=SECRET", "has a query"),
        ("s3://my-bucket/a#SECRET", "has a query"),
        ("s3://ann:SECRET@my-bucket/a", "has a password in it"),
        ("mongodb://ann:SECRET@host/jobs.input", "has a password in it"),
        ("s3://[SECRET", "cannot be read"),
    ],
)
def test_a_bad_address_is_refused_in_one_line_without_its_secrets(url: str, what: str) -> None:
    with pytest.raises(InvalidValueError, match=what) as refused:
        place(url, ALL, "BucketRepository")
    text = str(refused.value)
    assert text.startswith("BucketRepository: ")
    assert "\n" not in text
    if "[" not in url:
        assert "SECRET" not in text


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="url is 5"):
        place(5, ALL, "R")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url", ["localhost:9000", "s3://host", "http://", "http://key:SECRET@host", "http://h?SECRET=1"]
)
def test_an_endpoint_is_a_plain_web_address(url: str) -> None:
    check_endpoint("endpoint", "http://127.0.0.1:9000", "R")
    with pytest.raises(InvalidValueError, match="not a plain web address") as refused:
        check_endpoint("endpoint", url, "R")
    assert "SECRET" not in str(refused.value)


def test_a_library_that_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(NotInstalledError, match=r"nosuch; pip install 'datatask-engine\[s3\]'"):
        library("nosuch.part", "s3", "s3://my-bucket")
