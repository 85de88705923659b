#!/usr/bin/env python3
"""Explicit model checker for purges across hops: does a node ever serve, as fresh, a response that
is older than a purge in force there, when responses travel from cache to cache?

    python3 purge_hops.py             every case; exit status 0 if each ends as expected
    python3 purge_hops.py --list      the names of the cases
    python3 purge_hops.py NAME ...    only these cases, with their traces

README.md says what is modelled, what is left out and why that is sound. Needs nothing but Python 3.
"""
import argparse
import sys
import time
from collections import namedtuple
from dataclasses import dataclass, replace

# ------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Rule:
    """The rule under test. The defaults are the repaired rule."""

    # What a requirement names, and when an owner meets it:
    # 'entry'   the asker's history and its last entry by id; the owner is in that history and has
    #           itself applied that very entry
    # 'id'      as 'number', but where the numbers are equal the ids must be equal too
    # 'number'  the epoch that the last entry carries, and its number; the owner has that epoch and
    #           at least that number (the planned rule)
    # 'ignored' the owner does not look
    position: str = "entry"
    # A node whose last entry carries another epoch than the history it has joined has no position.
    joined_history: bool = True
    # The name of that history survives a crash. Otherwise it is taken from the last entry.
    durable_history: bool = True
    # A covering purge that was ordered at the asker: ask the origin, 'until it is read back' from
    # the stream, 'until it is published', or 'never'.
    outbox: str = "until it is read back"
    # The same for a purge that came by wake-up and was not read from the stream yet:
    # 'listed' (durably), 'listed in memory', 'listed until another history', 'not listed'
    wakeups: str = "listed"
    # Which fills in flight a peer's request may join: 'not overtaken', 'any'
    join: str = "not overtaken"
    # What an owner sends on when it does not meet the requirement:
    # 'both' requirements, its own and the asker's; its 'own'; the 'larger'; to the 'origin'
    forward: str = "both"
    # An answer that is stale by a purge at the owner says so.
    marks_stale: bool = True
    # In which order the asker reads: Sequence, List (outbox and wake-ups), Position.
    reads: str = "SLP"
    # Of the two positions of a node (one moves before a purge is in force, one after).
    asker_position: str = "early"
    owner_position: str = "late"
    # Whether the owner looks for a stored response before or after it checks the requirement.
    lookup: str = "after"
    # What counts towards "applied by all": 'receipts', or 'places' in the stream too.
    complete: str = "receipts"
    # A node that joins another history asks only the origin until it has read a soft purge of
    # everything there that was published later: its 'own', or that of 'any' node with a number above
    # that of the last entry when it had joined. 'none': it goes on at once.
    fence: str = "none"
    # A purge that came as a wake-up and that the stream lost is published by the nodes that have it.
    adopts: bool = True
    # A read that finds nothing although the last heartbeat told of a later entry: that entry is
    # gone, and another node may have read it. 'purge' softly purges everything, 'trust' takes the
    # place of that entry.
    vanished: str = "purge"


@dataclass(frozen=True)
class World:
    """What may happen."""

    purges: int = 1  # that cover the key
    fillers: int = 1  # that do not, but take a place in the stream
    shield: bool = True  # the chain is A, B, S, origin; otherwise A, B, origin
    wakeups: bool = True
    loss: bool = True  # Redis loses its last entries, or everything
    losses: int = 1  # as often as that
    trim: bool = False  # Redis removes its first entries; once
    split: bool = False  # instead: a failover, with nodes that go on using the old primary
    crash: bool = True  # of one node, once
    stale: bool = True  # owners may answer with what is stale by a purge (soft purges)
    micro: bool = True  # applying and asking take several steps, which interleave
    appends: int = 3  # entries ever appended to the stream
    strict: bool = False  # count from when the purge was applied at the serving node
    reduced: bool = True  # leaves out what can't matter (README.md); False to check that it can't


# ---------------------------------------------------------------------------------------- states

A, B, S = 0, 1, 2
NAME = "ABS"

# ver: covering purges ordered so far, and so the origin's version.  orderers: of each, 'A' 'B' 'S'
# or 'C'.  places: where each was last seen in the stream.  done: acknowledged by all.  published:
# ever (a wake-up may come late).  servers: (epoch, entries); two after a split.  trimmed: how many
# entries at the beginning can't be read any more.  lost: how often Redis has lost entries.
Shared = namedtuple(
    "Shared", "ver orderers places done published next_id lost crashed fillers servers trimmed"
)
# force, outbox, sent, listed: sets of purges, as bits.  early, late: positions (epoch, number or
# -1, id).  ring: ids of applied entries.  history: the one joined last.  phase 0: idle; 1: the
# early position has moved; 2: the purge is in force.  pending: what is being applied.  head: after a
# gap, number and id of the last entry as the heartbeat told them.  fence 0: none is needed; 1: needed;
# 2: published.  after: the number that the fence must be above, or -1.
Node = namedtuple(
    "Node", "force outbox sent listed early late ring history phase pending server fence head after"
)
# reads: how many of the three were done.  stage: READING .. JOINED.  ok: no covering purge came
# into force since the sequence was read.  need: the latest purge in force then.  extra: of a
# forwarded request, the requirement of the one it was forwarded for.  seen: the owner looked.
Ask = namedtuple("Ask", "reads stage ok need wanted target extra seen")
READING, SENT, ACCEPTED, JOINED = 0, 1, 2, 3
# The response that is followed: where, which version, whether the purge table there lets it be
# used, whether it is still in flight.  missing: nodes that had not applied the purge at its birth.
Response = namedtuple("Response", "at version ok in_flight missing")

