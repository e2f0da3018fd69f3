"""The configuration of a bundle, as a function of image, wishes and host."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from layerfs.errors import InvalidArgument
from layerfs.image.config import ContainerConfig
from layerfs.kernel.userns import IdMap, IdRange
from layerfs.runtime import capabilities, seccomp
from layerfs.runtime.container import Bind, Container, Limits, Network
from layerfs.runtime.spec import Host, configuration
from layerfs.runtime.users import Account

IMAGE = ContainerConfig(entrypoint=("/init",), cmd=("serve", "-v"), env=("A=1", "PATH=/x", "broken"), workdir="/srv")
ROOT = Account(0, 0, (), "/root")
HOST = Host("x86_64")
ONE_ID = IdMap((IdRange(0, 1000, 1),), (IdRange(0, 1000, 1),))
MANY_IDS = IdMap((IdRange(0, 100_000, 65536),), (IdRange(0, 100_000, 65536),))


def made(
    host: Host = HOST,
    account: Account = ROOT,
    image: ContainerConfig = IMAGE,
    **wanted: Any,  # noqa: ANN401  of Container
) -> dict[str, Any]:
    return configuration(Container(**wanted), image, account, host)


def mount(document: dict[str, Any], target: str) -> dict[str, Any]:
    [found] = [one for one in document["mounts"] if one["destination"] == target]
    return dict(found)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({}, ["/init", "serve", "-v"]),
        ({"command": ("stop",)}, ["/init", "stop"]),
        ({"entrypoint": ("/bin/sh",)}, ["/bin/sh"]),
        ({"entrypoint": ("/bin/sh",), "command": ("-c", "id")}, ["/bin/sh", "-c", "id"]),
        ({"entrypoint": (), "command": ("id",)}, ["id"]),
    ],
)
def test_the_words_of_the_command(wanted: dict[str, Any], words: list[str]) -> None:
    assert made(**wanted)["process"]["args"] == words


def test_an_image_without_a_command() -> None:
    with pytest.raises(InvalidArgument, match="no command"):
        made(image=ContainerConfig())


@pytest.mark.parametrize("image", [ContainerConfig(cmd=("a\0b",)), ContainerConfig(cmd=("a",), env=("A=\0",))])
def test_words_that_no_process_can_be_given(image: ContainerConfig) -> None:
    with pytest.raises(InvalidArgument, match="NUL"):
        made(image=image)


def test_a_working_directory_that_is_not_absolute() -> None:
    with pytest.raises(InvalidArgument, match="not absolute"):
        made(image=ContainerConfig(cmd=("a",), workdir="../../etc"))


def test_the_environment_is_the_usual_one_then_the_images_then_the_callers() -> None:
    account = Account(7, 8, (9,), "/home/seven")
    process = made(account=account, env=("B=2", "A=3"), hostname="box", terminal=True)["process"]
    assert process["env"] == ["PATH=/x", "HOSTNAME=box", "TERM=xterm", "HOME=/home/seven", "A=3", "B=2"]
    assert process["user"] == {"uid": 7, "gid": 8, "additionalGids": [9]}
    assert process["terminal"] is True


def test_limits_become_those_of_control_groups() -> None:
    limits = Limits(memory=64 << 20, cpus=1.5, pids=10)
    resources = made(limits=limits, host=Host("x86_64", swap_counted=True))["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 << 20, "swap": 64 << 20}
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000}
    assert resources["pids"] == {"limit": 10}
    assert made(limits=limits)["linux"]["resources"]["memory"] == {"limit": 64 << 20}
    assert set(made()["linux"]["resources"]) == {"devices"}


@pytest.mark.parametrize("wrong", [{"memory": 4096}, {"cpus": 0.0}, {"cpus": float("nan")}, {"pids": 0}])
def test_limits_with_which_nothing_runs(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Limits(**wrong)


def test_a_network_of_its_own_unless_it_is_the_hosts() -> None:
    alone, host = made(), made(network=Network.HOST)
    assert {"type": "network"} in alone["linux"]["namespaces"]
    assert {"type": "network"} not in host["linux"]["namespaces"]
    assert mount(host, "/etc/resolv.conf")["options"] == ["rbind", "rprivate", "ro"]
    assert not [one for one in alone["mounts"] if one["destination"] == "/etc/resolv.conf"]


def test_an_ordinary_user_has_a_user_namespace_with_one_id() -> None:
    document = made(host=Host("x86_64", mapping=ONE_ID), network=Network.HOST)
    assert {"type": "user"} in document["linux"]["namespaces"]
    assert document["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 1000, "size": 1}]
    assert document["linux"]["resources"] == {}
    assert mount(document, "/sys")["source"] == "/sys"
    assert "gid=5" not in mount(document, "/dev/pts")["options"]
    assert not [one for one in document["mounts"] if one["type"] == "cgroup"]


def test_a_store_with_an_id_map_has_a_user_namespace_of_that_map() -> None:
    document = made(host=Host("x86_64", mapping=MANY_IDS))
    assert document["linux"]["gidMappings"] == [{"containerID": 0, "hostID": 100_000, "size": 65536}]
    assert "gid=5" in mount(document, "/dev/pts")["options"]


def test_somebody_who_is_in_a_user_namespace_makes_no_other() -> None:
    document = made(host=Host("x86_64", inside=True))
    assert {"type": "user"} not in document["linux"]["namespaces"]
    assert "uidMappings" not in document["linux"]


def test_binds_follow_the_containers_own_mounts() -> None:
    document = made(binds=(Bind("/data", "/srv", read_only=True), Bind("/other", "/dev/shm")))
    assert document["mounts"][-2:] == [
        {"destination": "/srv", "type": "none", "source": "/data", "options": ["rbind", "rprivate", "ro"]},
        {"destination": "/dev/shm", "type": "none", "source": "/other", "options": ["rbind", "rprivate", "rw"]},
    ]


@pytest.mark.parametrize(
    ("text", "bind"),
    [("/a:/b", Bind("/a", "/b")), ("/a:/b:ro", Bind("/a", "/b", read_only=True)), ("/a:/b:rw", Bind("/a", "/b"))],
)
def test_binds_as_words(text: str, bind: Bind) -> None:
    assert Bind.parse(text) == bind


@pytest.mark.parametrize("text", ["", "/a", "a:/b", "/a:b", "/a:/b:x", ":/b"])
def test_binds_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="SOURCE:TARGET"):
        Bind.parse(text)


def test_capabilities() -> None:
    assert capabilities.chosen() == tuple(sorted(capabilities.DEFAULT))
    assert capabilities.chosen(drop=["ALL"]) == ()
    assert capabilities.chosen(["net_admin"], ["ALL"]) == ("CAP_NET_ADMIN",)
    assert "CAP_CHOWN" not in capabilities.chosen(drop=["CAP_CHOWN"])
    assert len(capabilities.chosen(["ALL"])) == 41  # include/uapi/linux/capability.h of 6.18
    with pytest.raises(InvalidArgument, match="no capability"):
        capabilities.chosen(["CAP_FLY"])
    assert made(drop_capabilities=("all",))["process"]["capabilities"]["bounding"] == []


def test_the_filter_of_system_calls() -> None:
    usual = seccomp.profile(capabilities.DEFAULT, "x86_64")
    assert usual is not None
    allowed = set(usual["syscalls"][0]["names"])
    assert usual["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {"openat", "execve", "futex", "chroot", "io_submit"} <= allowed
    assert not {"mount", "bpf", "unshare", "kexec_load", "keyctl", "io_uring_setup", "userfaultfd", "ptrace"} & allowed
    assert {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS} in usual["syscalls"]
    wide = seccomp.profile(("CAP_SYS_ADMIN",), "aarch64")
    assert wide is not None
    assert {"mount", "clone3", "unshare"} <= set(wide["syscalls"][0]["names"])
    assert seccomp.profile((), "mips") is None
    assert "seccomp" not in made(confined=False)["linux"]
