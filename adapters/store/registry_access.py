"""Who we are to an image registry: logins as Docker keeps them, and tokens that registries give for them.

In: a registry's host, and its challenge (`WWW-Authenticate`). Out: the value of an `Authorization` header. Logins are those of
`$DOCKER_AUTH_CONFIG`, of `config.json` in `$DOCKER_CONFIG` or `~/.docker`, and of the credential helpers named there; none is kept or told.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

HELPER_SECONDS = 30.0
HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_HUB_KEY = "https://index.docker.io/v1/"
_PARAMETER = re.compile(r'(\w+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')


def login(host: str) -> str:
    """Return `user:password` in base64 for a registry, "" for none."""
    names = (
        (_HUB_KEY, *HUB)
        if host in HUB
        else (host, f"https://{host}", f"http://{host}", f"https://{host}/v1/")
    )
    for config in _configs():
        auths, helpers = config.get("auths") or {}, config.get("credHelpers") or {}
        for name in names:
            entry = auths.get(name) or {}
            if entry.get("auth"):
                return str(entry["auth"])
            if entry.get("username") and entry.get("password"):
                return _joined(entry["username"], entry["password"])
            helper = helpers.get(name) or (config.get("credsStore") if name in auths else "")
            if helper and (found := _helped(str(helper), name)):
                return found
    return ""


def _configs() -> list[dict[str, Any]]:
    texts = [os.environ.get("DOCKER_AUTH_CONFIG", "")]
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    try:
        texts.append((Path(folder) / "config.json").read_text())
    except OSError:
        pass
    found = []
    for text in texts:
        try:
            config = json.loads(text or "{}")
        except ValueError:
            continue
        found.append(config if isinstance(config, dict) else {})
    return found


def _helped(helper: str, name: str) -> str:
    program = shutil.which(f"docker-credential-{helper}")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, "get"], input=name.encode(), capture_output=True, timeout=HELPER_SECONDS, check=True
        )
        answer = json.loads(done.stdout)
        return _joined(answer["Username"], answer["Secret"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return ""


def _joined(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def challenge(header: str) -> tuple[str, dict[str, str]]:
    """Return the kind of a challenge (`basic`, `bearer`), and its parameters."""
    kind, _, rest = header.strip().partition(" ")
    return kind.lower(), {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(rest)}


def token_address(parameters: dict[str, str]) -> str:
    """Return where a token for a challenge is to be asked for."""
    asked = {name: parameters[name] for name in ("service", "scope") if parameters.get(name)}
    realm = parameters.get("realm", "")
    return f"{realm}{'&' if '?' in realm else '?'}{urlencode(asked)}"