FILLER, SOFT_ALL = -1, 99
START = (1, 0, 0)
FRESH_NODE = Node(0, 0, 0, 0, START, START, 1, 1, 0, 0, 0, 0, None, -1)


def initial(world):
    count = 3 if world.shield else 2
    none = tuple(None for _ in range(world.purges))
    shared = Shared(0, none, none, 0, 0, 1, 0, 0, world.fillers, ((1, ()),), 0)
    return (shared, (FRESH_NODE,) * count, None, None, None)


def latest(force):
    """The number of the latest purge in a set: what a response's version must reach."""
    return force.bit_length()


# ----------------------------------------------------------------------------------- transitions


class Model:
    def __init__(self, world, rule):
        self.world = world
        self.rule = rule

    # -- small helpers. A state is (shared, nodes, ask of A, ask of B, response).

    @staticmethod
    def put(nodes, at, node):
        return nodes[:at] + (node,) + nodes[at + 1 :]

    @staticmethod
    def spoil(at, asks, response):
        """A covering purge came into force at a node: nothing from before is usable there."""
        a, b = asks
        if at == A and a is not None and a.need is not None:
            a = a._replace(ok=False)
        if at == B and b is not None and b.need is not None:
            b = b._replace(ok=False)
        if response is not None and response.at == at:
            response = response._replace(ok=False)
        return a, b, response

    def tidy(self, shared, nodes, a, b, response):
        """Drops what can't matter any more. None: nothing can go wrong from here."""
        world, rule = self.world, self.rule
        places = rule.complete == "places"
        if response is not None:
            if response.version == world.purges and not world.strict:
                response = None
            elif not response.ok:
                unmarked = world.stale and not rule.marks_stale and not response.in_flight
                joined = rule.join == "any" and response.in_flight
                seen = a is not None and a.seen and a.target == response.at
                seen |= b is not None and b.seen and b.target == response.at
                if not (unmarked or joined or seen):
                    response = None
        if response is None and shared.ver == world.purges and not world.strict:
            return None
        if world.reduced:
            if response is not None and response.at == A and not places and not world.strict:
                return None  # The check was made when it came.
            if response is not None and response.in_flight and rule.join != "any":
                # Matters to a crash alone, and that it is lost then helps nothing to go wrong.
                response = response._replace(in_flight=False)
            if a is not None and a.need is not None and not world.strict:
                if response is None or response.version >= a.need:
                    a = None  # No answer can be too old for this request.
            if b is not None and b.need is not None and not b.ok and rule.join != "any":
                if a is None or a.stage != JOINED:
                    b = None  # Its answer can't be used by a later request.
        if response is not None:
            if response.at == A:
                a = b = None
            elif response.at == B:
                b = None
                if a is not None and (a.stage == JOINED or a.target == S):
                    a = None
                if world.reduced and len(nodes) == 3 and not places:
                    shared, nodes = self.without_shield(shared, nodes)
        if places:
            done = shared.done
            for k in range(shared.ver):
                if not done >> k & 1 and self.applied_by_all(shared, nodes, k):
                    done |= 1 << k
            if done != shared.done:
                shared = shared._replace(done=done)
        return (shared, nodes, a, b, response)

    @staticmethod
    def without_shield(shared, nodes):
        """The response is at B: S matters as one that orders purges alone, and that C does too."""
        orderers = tuple("C" if name == "S" else name for name in shared.orderers)
        return shared._replace(orderers=orderers), nodes[:2]

    def applied_by_all(self, shared, nodes, k):
        place = shared.places[k]
        for node in nodes:
            if node.force >> k & 1:
                continue
            if self.rule.complete == "places" and place is not None:
                epoch, number, _ = node.late
                if epoch == place[0] and number >= place[1]:
                    continue
            return False
        return True

    def broken(self, state):
        """Which promise a state breaks, if any."""
        shared, nodes, _, _, response = state
        if response is None or not response.ok:
            return None
        node = nodes[response.at]
        if response.version < latest(node.force):
            return f"P1: {NAME[response.at]} serves version {response.version} as fresh after purge {latest(node.force)}"
        if response.version < latest(shared.done):
            return f"P2: {NAME[response.at]} serves version {response.version} as fresh after purge {latest(shared.done)} was acknowledged by all"
        if self.world.strict and node.force and response.missing >> response.at & 1:
            return f"P1 read literally: {NAME[response.at]} serves a response whose origin request began before {NAME[response.at]} applied the purge"
        return None

    # -- all successors: (label, state or None, what broke on the way or None)

    def successors(self, state):
        out = []
        for at in range(len(state[1])):
            self.bus(state, at, out)
        self.outside(state, out)
        self.responses(state, out)
        return out

    def emit(self, out, label, shared, nodes, a, b, response, broke=None):
        if broke:
            out.append((label, (shared, nodes, a, b, response), broke))
            return
        state = self.tidy(shared, nodes, a, b, response)
        if state is not None:
            out.append((label, state, self.broken(state)))

    # -- the purge bus

    def bus(self, state, at, out):
        shared, nodes, a, b, response = state
        node = nodes[at]
        world, rule = self.world, self.rule
        name = NAME[at]
        # A purge by the local admin API: in force, durable and in the outbox in one step.
        if shared.ver < world.purges:
            k = shared.ver
            bit = 1 << k
            moved = node._replace(force=node.force | bit, outbox=node.outbox | bit)
            told = shared._replace(
                ver=k + 1, orderers=shared.orderers[:k] + (name,) + shared.orderers[k + 1 :]
            )
            for born, prefix in self.births(state):
                self.emit(
                    out,
                    (prefix + "the origin changes to version %s; purge %s is ordered at %s, in force and acknowledged there", k + 1, k + 1, name),
                    told,
                    self.put(nodes, at, moved),
                    *self.spoil(at, (a, b), born),
                )
        # The outbox is published.
        if shared.next_id <= world.appends:
            for k in range(shared.ver):
                if (node.outbox & ~node.sent) >> k & 1:
                    appended = self.append(shared, node.server, k)
                    moved = node._replace(sent=node.sent | 1 << k)
                    self.emit(
                        out,
                        ("%s publishes purge %s", name, k + 1),
                        appended._replace(published=shared.published | 1 << k),
                        self.put(nodes, at, moved),
                        a,
                        b,
                        response,
                    )
            entries = shared.servers[node.server][1]
            for k in range(shared.ver):
                if rule.adopts and shared.lost and (node.listed & ~node.sent) >> k & 1:
                    if any(entry[0] == k for entry in entries):
                        continue
                    self.emit(
                        out,
                        ("%s publishes purge %s, which the stream has lost", name, k + 1),
                        self.append(shared, node.server, k),
                        self.put(nodes, at, node._replace(sent=node.sent | 1 << k)),
                        a,
                        b,
                        response,
                    )
            if node.fence == 1 and (node.after >= 0 or rule.fence == "own"):
                self.emit(
                    out,
                    ("%s publishes its soft purge of everything in the new history", name),
                    self.append(shared, node.server, -2 - at),
                    self.put(nodes, at, node._replace(fence=2)),
                    a,
                    b,
                    response,
                )
        # A wake-up: the same record by another way, in no order, without a place.
        if world.wakeups:
            for k in range(shared.ver):
                if (shared.published & ~node.force) >> k & 1:
                    listed = node.listed if rule.wakeups == "not listed" else node.listed | 1 << k
                    moved = node._replace(force=node.force | 1 << k, listed=listed)
                    self.emit(
                        out,
                        ("%s applies purge %s by wake-up", name, k + 1),
                        shared,
                        self.put(nodes, at, moved),
                        *self.spoil(at, (a, b), response),
                    )
        if node.phase:
            self.go_on(state, at, out)
        else:
            self.read(state, at, out)
        # A node that used the old primary connects to the new one.
        if len(shared.servers) == 2 and node.server == 0 and not node.phase:
            moved = node._replace(server=1)
            self.emit(out, ("%s connects to the new primary", name), shared, self.put(nodes, at, moved), a, b, response)
        if world.crash and not shared.crashed:
            listed = 0 if rule.wakeups == "listed in memory" else node.listed
            # The position is durable in one piece with what is in force.
            moved = self.placed(node, at) if node.phase == 2 else node._replace(early=node.late, phase=0, pending=0)
            history = moved.history if rule.durable_history else moved.late[0]
            moved = moved._replace(
                sent=0, listed=listed & moved.listed, history=history, fence=1 if moved.fence else 0, after=-1
            )
            lost = response is not None and response.at == at and response.in_flight
            self.emit(
                out,
                ("%s crashes and starts again", name),
                shared._replace(crashed=1),
                self.put(nodes, at, moved),
                None if a is not None and (at == A or a.target == at or a.stage == JOINED) else a,
                None if at in (B, S) else b,
                None if lost else response,
            )

    @staticmethod
    def append(shared, server, kind):
        epoch, entries = shared.servers[server]
        entries += ((kind, epoch, shared.next_id),)
        servers = shared.servers[:server] + ((epoch, entries),) + shared.servers[server + 1 :]
        return shared._replace(servers=servers, next_id=shared.next_id + 1)

    def read(self, state, at, out):
        """reader.rs: one look at the stream, by heartbeat (`check_cursor`) or by read (`check_follows`)."""
        shared, nodes, a, b, response = state
        node = nodes[at]
        epoch, entries = shared.servers[node.server]
        own_epoch, number, last_id = node.early
        head_id = entries[-1][2] if entries else 0
        # The heartbeat.
        if own_epoch != epoch:
            self.gap(state, at, False, "another history", out)
        elif number > len(entries) or (
            number < 0 and last_id > head_id and self.rule.vanished == "purge"
            or number >= 0
            and (number == len(entries) and last_id != head_id or number < len(entries) and last_id >= head_id)
        ):
            self.gap(state, at, True, "a history that went backwards", out)
        if node.fence and node.after < 0 and self.rule.fence == "any" and own_epoch == epoch:
            moved = node._replace(after=len(entries))
            self.emit(out, ("%s hears that the last number is %s", NAME[at], len(entries)), shared, self.put(nodes, at, moved), a, b, response)
        # The heartbeat tells of the head again.
        if number < 0 and own_epoch == epoch and node.head not in (None, (len(entries), head_id)):
            moved = node._replace(head=(len(entries), head_id))
            self.emit(out, ("%s hears of the head, number %s", NAME[at], len(entries)), shared, self.put(nodes, at, moved), a, b, response)
        # The read.
        first = shared.trimmed if node.server == 0 else 0
        following = [index for index, entry in enumerate(entries) if index >= first and entry[2] > last_id]
        if not following:
            self.nothing_to_read(state, at, out)
            return
        index = following[0]
        kind, entry_epoch, entry_id = entries[index]
        before = entries[index - 1][2] if index else 0
        if number < 0 and before > last_id and self.rule.vanished == "purge":
            self.gap(state, at, False, "a gap before the first entry that it reads", out, trimmed=before)
            return
        if number >= 0:
            if own_epoch != entry_epoch:
                self.gap(state, at, False, "an entry of another history", out)
                return
            if index + 1 <= number or index + 1 == number + 1 and before != last_id:
                self.gap(state, at, True, "an entry that shows a history gone backwards", out)
                return
            if index + 1 > number + 1:
                # Trimmed; after a split it looks so.
                self.gap(state, at, False, "a gap in the numbers", out, trimmed=True)
                return
        position = (entry_epoch, index + 1, entry_id)
        moved = node._replace(early=position, phase=1, pending=kind, head=None)
        label = ("%s reads %s, number %s", NAME[at], self.entry_name(kind), index + 1)
        self.step(state, at, moved, label, out)

    def nothing_to_read(self, state, at, out):
        """reader.rs `handle_empty_read`, with the head that the last heartbeat told."""
        shared, nodes, a, b, response = state
        node = nodes[at]
        epoch, entries = shared.servers[node.server]
        own_epoch, number, last_id = node.early
        if number >= 0:
            if own_epoch == epoch and number < len(entries):
                position = (epoch, len(entries), entries[-1][2])
                moved = node._replace(early=position, phase=1, pending=SOFT_ALL)
                self.step(state, at, moved, ("%s finds nothing to read: it was trimmed", NAME[at]), out)
            return
        head = node.head or (len(entries), entries[-1][2] if entries else 0)
        if head[1] < last_id and self.rule.vanished == "purge":
            return  # The next heartbeat shows that the history went backwards.
        position = (node.history, *head)
        if head[1] != last_id and self.rule.vanished == "purge":
            moved = node._replace(early=position, phase=1, pending=SOFT_ALL, head=None)
            self.step(state, at, moved, ("%s finds nothing more to read, and the head is gone", NAME[at]), out)
        elif own_epoch == node.history:
            moved = node._replace(early=position, late=position, ring=node.ring | 1 << head[1], head=None)
            label = ("%s finds nothing more to read: its position is number %s", NAME[at], head[0])
            self.emit(out, label, shared, self.put(nodes, at, moved), a, b, response)

    def gap(self, state, at, renames, what, out, trimmed=False):
        """reader.rs `recover_from_gap`: the fleet is told by a new name; this node purges softly."""
        shared, nodes, _, _, _ = state
        node = nodes[at]
        epoch, entries = shared.servers[node.server]
        if renames and epoch <= shared.lost:
            epoch += 1
            servers = list(shared.servers)
            servers[node.server] = (epoch, entries)
            shared = shared._replace(servers=tuple(servers))
        head_id = entries[-1][2] if entries else 0
        last_id = node.early[2] if node.early[2] <= head_id else 0
        early, history = (epoch, -1, last_id), epoch
        head = (len(entries), head_id)
        if trimmed:  # The node reads on in what it takes for the same history.
            read_on = node.early[2] if trimmed is True else trimmed
            early, history, head = (node.early[0], -1, read_on), node.history, None
        fence = 0 if self.rule.fence == "none" else 1
        moved = node._replace(
            early=early, phase=1, pending=SOFT_ALL, history=history, sent=0, fence=fence, head=head, after=-1
        )
        if self.rule.wakeups == "listed until another history":
            moved = moved._replace(listed=0)
        label = ("%s meets %s%s", NAME[at], what, " and renames it" if renames else "")
        self.step((shared,) + state[1:], at, moved, label, out)

    def step(self, state, at, moved, label, out):
        """The first of three steps of applying, or all three at once."""
        shared, nodes, a, b, response = state
        if self.world.micro:
            self.emit(out, label, shared, self.put(nodes, at, moved), a, b, response)
            return
        moved, spoils = self.in_force(moved)
        if spoils:
            a, b, response = self.spoil(at, (a, b), response)
        shared, moved = self.note_place(shared, at, moved)
        self.emit(out, label, shared, self.put(nodes, at, self.placed(moved, at)), a, b, response)

    def go_on(self, state, at, out):
        shared, nodes, a, b, response = state
        node = nodes[at]
        if node.phase == 1:
            moved, spoils = self.in_force(node)
            if spoils:
                a, b, response = self.spoil(at, (a, b), response)
            label = ("%s has %s in force", NAME[at], self.entry_name(node.pending))
            self.emit(out, label, shared, self.put(nodes, at, moved), a, b, response)
            return
        shared, node = self.note_place(shared, at, node)
        label = ("%s has its late position moved up", NAME[at])
        self.emit(out, label, shared, self.put(nodes, at, self.placed(node, at)), a, b, response)

    @staticmethod
    def in_force(node):
        """The node, and whether something new is in force there."""
        kind = node.pending
        node = node._replace(phase=2)
        if kind == SOFT_ALL or kind <= -2:
            return node, True
        if kind == FILLER or node.force >> kind & 1:  # Purges that come twice are applied once.
            return node, False
        return node._replace(force=node.force | 1 << kind), True

    @staticmethod
    def note_place(shared, at, node):
        """Who ordered a purge learns its place when it reads it back."""
        kind = node.pending
        if kind != SOFT_ALL and kind >= 0 and shared.orderers[kind] == NAME[at]:
            places = shared.places[:kind] + (node.early[:2],) + shared.places[kind + 1 :]
            shared = shared._replace(places=places)
        return shared, node

    def placed(self, node, at):
        """The late position moves up; what was read back leaves the outbox and the list."""
        kind = node.pending
        epoch, number, entry_id = node.early
        ring = node.ring if number < 0 else node.ring | 1 << entry_id
        node = node._replace(late=node.early, ring=ring, phase=0, pending=0)
        if kind == SOFT_ALL or kind == FILLER:
            return node
        if kind <= -2:
            if self.rule.fence == "any":
                return node._replace(fence=0, after=-1) if 0 <= node.after < number else node
            return node._replace(fence=0) if kind == -2 - at and node.fence == 2 else node
        keep = ~(1 << kind)
        return node._replace(outbox=node.outbox & keep, sent=node.sent & keep, listed=node.listed & keep)

    @staticmethod
    def entry_name(kind):
        if kind == SOFT_ALL:
            return "a soft purge of everything"
        if kind == FILLER:
            return "a purge of something else"
        return f"purge {kind + 1}" if kind >= 0 else f"the soft purge of everything by {NAME[-2 - kind]}"

    # -- Redis, and node C, which orders purges and caches nothing

    def outside(self, state, out):
        shared, nodes, a, b, response = state
        world = self.world
        servers = range(len(shared.servers))
        if shared.next_id <= world.appends:
            for server in servers:
                where = "" if len(shared.servers) == 1 else (" (old primary)", " (new primary)")[server]
                if shared.ver < world.purges:
                    k = shared.ver
                    told = self.append(shared, server, k)
                    place = (told.servers[server][0], len(told.servers[server][1]))
                    told = told._replace(
                        ver=k + 1,
                        orderers=shared.orderers[:k] + ("C",) + shared.orderers[k + 1 :],
                        places=shared.places[:k] + (place,) + shared.places[k + 1 :],
                        published=shared.published | 1 << k,
                    )
                    for born, prefix in self.births(state):
                        self.emit(out, (prefix + "the origin changes to version %s; purge %s is ordered at C and published%s", k + 1, k + 1, where), told, nodes, a, b, born)
                if shared.fillers:
                    told = self.append(shared, server, FILLER)._replace(fillers=shared.fillers - 1)
                    self.emit(out, ("C publishes a purge of something else%s", where), told, nodes, a, b, response)
                for k in range(shared.ver):
                    present = any(entry[0] == k for entry in shared.servers[server][1])
                    again = shared.lost and not present or shared.crashed or not shared.published >> k & 1
                    if shared.orderers[k] == "C" and again:
                        told = self.append(shared, server, k)
                        place = (told.servers[server][0], len(told.servers[server][1]))
                        told = told._replace(
                            places=shared.places[:k] + (place,) + shared.places[k + 1 :],
                            published=shared.published | 1 << k,
                        )
                        self.emit(out, ("C publishes purge %s%s%s", k + 1, " once more" if shared.published >> k & 1 else "", where), told, nodes, a, b, response)
        epoch, entries = shared.servers[-1]
        if epoch <= shared.lost:
            servers = shared.servers[:-1] + ((epoch + 1, entries),)
            self.emit(out, ("C finds that Redis lost entries and renames the history",), shared._replace(servers=servers), nodes, a, b, response)
        if world.trim and not shared.trimmed:
            for gone in range(1, len(entries) + 1):
                self.emit(out, ("Redis removes its first %s entries", gone), shared._replace(trimmed=gone), nodes, a, b, response)
        if shared.lost < (world.losses if world.loss else world.split):
            for kept in range(len(entries) + (1 if world.split else 0)):
                after = (epoch, entries[:kept])
                servers = shared.servers + (after,) if world.split else (after,)
                what = "Redis fails over to a replica with the first %s entries" if world.split else "Redis loses all but its first %s entries"
                self.emit(out, (what, kept), shared._replace(servers=servers, lost=shared.lost + 1), nodes, a, b, response)
            if world.loss and not world.split:
                emptied = shared._replace(servers=((shared.lost + 2, ()),), lost=shared.lost + 1, trimmed=0)
                self.emit(out, ("Redis is emptied: another history begins",), emptied, nodes, a, b, response)

    # -- responses on their way: origin, S, B, A

    def births(self, state, anywhere=False):
        """Origin requests just before a purge is ordered: an earlier one has no more chances. At the
        far end of the chain: the rest is a chain without that node."""
        shared, nodes, _, _, response = state
        yield response, ""
        if response is not None or not (self.world.reduced or anywhere):
            return
        missing = 0
        if self.world.strict:
            missing = sum(1 << at for at, node in enumerate(nodes) if not node.force)
        for at in range(len(nodes)) if anywhere else (len(nodes) - 1,):
            yield Response(at, shared.ver, True, True, missing), f"{NAME[at]} asks the origin, which has version {shared.ver}; then "

    def responses(self, state, out):
        shared, nodes, a, b, response = state
        world = self.world
        if response is None:
            if (not world.reduced and shared.ver < world.purges) or world.strict:
                for born, _ in self.births(state, anywhere=True):
                    if born is not None:
                        self.emit(out, ("%s asks the origin, which has version %s", NAME[born.at], shared.ver), shared, nodes, a, b, born)
        elif response.in_flight:
            self.emit(out, ("%s has stored what was on its way", NAME[response.at]), shared, nodes, a, b, response._replace(in_flight=False))
        # A asks B, or S (another owner after a change of members). B asks S.
        if response is None or response.at != A:
            if a is None:
                self.begin(state, A, B, out)
                if not world.reduced and len(nodes) == 3 and (response is None or response.at != B):
                    self.begin(state, A, S, out)
            else:
                self.emit(out, ("A gives its request up",), shared, nodes, None, b, response)
                self.go_on_asking(state, A, out)
        if len(nodes) == 3 and (response is None or response.at == S):
            if b is None:
                self.begin(state, B, S, out)
            else:
                left = None if a is not None and a.stage == JOINED else a
                self.emit(out, ("B gives its request up",), shared, nodes, left, None, response)
                self.go_on_asking(state, B, out)
        if a is not None:
            self.decide(state, A, out)
        if b is not None:
            self.decide(state, B, out)

    def begin(self, state, at, target, out, joins=False, extra=()):
        """A node starts to ask. `joins`: on behalf of A, whose request waits for it."""
        shared, nodes, a, b, response = state
        ask = Ask(0, READING, True, None, (), target, extra, False)
        if joins:
            a = a._replace(stage=JOINED)
            # B starts by reading its sequence; only then can its fill be joined.
        self.read_next((shared, nodes, a, b, response), at, ask, out, first=True)

    def go_on_asking(self, state, at, out):
        ask = state[2] if at == A else state[3]
        if ask.stage == READING:
            self.read_next(state, at, ask, out)

    def read_next(self, state, at, ask, out, first=False):
        shared, nodes, a, b, response = state
        node = nodes[at]
        words = []
        while ask is not None and ask.reads < 3:
            what = self.rule.reads[ask.reads]
            ask = ask._replace(reads=ask.reads + 1)
            if what == "S":
                ask = ask._replace(ok=True, need=latest(node.force))
                words.append("reads its sequence")
            elif what == "L":
                listed = node.listed | self.outbox_that_counts(node)
                words.append(f"finds {'a' if listed else 'no'} covering purge in its outbox or list")
                if listed or node.fence:
                    ask = None  # To the origin, which has what is needed.
                    words.append("asks the origin")
            else:
                position = node.early if self.rule.asker_position == "early" else node.late
                epoch, number, _ = position
                words.append(f"reads its position {epoch}/{number}")
                unknown = self.rule.joined_history and epoch != node.history
                if number < 0 or unknown:
                    ask = None
                    words.append("has none, asks the origin")
                else:
                    wanted = tuple(sorted({position, *ask.extra}))
                    if self.rule.forward == "larger" and ask.extra:
                        wanted = (max(wanted),)
                    ask = ask._replace(wanted=wanted)
            if self.world.micro:
                break
        if ask is not None and ask.reads == 3:
            ask = ask._replace(stage=SENT, extra=())
            words.append(f"asks {NAME[ask.target]}")
        label = ("%s %s", NAME[at], ", ".join(words))
        if at == A:
            self.emit(out, label, shared, nodes, ask, b, response)
        else:
            if ask is None and a is not None and a.stage == JOINED:
                a = None
            self.emit(out, label, shared, nodes, a, ask, response)

    def outbox_that_counts(self, node):
        if self.rule.outbox == "never":
            return 0
        return node.outbox & ~node.sent if self.rule.outbox == "until it is published" else node.outbox

    def meets(self, node, wanted):
        rule = self.rule
        if rule.position == "ignored":
            return True
        epoch, number, last_id = node.late if rule.owner_position == "late" else node.early
        ring = node.ring if rule.owner_position == "late" or number < 0 else node.ring | 1 << last_id
        if number < 0:
            return False
        for want_epoch, want_number, want_id in wanted:
            if epoch != want_epoch:
                return False
            if rule.position == "entry":
                if epoch != node.history or not ring >> want_id & 1:
                    return False
            elif number < want_number:
                return False
            elif rule.position == "id" and number == want_number and last_id != want_id:
                return False
        return True

    def decide(self, state, at, out):
        """The asked node's part: check the requirement, then answer, join, lead, or forward."""
        shared, nodes, a, b, response = state
        ask = a if at == A else b
        target = ask.target
        node = nodes[target]
        mine, its = NAME[at], NAME[target]

        def with_ask(ask):
            return (ask, b) if at == A else (a, ask)

        here = response is not None and response.at == target
        if ask.stage == SENT:
            if self.rule.lookup == "before" and here and response.ok and not ask.seen:
                self.emit(out, ("%s looks for the response before it checks the requirement of %s", its, mine), shared, nodes, *with_ask(ask._replace(seen=True)), response)
            if self.meets(node, ask.wanted):
                if self.world.micro:
                    self.emit(out, ("%s meets the requirement of %s", its, mine), shared, nodes, *with_ask(ask._replace(stage=ACCEPTED)), response)
                else:
                    self.answer(state, at, ask, out)
            elif target == B and len(nodes) == 3 and b is None and self.rule.forward != "origin":
                extra = () if self.rule.forward == "own" else ask.wanted
                if response is None or response.at == S:
                    self.begin(state, B, S, out, joins=True, extra=extra)
            elif target == B and b is not None and b.stage == SENT and set(ask.wanted) <= set(b.wanted):
                # What B asked for on behalf of another with this requirement.
                self.emit(out, ("%s joins a request of B with its requirement", mine), shared, nodes, ask._replace(stage=JOINED), b, response)
        elif ask.stage == ACCEPTED:
            self.answer(state, at, ask, out)

    def answer(self, state, at, ask, out):
        """The requirement is met: from cache, from a fill in flight, or by a new request."""
        shared, nodes, a, b, response = state
        target = ask.target
        here = response is not None and response.at == target
        if here:
            usable = response.ok
            usable |= ask.seen
            usable |= self.rule.join == "any" and response.in_flight
            unmarked = not response.ok and not response.in_flight and self.world.stale and not self.rule.marks_stale
            if usable or unmarked:
                how = "from its cache" if not response.in_flight else "from a fill in flight"
                if unmarked and not usable:
                    how = "with what is stale there, unmarked"
                self.hand_over(state, at, ask, how, out)
        elif target == B and len(nodes) == 3:
            if b is not None and b.need is not None and (b.ok or self.rule.join == "any"):
                self.emit(out, ("%s joins the request that B has under way", NAME[at]), shared, nodes, ask._replace(stage=JOINED), b, response)
            elif b is None and (response is None or response.at == S):
                self.begin(state, B, S, out, joins=True)

    def hand_over(self, state, at, ask, how, out):
        shared, nodes, a, b, response = state
        target = ask.target
        label = ("%s answers %s with version %s %s", NAME[target], NAME[at], response.version, how)
        receivers = [(at, ask)]
        if at == B and a is not None and a.stage == JOINED:
            receivers.append((A, a))
        for receiver, its_ask in receivers:
            moved = Response(receiver, response.version, its_ask.ok, True, response.missing)
            broke = None
            if response.version < its_ask.need:
                broke = f"P1: {NAME[receiver]} serves version {response.version} as fresh to a request that came after purge {its_ask.need}"
            self.emit(out, label, shared, nodes, None if receiver == A or at == A else self.left(a), None, moved, broke)

    @staticmethod
    def left(a):
        return None if a is not None and a.stage == JOINED else a


