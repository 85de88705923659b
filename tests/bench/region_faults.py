"""Faults under load for tests/bench/region-cache: what clients see of each, how many keys change their owner, and how long a dead node is
still asked.

A node is killed and started again, shut down, added, stopped (SIGSTOP), cut off from its peers, from Redis, from both; Redis is killed for a
minute. Clients leave out a node that is down, as clients of a name server do; every other response counts. Keys are counted by the
answers of a node of the region to /nodes/owner, requests to a dead node by the metrics of its peers."""

import asyncio, signal, time

from region_fleet import percentile

# URLs whose owners are compared.
URLS_WATCHED = range(500)
# Of n nodes, one that leaves or joins moves one nth of the keys.
BOUND_MOVED = 1.3
# Three heartbeats of a second are missed, and a peer learns it with its own next heartbeat.
BOUND_DEAD_ASKED = 4.0
# The share of requests at the origin from which the region is steady, and how long it may take: the origin answers each of 150 clients
# once in 2 s, so that it takes a minute and a half to fetch or validate everything.
STEADY_SHARE, STEADY_WITHIN = 0.05, 180
# How long a node table may take to be the same everywhere.
SETTLED_WITHIN = 15.0
SAMPLES_EVERY = 0.1


async def faults(options, fleet, load):
    return await Faults(options, fleet, load).run()


