"""Tags of images in a real registry, and in one that pages and asks for tokens."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from datatask import DockerRepository, History, InProcessSyncTask, LogMetadataRepository, Pipeline, Session
from datatask.adapters.store import resuming
from datatask.adapters.store.inputs import NotPermittedError
from datatask.schema.errors import InvalidValueError, StoreError, TemporaryError
from datatask.schema.messages import Write
from tests.proxy import Answer, between
from tests.registry_kit import PASSWORD, Paging, RealRegistry, paging, running
from tests.run_kit import until

real = pytest.mark.server("docker-registry")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    with running(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resuming, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(resuming, "PAUSE_SECONDS_MAX", 0.01)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


async def tags(repository: DockerRepository) -> list[str]:
    return sorted([job async for job in repository])


@real
async def test_tags_are_jobs_and_others_are_told_by_name(
    registry: RealRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    image = registry.image()
    repository = DockerRepository(f"docker://{registry.host}/{image}")
    assert await tags(repository) == [], "an image that is unknown has none"
    registry.push(image, "a", "b.1", "_x", "y-")
    with caplog.at_level(logging.WARNING, logger="datatask.repository"):
        assert await tags(repository) == ["a", "b.1"]
    assert sum("'_x'" in record.getMessage() for record in caplog.records) == 1
    assert (await repository.contains("a"), await repository.contains("c")) == (True, False)
    assert await repository.info("a") == {
        "withdomain": f"{registry.host}/{image}:a",
        "withoutdomain": f"{image}:a",
    }


@real
async def test_a_tag_is_deleted_and_others_of_the_same_image_stay(registry: RealRegistry) -> None:
    """Debian's registry refuses to delete by tag, and by digest takes away all tags of the image."""
    image = registry.image()
    digest = registry.push(image, "a", "b", "c")
    repository = DockerRepository(f"docker://{registry.host}/{image}")
    for _ in range(2):
        await repository.delete("a")
        assert await tags(repository) == ["b", "c"]
    assert registry.digest(image, "b") == registry.digest(image, "c") == digest
    await repository.delete("b")
    await repository.delete("c")
    assert registry.tags(image) is None, "this registry says null for none"
    assert await tags(repository) == []
    await repository.delete("never")


@real
async def test_a_registry_that_deletes_nothing_keeps_the_tag_as_it_is(tmp_path: Path) -> None:
    with running(tmp_path, deletes=False) as registry:
        digest = registry.push("image", "a")
        repository = DockerRepository(f"docker://{registry.host}/image")
        with pytest.raises(StoreError, match="the registry deletes nothing"):
            await repository.delete("a")
        assert (registry.tags("image"), registry.digest("image", "a")) == (["a"], digest)


@real
async def test_who_may_not_list_cannot_tell_and_logins_come_from_docker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, login=True) as registry:
        registry.push("image", "a")
        for attempt in ("contains", "delete"):
            with pytest.raises(NotPermittedError, match="does not accept the credentials"):
                await getattr(DockerRepository(f"docker://{registry.host}/image"), attempt)("a")
        with pytest.raises(NotPermittedError):
            await tags(DockerRepository(f"docker://{registry.host}/image"))
        (tmp_path / "config.json").write_text(
            json.dumps({"auths": {registry.host: {"auth": registry.login}}})
        )
        repository = DockerRepository(f"docker://{registry.host}/image")
        assert await tags(repository) == ["a"]
        await repository.delete("a")
        assert await tags(repository) == []
        wrong = {"auths": {registry.host: {"username": "me", "password": f"not {PASSWORD}"}}}
        monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps(wrong))
        with pytest.raises(NotPermittedError) as caught:
            await tags(DockerRepository(f"docker://{registry.host}/image"))
        assert PASSWORD not in str(caught.value)


@real
async def test_a_script_for_pydatatask_hands_over_its_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from docker_registry_client_async import DockerRegistryClientAsync

    monkeypatch.setattr(DockerRegistryClientAsync, "DEFAULT_PROTOCOL", "http")
    with running(tmp_path, login=True) as registry:
        session = Session()

        @session.resource
        async def client() -> AsyncIterator[Any]:
            async with DockerRegistryClientAsync(credentials_store=tmp_path / "none.json") as found:
                await found.add_credentials(credentials=registry.login, endpoint=registry.host)
                yield found

        registry.push("image", "a", "b")
        images = DockerRepository(client, registry.host, "image")
        done: list[str] = []
        task = InProcessSyncTask("run", LogMetadataRepository("done"))
        task.link("images", images, is_input=True)

        @task
        async def work(job: str, images: DockerRepository) -> None:
            done.append((await images.info(job))["withdomain"])

        async with Pipeline([task], session, [], log=f"sqlite:///{tmp_path / 'log.db'}") as pipeline:
            await pipeline.run()
            assert sorted(done) == [f"{registry.host}/image:a", f"{registry.host}/image:b"]
            assert await tags(images) == ["a", "b"]
            await images.delete("a")
            assert await tags(images) == ["b"]


