#!/usr/bin/env python3
"""Explicit model checker for deliveries: purges that nodes send to each other over the peer link.
Does a node ever get, as fresh, a response that is older than a purge in force there?

    python3 purge_deliveries.py             every case; exit status 0 if each ends as expected
    python3 purge_deliveries.py NAME ...    only these cases, with their traces

README.md says what is modelled. Needs nothing but Python 3.
"""
import sys
import time
from collections import deque, namedtuple
from dataclasses import dataclass, replace

# A node. `frames`: what it has put in force, in order: ('purge', id, from), ('stream', id, None) for the
# purge that the purge stream brings, or ('taken', sender, place). `disk`: how many of them are on disk. A place counts the purges among the frames. `taken`:
# for each peer the place up to which it is known to have the purges of this node, or 0. `copy`: (version, purges in force at its request).
Node = namedtuple("Node", "frames disk taken copy")
# `versions`: for each purge the origin's version as of its order, or 0. `answers`: of calls, not
# arrived yet: (sender, receiver, place, frames of the receiver that must be on disk before).
# `asked`: requests on their way: (asker, owner, purges in force at the asker then).
World = namedtuple("World", "nodes versions answers asked crashes")


@dataclass(frozen=True)
class Rule:
    """The rule under test; the defaults are the code's."""

    # A receiver sends on what it did not know.
    relays: bool = True
    # Deliveries are sent once they are 'on disk', or when 'in force'.
    sends: str = "on disk"
    # The answer comes once the purges are 'on disk', or when 'in force'.
    answers: str = "on disk"
    # An asker looks at the peer that it 'asks', or at 'none'.
    checks: str = "asks"
    nodes: int = 3
    purges: int = 1
    crashes: int = 1
    # A crash may lose the disk.
    loses_disk: bool = False
    # The purge stream has a purge, too. A node that has it requires it of the node that it asks.
    stream: bool = False
    # A node looks only at the last purge: one of the stream hides those that the other node may lack.
    hides: bool = False


def table(node):
    return frozenset(frame[1] for frame in node.frames if frame[0] != "taken")


def deliveries(frames):
    return [frame for frame in frames if frame[0] == "purge"]


def place_taken(node, sender):
    """How far `node` has taken the purges of `sender`."""
    return max((f[2] for f in node.frames if f[0] == "taken" and f[1] == sender), default=0)


def is_fresh(node):
    return node.copy is not None and table(node) <= node.copy[1]


def with_node(world, number, node):
    nodes = list(world.nodes)
    nodes[number] = node
    return world._replace(nodes=tuple(nodes))


def steps(world, rule):
    """All next worlds, each with what happens. A world of None is a broken promise."""
    numbers = range(rule.nodes)
    newest = sum(1 for version in world.versions if version)
    ordered = sum(1 for version in world.versions[: rule.purges] if version)
    streamed = rule.purges

    def versions_with(purge):
        return tuple(newest + 1 if p == purge else v for p, v in enumerate(world.versions))

    if rule.stream and not world.versions[streamed]:
        yield "the stream gets a purge", world._replace(versions=versions_with(streamed))
    for n in numbers:
        node = world.nodes[n]
        if ordered < rule.purges:
            frames = node.frames + (("purge", ordered, None),)
            next_world = with_node(world, n, node._replace(frames=frames))
            yield f"{n} orders purge {ordered}", next_world._replace(versions=versions_with(ordered))
        if rule.stream and world.versions[streamed] and streamed not in table(node):
            frames = node.frames + (("stream", streamed, None),)
            yield f"{n} reads the stream", with_node(world, n, node._replace(frames=frames))
        if node.disk < len(node.frames):
            yield f"{n} writes to its disk", with_node(world, n, node._replace(disk=node.disk + 1))
        if not is_fresh(node):
            copy = (newest, table(node))
            yield f"{n} fetches version {newest}", with_node(world, n, node._replace(copy=copy))
        if world.crashes:
            yield f"{n} crashes", crashed(world, n, False)
            if rule.loses_disk:
                yield f"{n} loses its disk", crashed(world, n, True)
        for m in numbers:
            if m != n:
                yield from between(world, rule, n, m)
    for answer in world.answers:
        n, m, place, needed = answer
        rest = world._replace(answers=world.answers - {answer})
        if world.nodes[m].disk >= needed or rule.answers == "in force":
            taken = list(world.nodes[n].taken)
            taken[m] = max(taken[m], place)
            node = world.nodes[n]._replace(taken=tuple(taken))
            yield f"{n} learns that {m} has taken {place}", with_node(rest, n, node)
    for asked in world.asked:
        yield answered(world, rule, *asked)