# ------------------------------------------------------------------------------------- the search


class Found(namedtuple("Found", "broke trace states depth seconds stopped")):
    pass


def search(world, rule, states_max=None):
    """Breadth first: the first thing that breaks has the shortest trace."""
    model = Model(world, rule)
    started = time.time()
    first = initial(world)
    index_of = {first: 0}
    states, parents = [first], [-1]
    at, depth, level_end = 0, 0, 1
    while at < len(states):
        if at == level_end:
            depth, level_end = depth + 1, len(states)
        for label, state, broke in model.successors(states[at]):
            if broke:
                trace = path(model, states, parents, at) + [(text(label), state)]
                return Found(broke, trace, len(states), depth + 1, time.time() - started, False)
            if state not in index_of:
                index_of[state] = len(states)
                states.append(state)
                parents.append(at)
        at += 1
        if states_max is not None and len(states) > states_max:
            return Found(None, [], len(states), depth, time.time() - started, True)
    return Found(None, [], len(states), depth, time.time() - started, False)


def path(model, states, parents, at):
    steps = []
    while parents[at] >= 0:
        before = parents[at]
        label = next(label for label, state, _ in model.successors(states[before]) if state == states[at])
        steps.append((text(label), states[at]))
        at = before
    return steps[::-1]


def text(label):
    return label[0] % label[1:] if len(label) > 1 else label[0]