@real
async def test_what_is_pushed_runs_once_and_is_found_at_the_interval(
    registry: RealRegistry, tmp_path: Path
) -> None:
    image = registry.image()
    registry.push(image, "a")
    task = InProcessSyncTask("run", LogMetadataRepository("done"))
    task.link("image", DockerRepository(f"docker://{registry.host}/{image}", poll_seconds=0.1), is_input=True)
    done: list[str] = []

    @task
    async def work(job: str, image: DockerRepository) -> None:
        done.append(job)

    async with Pipeline([task], Session(), [], log=f"sqlite:///{tmp_path / 'log.db'}") as pipeline:
        serving = asyncio.create_task(pipeline.run(forever=True))
        await until(lambda: done == ["a"])
        registry.push(image, "late", content="y")
        await until(lambda: done == ["a", "late"])
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    with History(tmp_path / "log.db") as history:
        assert [run["job"] for run in history.runs()] == ["a", "late"]


@real
async def test_a_fifth_of_the_requests_refused_for_now_makes_no_wrong_verdict(registry: RealRegistry) -> None:
    image = registry.image()
    names = [f"t{n}" for n in range(10)]
    registry.push(image, *names)
    troubles = [Answer(429), Answer(500), Answer(503)]

    def script(method: str, path: str, number: int) -> Any:
        return troubles[number % 3] if number % 5 == 0 else None

    with between(registry.port, script) as proxy:
        repository = DockerRepository(f"docker://127.0.0.1:{proxy.port}/{image}")
        for name in names[:5]:
            assert await repository.contains(name)
            await repository.delete(name)
            assert not await repository.contains(name)
        assert await tags(repository) == names[5:]
        assert proxy.struck > 5


@real
async def test_a_listing_that_never_works_raises_and_none_is_taken_for_gone(registry: RealRegistry) -> None:
    with between(registry.port, lambda method, path, number: Answer(503)) as proxy:
        with pytest.raises(TemporaryError, match="it answers 503"):
            await tags(DockerRepository(f"docker://127.0.0.1:{proxy.port}/image"))
        with pytest.raises(TemporaryError):
            await DockerRepository(f"docker://127.0.0.1:{proxy.port}/image").contains("a")


@pytest.mark.parametrize("count", [1, 100, 101, 5_001])
async def test_pages_follow_the_link_as_the_registry_wrote_it(count: int) -> None:
    names = [f"t{n:05}" for n in range(count)]
    with paging(Paging(names)) as registry:
        assert await tags(DockerRepository(f"docker://{registry.host}/image")) == names
        assert len(registry.asked) == -(-count // 100)


async def test_tags_null_are_none() -> None:
    with paging(Paging(None)) as registry:
        assert await tags(DockerRepository(f"docker://{registry.host}/image")) == []


async def test_a_token_that_ends_is_renewed_during_a_listing_and_during_a_push() -> None:
    names = [f"t{n:03}" for n in range(150)]
    with paging(Paging(names[:], size=10, uses=3, deletes_tags=False)) as registry:
        repository = DockerRepository(f"docker://{registry.host}/image")
        assert await tags(repository) == names
        assert len(registry.given) == 5
        await repository.delete("t000")
        assert await tags(repository) == names[1:]
        assert "repository:image:pull,push,delete" in registry.given


async def test_a_registry_that_takes_no_token_is_asked_twice_and_refused() -> None:
    with paging(Paging(["a"], uses=-1)) as registry:
        with pytest.raises(NotPermittedError):
            await tags(DockerRepository(f"docker://{registry.host}/image"))
        assert [line.split("?")[0] for line in registry.asked] == [
            "GET /v2/image/tags/list",
            "GET /token",
            "GET /v2/image/tags/list",
        ]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("docker://host",), "no image's name"),
        (("docker://host/Image",), "no image's name"),
        (("docker://host/image:tag",), "no image's name"),
        (("docker://me:hunter2@host/image",), "has a password in it"),
        (("docker://host/image?password=hunter2",), "has a query"),
        (("https://host/image",), "of another kind"),
        (("docker://host/image", "host", "image"), "the address names the domain"),
        ((dict,), "no host"),
        ((dict, "host/x", "image"), "no host"),
        ((dict, "host", "../image"), "no image's name"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line_that_shows_no_secret(arguments: Any, what: str) -> None:
    with pytest.raises(InvalidValueError, match=what) as caught:
        DockerRepository(*arguments)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_value_is_refused_with_the_remedy() -> None:
    store = DockerRepository("docker://host/image").store
    with pytest.raises(InvalidValueError, match="images are pushed by what runs"):
        await store.put(Write(repository="r", job="a", data=b""))
