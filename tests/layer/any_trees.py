"""Hypothesis makes trees, and pairs of trees that have much in common."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from tests.layer.trees import Node, Spec

_NAMES = st.sampled_from([b"a", b"b", b"c", b"a-b", b"\xff\n", b"x" * 110])
_MTIMES = st.sampled_from(
    [0, 1, 1_700_000_000_000_000_000, 1_700_000_000_123_456_789, -1_500_000_000, 9_000_000_000 * 10**9]
)
_XATTRS = st.sampled_from(
    [(), ((b"user.k", b"v"),), ((b"user.k", b""), (b"trusted.t=", b"a=\n\0b")), ((b"trusted.overlay.opaque", b"y"),)]
)
_OWNERS = st.sampled_from([0, 1000, 3_000_000])


@st.composite
def _nodes(draw: st.DrawFn, kind: str) -> Node:
    return Node(
        kind,
        mode=draw(st.sampled_from([0o644, 0o4755, 0o600] if kind != "dir" else [0o755, 0o1777, 0o2750])),
        uid=draw(_OWNERS),
        gid=draw(_OWNERS),
        mtime=draw(_MTIMES),
        content=draw(st.sampled_from([b"", b"one", b"two", b"z" * 5000])),
        target=draw(st.sampled_from([b"a", b"/etc/passwd", b"../b", b"t" * 150])),
        xattrs=draw(_XATTRS) if kind in ("file", "dir") else (),
    )


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Make a small tree with everything in it, over few names, so that two of them have much in common."""
    spec: dict[bytes, Node] = {}
    directories = [b""]
    for _ in range(draw(st.integers(0, 10))):
        above = draw(st.sampled_from(directories))
        path = above + draw(_NAMES)
        if path in spec:
            continue
        files = sorted(name for name, node in spec.items() if node.kind in ("file", "link", "fifo"))
        kind = draw(
            st.sampled_from(["dir", "dir", "file", "file", "link", "fifo", "char"] + (["hard"] * 3 if files else []))
        )
        if kind == "hard":
            spec[path] = Node("hard", target=draw(st.sampled_from(files)))
            continue
        spec[path] = draw(_nodes(kind))
        if kind == "dir":
            directories.append(path + b"/")
    spec[b"."] = draw(_nodes("dir"))
    return spec


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Spec, Spec]:
    """Make a tree and a changed form of it, or two of them."""
    before = draw(specs())
    if draw(st.booleans()):
        return before, draw(specs())
    after = dict(before)
    for path in draw(st.lists(st.sampled_from(sorted(before)), max_size=3)):
        node = before[path]
        if node.kind == "hard" or any(other.target == path for other in before.values() if other.kind == "hard"):
            continue
        if path != b"." and not any(name.startswith(path + b"/") for name in after) and draw(st.booleans()):
            after.pop(path, None)
        else:
            after[path] = draw(_nodes(node.kind))
    for path, node in draw(specs()).items():
        above = path.rpartition(b"/")[0]
        placed = not above or (above in after and after[above].kind == "dir")
        if (
            path not in after
            and placed
            and (node.kind != "hard" or (node.target in after and after[node.target].kind == "file"))
        ):
            after[path] = node
    return before, after


def without_marks(spec: Spec) -> Spec:
    """Take away attributes that an overlay would understand."""
    return {
        path: replace(node, xattrs=tuple(pair for pair in node.xattrs if b"overlay" not in pair[0]))
        for path, node in spec.items()
    }
