"""A test's hand on the API server for tests: what it does is what a client sees."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.kube import recorded
from tests.kube.api.faults import Fault, away
from tests.kube.scripted import SPACE, Scripted, scripted, terminated

PODS = f"/api/v1/namespaces/{SPACE}/pods"


async def ask(api: Scripted, path: str, method: str = "GET", **body: Any) -> tuple[int, Any]:
    """Return an answer's status and its body."""
    headers = {"Authorization": "Bearer admin"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(method, api.url + path, json=body or None) as response,
    ):
        is_json = response.content_type == "application/json" and "watch" not in path
        return response.status, await response.json() if is_json else await response.text()


async def test_rules_come_before_all_else_and_faults_after_who_asks() -> None:
    """A rule sees every request by its words, and answers what it likes."""
    seen: list[str] = []

    async def rule(request: web.Request, what: str) -> web.Response | None:
        seen.append(what)
        return web.Response(status=418) if what == "get /version" else None

    async with scripted() as api:
        api.rules.append(rule)
        api.faults.append(away("list", times=1))
        assert (await ask(api, "/version"))[0] == 418
        assert [(await ask(api, PODS))[0] for _ in range(2)] == [503, 200]
        assert (await ask(api, "/no/such"))[0] == 404
    assert seen == list(api.server.asked) == ["get /version", "list pods", "list pods", "get /no/such"]


async def test_a_pods_life_by_hand() -> None:
    """Made, running, speaking, over; deleted while it runs it is gone when it ends."""
    async with scripted() as api:
        for name in ("kept", "deleted"):
            api.make(name)
            api.run(name)
        api.say("kept", b"one\ntwo")
        api.delete("deleted", 5)
        assert set(api.pods) == {"kept", "deleted"}
        api.end("deleted", 143)
        api.change("kept", "Running", terminated(0, at="2026-01-01T00:00:00Z"))
        api.end("kept", 3, message="last words")
        assert set(api.pods) == {"kept"}
        assert (await ask(api, f"{PODS}/kept/log?follow=true")) == (200, "one\ntwo\n")
        api.tell("kept", "Failed", "no such host", kind="Warning")
        _, told = await ask(api, f"/api/v1/namespaces/{SPACE}/events")
        assert [event["message"] for event in told["items"]] == ["no such host"]
        _, pod = await ask(api, f"{PODS}/kept")
        (state,) = [one["state"]["terminated"] for one in pod["status"]["containerStatuses"]]
        assert (pod["status"]["phase"], state["exitCode"], state["message"]) == ("Failed", 3, "last words")
        assert api.most_at_once() == 2
        with pytest.raises(NotImplementedError):
            await api.execute(pod, "main", ["true"])


async def test_streams_that_are_ended_and_cut() -> None:
    """Watches end cleanly, all at once; a log is hung up on after so many bytes; a silent watch says nothing."""
    async with scripted() as api:
        api.make("x")
        api.run("x")
        api.say("x", b"0123456789" * 10)
        version = api.storage.version
        api.faults.append(Fault("watch", frozen=True))
        asked = [
            asyncio.create_task(ask(api, f"{PODS}?watch=true&resourceVersion={version}")) for _ in range(2)
        ]
        while api.counts["watch pods"] < 2:
            await asyncio.sleep(0.01)
        api.end("x")
        await asyncio.sleep(0.05)
        api.end_watches()
        answers = [text for _, text in await asyncio.gather(*asked)]
        assert sorted(text.count('"Succeeded"') for text in answers) == [0, 1]
        api.faults.append(Fault("get", "pods/log", most_bytes=40))
        with pytest.raises(aiohttp.ClientPayloadError):
            await ask(api, f"{PODS}/x/log")
        assert (await ask(api, f"{PODS}/x/log?limitBytes=7")) == (200, "0123456")


async def test_rights_that_are_taken_away() -> None:
    """Refused, and told by a review."""
    async with scripted() as api:
        api.server.users["admin"].denied = {"list pods"}
        assert (await ask(api, PODS))[0] == 403
        review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        for verb, allowed in (("list", False), ("create", True)):
            spec = {"resourceAttributes": {"verb": verb, "resource": "pods"}}
            _, told = await ask(api, review, "POST", spec=spec)
            assert told["status"]["allowed"] is allowed


@pytest.mark.parametrize("name", ["log-gone-timestamps", "log-gone-follow", "log-gone-limitbytes"])
async def test_a_log_that_is_gone_is_answered_as_it_was_recorded(name: str) -> None:
    """The kubelet's words, status 200, whatever was asked for: no time, no newline, no limit."""
    request, answer = recorded.exchange(name)
    async with scripted() as api, aiohttp.ClientSession() as session:
        api.make("gone")
        api.run("gone")
        api.say("gone", b"hello")
        api.lose_log("gone", answer["text"])
        path = request["path"].replace("/rec/", "/space/")
        async with session.get(api.url + path, headers={"Authorization": "Bearer admin"}) as response:
            told = response.status, response.content_type, await response.text()
    assert told == (answer["status"], answer["headers"]["Content-Type"], answer["text"])
