"""Where credentials are found."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from layerfs.errors import Corrupt
from layerfs.registry.auth import _parameters
from layerfs.registry.credentials import Credentials, find_credentials

HELPER = """#!/bin/sh
read host
[ "$host" = registry.example.org ] || exit 1
echo '{"ServerURL": "x", "Username": "helped", "Secret": "word"}'
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the directory of docker's configuration, and a helper on PATH."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    (tmp_path / "bin").mkdir()
    helper = tmp_path / "bin/docker-credential-test"
    helper.write_text(HELPER)
    helper.chmod(0o755)
    return tmp_path


def keep(home: Path, **config: object) -> None:
    (home / "config.json").write_text(json.dumps(config))


def encoded(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def test_none() -> None:
    assert find_credentials("registry.example.org") is None


def test_docker_login(home: Path) -> None:
    keep(home, auths={"registry.example.org": encoded("me:pass:word"), "https://index.docker.io/v1/": encoded("hub:x")})
    assert find_credentials("registry.example.org") == Credentials("me", "pass:word")
    assert find_credentials("registry-1.docker.io") == Credentials("hub", "x")
    assert find_credentials("other.example.org") is None


def test_an_identity_token(home: Path) -> None:
    keep(home, auths={"registry.example.org": {"identitytoken": "abc"}})
    assert find_credentials("registry.example.org") == Credentials("", "", "abc")


@pytest.mark.parametrize("config", [{"credsStore": "test"}, {"credHelpers": {"registry.example.org": "test"}}])
def test_helpers(home: Path, config: dict[str, object]) -> None:
    keep(home, **config)
    assert find_credentials("registry.example.org") == Credentials("helped", "word")
    assert find_credentials("other.example.org") is None


@pytest.mark.parametrize(
    "config",
    [
        {"auths": {"registry.example.org": {"auth": "!"}}},
        {"auths": {"registry.example.org": encoded("nocolon")}},
        {"auths": []},
        {"credsStore": "../../bin/sh"},
    ],
)
def test_files_that_cannot_be_understood(home: Path, config: dict[str, object]) -> None:
    keep(home, **config)
    with pytest.raises(Corrupt):
        find_credentials("registry.example.org")


def test_the_first_file_that_knows_the_host(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(home, auths={"registry.example.org": encoded("docker:x")})
    own = home / "auth.json"
    own.write_text(json.dumps({"auths": {"registry.example.org": encoded("podman:y")}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(own))
    assert find_credentials("registry.example.org") == Credentials("podman", "y")


def test_credentials_are_not_shown() -> None:
    assert "word" not in repr(Credentials("me", "word", "word"))


def test_the_parameters_of_a_challenge() -> None:
    text = r'realm="https://a/b?c=d",service="x, y",scope="repository:a/b:pull,push",error=invalid,odd="a\"b"'
    assert _parameters(text) == {
        "realm": "https://a/b?c=d",
        "service": "x, y",
        "scope": "repository:a/b:pull,push",
        "error": "invalid",
        "odd": 'a"b',
    }