class Faults:
    def __init__(self, options, fleet, load):
        self.options, self.fleet, self.load = options, fleet, load
        self.nodes = {node.name: node for node in fleet.nodes}
        self.is_kept = True

    async def run(self):
        load, options, nodes = self.load, self.options, self.nodes
        print("\n| fault | requests | errors | wrong | at the origin | p99 | slowest | keys that changed their owner | last request to the dead node |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        running = asyncio.create_task(load.run(1 << 40, options.in_flight // 4))
        before = await self.until_steady()
        await self.phase("fra-0 killed", 10, self.leaves(nodes["fra-0"], signal.SIGKILL), dead=nodes["fra-0"])
        await self.phase("fra-0 back, cold", 8, self.comes_back(nodes["fra-0"]))
        await self.phase("us-1 shut down", 10, self.leaves(nodes["us-1"], signal.SIGTERM), dead=nodes["us-1"])
        await self.phase("us-1 back", 8, self.comes_back(nodes["us-1"]))
        await self.phase("ap-3 added", 10, self.is_added, changed=self.fleet.spare)
        await self.phase("ap-2 stopped", 10, self.leaves(nodes["ap-2"], signal.SIGSTOP), dead=nodes["ap-2"])
        await self.phase("ap-2 resumed", 8, self.is_resumed(nodes["ap-2"]))
        await self.phase("fra-1 cut off from its peers", 10, self.sets(peers="fra-1"))
        await self.phase("fra-1 reachable again", 8, self.sets())
        await self.phase("us-2 cut off from Redis", 10, self.sets(redis="us-2"))
        await self.phase("us-2 has Redis again", 8, self.sets())
        await self.phase("us-2 cut off from its peers and Redis", 10, self.sets(peers="us-2", redis="us-2"))
        await self.phase("us-2 has both again", 8, self.sets())
        await self.phase("Redis away", options.redis_away, self.redis_is_killed)
        await self.phase("Redis back, empty", 10, self.redis_is_started)
        await self.phase("Redis and fra-1's peers away", 10, self.redis_is_killed, self.sets(peers="fra-1"))
        await self.phase("all back", 10, self.redis_is_started, self.sets())
        after = await self.until_steady()
        load.is_over = True
        await running
        print(f"\nexcused (in flight at a node that was killed): {load.excused}")
        for when, (took, share, p50, p99) in [("before the faults", before), ("after them", after)]:
            print(f"{when}: steady after {took:.0f} s, {share:.3f} of the requests at the origin, p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.0f} ms")
        return self.is_kept and after[1] <= STEADY_SHARE

    async def phase(self, name, seconds, *begin, dead=None, changed=None):
        """Runs for a while after `begin`. `dead`: the node that is gone then. `changed`: the node that joins."""
        load, origin = self.load, self.fleet.origin
        before = (load.sent, len(load.errors), len(load.wrong), origin.count)
        changed = changed or dead
        was = await self.owners_in(changed.region) if changed else None
        load.waits = []
        for step in begin:
            await step()
        began = time.monotonic()
        last_asked = asyncio.create_task(self.last_asked(dead, began, seconds)) if dead else None
        moved = await self.moved(changed, was, began) if changed else ""
        await asyncio.sleep(max(0, began + seconds - time.monotonic()))
        last = await last_asked if dead else ""
        sent, errors, wrong, asked = (now - was for now, was in zip(
            (load.sent, len(load.errors), len(load.wrong), origin.count), before))
        print(f"| {name} | {sent} | {errors} | {wrong} | {asked} | {percentile(load.waits, .99):.2f} s | "
              f"{max(load.waits, default=0):.2f} s | {moved} | {last} |", flush=True)
        for text in load.errors[before[1]:][:5] + load.wrong[before[2]:][:5]:
            print("   ", text)
        self.is_kept &= errors == 0 and wrong == 0
        return asked / max(1, sent), percentile(load.waits, .5), percentile(load.waits, .99)

    async def until_steady(self):
        """Waits until few requests go to the origin: a cold region fetches everything, and one whose Redis has lost its data validates
        everything. Returns how long that took, and the figures of the last seconds."""
        began = time.monotonic()
        while True:
            share, p50, p99 = await self.phase("none", 5)
            took = time.monotonic() - began
            if share <= STEADY_SHARE or took > STEADY_WITHIN:
                return took, share, p50, p99

    # Keys and dead nodes.

    async def owners_in(self, region):
        asked = next(node for node in self.fleet.in_region(region) if node.is_used)
        return await self.fleet.owners(asked, URLS_WATCHED)

    async def moved(self, changed, was, began):
        """The share of keys that have another owner than before, once the table has the change."""
        count = len(self.fleet.in_region(changed.region))
        while True:
            owners = await self.owners_in(changed.region)
            moved = [at for at in URLS_WATCHED if owners[at] != was[at]]
            owns = sum(owner == changed.name for owner in owners.values())
            is_settled = owns == 0 if changed.name in was.values() else owns > 0
            if is_settled or time.monotonic() > began + SETTLED_WITHIN:
                break
            await asyncio.sleep(SAMPLES_EVERY)
        share = len(moved) / len(was)
        # A key that changed its owner had the node that left, or has the one that joined.
        strays = [at for at in moved if changed.name not in (was[at], owners[at])]
        self.is_kept &= is_settled and not strays and share <= BOUND_MOVED / count
        return f"{share:.3f} ({share * count:.2f} / {count}), after {time.monotonic() - began:.1f} s"

    async def last_asked(self, dead, began, seconds):
        """How long after it was gone a node was last sent a request by one of its peers."""
        metric = f'skerry_peer_requests_total{{peer="{dead.name}"'
        counts, last = {}, 0.0
        while time.monotonic() < began + seconds - 1:
            for node in self.fleet.in_region(dead.region):
                if node is dead or not node.is_used:
                    continue
                count = sum(value for name, value in (await node.metrics()).items() if name.startswith(metric))
                # The metric of a peer that has left the table is gone.
                if count > counts.setdefault(node.name, count):
                    counts[node.name], last = count, time.monotonic() - began
            await asyncio.sleep(SAMPLES_EVERY)
        self.is_kept &= last <= BOUND_DEAD_ASKED
        return f"{last:.1f} s"

    # Faults.

    def leaves(self, node, number):
        async def step():
            node.is_used, node.downs = False, node.downs + 1
            await asyncio.sleep(0 if number == signal.SIGKILL else 0.3)
            node.process.send_signal(number)
        return step

    def comes_back(self, node):
        async def step():
            node.process.wait()
            node.start()
            await node.ready()
            node.is_used = True
        return step

    def is_resumed(self, node):
        async def step():
            node.process.send_signal(signal.SIGCONT)
            node.is_used = True
        return step

    async def is_added(self):
        await self.fleet.add_spare()

    def sets(self, peers=None, redis=None):
        """The node that is cut off from its peers, and the one that is cut off from Redis. `None`: none is."""
        async def step():
            await self.fleet.cut_peers(self.nodes[peers] if peers else None)
            self.fleet.cut_from_redis = {redis} if redis else set()
        return step

    async def redis_is_killed(self):
        self.fleet.redis.kill()
        self.fleet.redis.wait()

    async def redis_is_started(self):
        self.fleet.start_redis()