def between(world, rule, n, m):
    """What `n` does with `m`: a call with deliveries, and a request for the response."""
    node, peer = world.nodes[n], world.nodes[m]
    sent = node.frames[: node.disk] if rule.sends == "on disk" else node.frames
    end, first = len(deliveries(sent)), node.taken[m]
    known = table(peer)
    # Purges that came from the peer itself are not sent back.
    new = tuple(
        ("purge", purge, n)
        for _, purge, origin in deliveries(sent)[first:]
        if origin != m and purge not in known and (rule.relays or origin is None)
    )
    if end > first and not any(a[:3] == (n, m, end) for a in world.answers):
        frames = peer.frames + new
        if end > place_taken(peer, n):
            frames += (("taken", n, end),)
        called = with_node(world, m, peer._replace(frames=frames))
        answers = world.answers | {(n, m, end, len(frames))}
        yield f"{n} calls {m} with {len(new)} purges", called._replace(answers=answers)
    lacking = deliveries(node.frames)[node.taken[m] :]
    if not rule.relays:
        lacking = [frame for frame in lacking if frame[2] is None]
    covering = [frame for frame in node.frames if frame[0] != "taken"]
    is_hidden = rule.hides and covering and covering[-1][0] == "stream"
    may_ask = not lacking or is_hidden or rule.checks == "none"
    if may_ask and not is_fresh(node) and len(world.asked) < 1:
        asked = world.asked | {(n, m, table(node))}
        yield f"{n} asks {m}", world._replace(asked=asked)


def answered(world, rule, n, m, stamp):
    newest = sum(1 for version in world.versions if version)
    peer = world.nodes[m]
    is_met = rule.purges not in stamp or rule.purges in table(peer)
    copy = peer.copy if is_met and is_fresh(peer) else (newest, table(peer))
    version = copy[0]
    # A response to a request after a purge must be as new as the purge.
    if any(version < world.versions[purge] for purge in stamp):
        return f"{n} gets version {version} of {m} in spite of {sorted(stamp)}", None
    world = with_node(world, m, peer._replace(copy=copy))
    node = world.nodes[n]._replace(copy=(version, stamp))
    asked = world.asked - {(n, m, stamp)}
    return f"{n} gets version {version} of {m}", with_node(world, n, node)._replace(asked=asked)


def crashed(world, n, loses_disk):
    node = world.nodes[n]
    frames = () if loses_disk else node.frames[: node.disk]
    copy = None if loses_disk else node.copy
    left = Node(frames, len(frames), (0,) * len(node.taken), copy)
    answers = frozenset(a for a in world.answers if n not in a[:2])
    asked = frozenset(a for a in world.asked if n not in a[:2])
    world = with_node(world, n, left)
    return world._replace(answers=answers, asked=asked, crashes=world.crashes - 1)


def search(rule):
    """Breadth first. Returns the number of worlds, and the shortest trace to a broken promise."""
    node = Node((), 0, (0,) * rule.nodes, (0, frozenset()))
    versions = (0,) * (rule.purges + rule.stream)
    start = World((node,) * rule.nodes, versions, frozenset(), frozenset(), rule.crashes)
    came_from = {start: None}
    queue = deque([start])
    while queue:
        world = queue.popleft()
        for what, following in steps(world, rule):
            if following is None:
                trace = [what]
                while came_from[world]:
                    world, what = came_from[world]
                    trace.append(what)
                return len(came_from), trace[::-1]
            if following not in came_from:
                came_from[following] = (world, what)
                queue.append(following)
    return len(came_from), None


CODE = Rule()
CASES = [
    # name, rule, whether a promise breaks
    ("code-three-nodes", replace(CODE, crashes=0), False),
    ("code-two-crashes", replace(CODE, nodes=2, crashes=2), False),
    ("code-two-purges", replace(CODE, nodes=2, purges=2), False),
    ("without-relay", replace(CODE, relays=False, crashes=0), True),
    ("without-check", replace(CODE, checks="none", crashes=0), True),
    ("answered-before-disk", replace(CODE, answers="in force", nodes=2), True),
    ("lost-disk", replace(CODE, loses_disk=True), True),
    ("beside-the-stream", replace(CODE, nodes=2, stream=True), False),
    ("hidden-by-the-stream", replace(CODE, nodes=2, stream=True, hides=True, crashes=0), True),
]


def main(names):
    is_wrong = False
    for name, rule, breaks in CASES:
        if names and name not in names:
            continue
        began = time.monotonic()
        count, trace = search(rule)
        found = f"broken in {len(trace)} steps" if trace else "holds"
        print(f"{name}: {count} worlds, {found} ({time.monotonic() - began:.1f} s)", flush=True)
        if names and trace:
            print("".join(f"    {what}\n" for what in trace), end="")
        is_wrong |= bool(trace) != breaks
    return int(is_wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