# -------------------------------------------------------------------------------------- the cases

REPAIRED = Rule()
PLANNED = Rule(
    position="number",
    joined_history=False,
    wakeups="not listed",
    forward="own",
    marks_stale=False,
    complete="receipts",
)
# One purge of the key, no faults, hard purges, no wake-ups; each thing that a node does is one step.
CALM = World(fillers=0, shield=False, wakeups=False, loss=False, crash=False, stale=False, micro=False, appends=2)
REGION = World(shield=False)
SHIELD = World(micro=False)
SHARED = replace(REGION, micro=False, loss=False, split=True, appends=4, fillers=0, crash=False)
HOLDS = "holds"


def without(**changes):
    return replace(REPAIRED, **changes)


# (name, what it shows, world, rule, expected)
CASES = [
    ("planned-region", "the planned rule, no faults", CALM, PLANNED, HOLDS),
    ("planned-crash", "the planned rule, a crash", replace(CALM, crash=True), PLANNED, HOLDS),
    ("planned-shield-origin", "the planned rule with a shield; an owner that is behind goes to the origin itself",
     replace(CALM, shield=True), replace(PLANNED, forward="origin"), HOLDS),
    # The planned rule where it fails.
    ("planned-wakeup", "a purge that came by wake-up is in force at the asker before its position says so",
     replace(CALM, wakeups=True), PLANNED, "P1"),
    ("planned-soft", "the owner answers with what is stale by a soft purge, and the asker takes it for fresh",
     replace(CALM, stale=True), PLANNED, "P1"),
    ("planned-shield", "an owner that is behind asks the shield with its own position",
     replace(CALM, shield=True), PLANNED, "P1"),
    ("planned-loss", "Redis loses entries; others take their numbers before the history is renamed",
     replace(CALM, loss=True, fillers=1), PLANNED, "P1"),
    ("planned-relabelled", "the same, positions with ids: after the renaming the asker's position is one of the old history",
     replace(CALM, loss=True, fillers=1), replace(PLANNED, position="entry"), "P1"),
    ("planned-complete", "\"applied by all\" concluded from places in the stream, after a loss",
     replace(CALM, loss=True, fillers=1), without(complete="places"), "P2"),
    # Broken on purpose: the checker must see these.
    ("broken-position", "the owner ignores the asker's position", CALM, replace(PLANNED, position="ignored"), "P1"),
    ("broken-outbox", "the asker does not look into its outbox", CALM, replace(PLANNED, outbox="never"), "P1"),
    ("broken-join", "the owner lets a request join any fill", CALM, replace(PLANNED, join="any"), "P1"),
    # The repaired rule without one of its parts: each is needed.
    ("without-position", "the owner ignores the requirement", REGION, without(position="ignored"), "P1"),
    ("without-entry", "epoch and number are compared", REGION, without(position="number"), "P1"),
    ("without-ring", "of two equal numbers the ids are compared, earlier entries are not remembered",
     replace(CALM, loss=True, fillers=2, appends=3), without(position="id"), "P1"),
    ("without-history", "the last entry's epoch counts as the history", REGION, without(joined_history=False), "P1"),
    ("without-durable-history", "a crash forgets which history was joined", REGION, without(durable_history=False), "P1"),
    ("without-outbox", "the outbox is not looked at", REGION, without(outbox="never"), "P1"),
    ("without-read-back", "a purge leaves the outbox when it is published", REGION, without(outbox="until it is published"), "P1"),
    ("without-list", "purges by wake-up are not listed", REGION, without(wakeups="not listed"), "P1"),
    ("without-durable-list", "a crash forgets the list", REGION, without(wakeups="listed in memory"), "P1"),
    ("without-lasting-list", "the list is dropped with the history", REGION, without(wakeups="listed until another history"), "P1"),
    ("without-join", "any fill may be joined", REGION, without(join="any"), "P1"),
    ("without-mark", "stale answers are not marked", REGION, without(marks_stale=False), "P1"),
    ("without-sequence-first", "the asker reads its position before its sequence", REGION, without(reads="LPS"), "P1"),
    ("without-list-first", "the asker reads its position before its list", REGION, without(reads="SPL"), "P1"),
    ("without-early-position", "the asker sends a position that moves after the purge is in force",
     REGION, without(asker_position="late"), "P1"),
    ("without-late-position", "the owner checks a position that moves before the purge is in force",
     REGION, without(owner_position="early"), "P1"),
    ("without-late-lookup", "the owner looks for the response before it checks, or waits for, the position",
     REGION, without(lookup="before"), "P1"),
    ("without-requirement-on", "an owner that is behind sends its own position on", SHIELD, without(forward="own"), "P1"),
    ("without-both", "an owner that is behind sends only the larger position on", SHIELD, without(forward="larger"), "P1"),
    # The repaired rule, exhaustively.
    ("repaired-region", "A, B: all faults, fine steps", REGION, REPAIRED, HOLDS),
    ("repaired-region-coarse", "A, B: all faults, coarse steps; quick with --unreduced too",
     replace(REGION, micro=False), REPAIRED, HOLDS),
    ("repaired-region-fillers", "A, B: all faults, fine steps, two other purges, four entries",
     replace(REGION, fillers=2, appends=4), REPAIRED, HOLDS),
    ("repaired-region-two", "A, B: two purges of the key and another, no crash, fine steps",
     replace(REGION, purges=2, crash=False), REPAIRED, HOLDS),
    ("repaired-region-two-crash", "A, B: two purges of the key and another, all faults, coarse steps",
     replace(REGION, purges=2, micro=False), REPAIRED, HOLDS),
    ("repaired-shield", "A, B, S: all faults, coarse steps", SHIELD, REPAIRED, HOLDS),
    ("repaired-shield-origin", "A, B, S: the same; an owner that is behind goes to the origin itself",
     SHIELD, without(forward="origin"), HOLDS),
    ("repaired-shield-fillers", "A, B, S: Redis loss, two other purges, four entries, coarse steps",
     replace(SHIELD, fillers=2, appends=4, wakeups=False, crash=False), REPAIRED, HOLDS),
    ("repaired-shield-fine", "A, B, S: Redis loss, another purge, two entries, fine steps",
     World(wakeups=False, crash=False, appends=2), REPAIRED, HOLDS),
    ("repaired-shield-fine-crash", "A, B, S: a crash and wake-ups, no loss, fine steps",
     World(loss=False, fillers=0, appends=2), REPAIRED, HOLDS),
    ("repaired-trim", "A, B: Redis removes its first entries, a crash, fine steps",
     replace(REGION, trim=True, loss=False, fillers=2), REPAIRED, HOLDS),
    ("repaired-trim-loss", "A, B: Redis removes its first entries and loses its last ones, coarse steps",
     replace(REGION, trim=True, micro=False), REPAIRED, HOLDS),
    ("repaired-losses", "A, B: Redis loses entries twice, coarse steps",
     replace(REGION, losses=2, micro=False), REPAIRED, HOLDS),
    ("repaired-losses-fine", "A, B: Redis loses entries twice, no crash, no wake-ups, fine steps",
     replace(REGION, losses=2, crash=False, wakeups=False), REPAIRED, HOLDS),
    ("without-vanished", "after two losses, a head that vanished counts as applied",
     replace(REGION, losses=2, crash=False, micro=False), without(vanished="trust"), "P1"),
    # Beyond the repaired rule.
    ("literal", "\"before a purge was applied by this node\" taken by the letter: no cache of a peer can keep it",
     replace(CALM, strict=True), REPAIRED, "P1"),
    ("split", "a failover, and nodes that go on with the old primary", replace(CALM, split=True), REPAIRED, "P1"),
    ("split-fenced", "the same, and a node that joins another history publishes a soft purge of everything there",
     replace(REGION, micro=False, loss=False, split=True, appends=4), without(fence="own"), HOLDS),
    ("split-shared-fence", "a failover without a crash or other purges; a later one of another node will do",
     SHARED, without(fence="any"), HOLDS),
    ("split-no-fence", "the same without", SHARED, REPAIRED, "P1"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases, or beginnings of their names")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--traces", action="store_true", help="print every trace")
    parser.add_argument("--unreduced", action="store_true", help="without the reductions: much slower")
    parser.add_argument("--states-max", type=int, help="give up beyond as many states")
    options = parser.parse_args()
    cases = [case for case in CASES if not options.names or case[0].startswith(tuple(options.names))]
    if not cases:
        parser.error("no such case; --list has them")
    if options.list:
        for name, shows, *_ in cases:
            print(f"{name:28} {shows}")
        return 0
    surprises = 0
    for name, shows, world, rule, expected in cases:
        found = search(replace(world, reduced=not options.unreduced), rule, options.states_max)
        got = found.broke.split(":")[0].split()[0] if found.broke else "stopped" if found.stopped else HOLDS
        surprises += got != expected
        verdict = f"{got} broken in {found.depth} steps" if found.broke else got
        flag = "" if got == expected else f"  <-- expected: {expected}"
        print(f"{name:28} {verdict:22} {found.states:>9} states {found.seconds:7.1f} s{flag}", flush=True)
        if found.trace and (options.traces or options.names):
            print(f"    ({shows})")
            for number, (label, _) in enumerate(found.trace, 1):
                print(f"    {number:2} {label}")
            print(f"    => {found.broke}")
    print(f"{len(cases)} cases, {surprises} not as expected")
    return 1 if surprises else 0


if __name__ == "__main__":
    sys.exit(main())
