"""Real nodes in regions, a real Redis, an origin that counts, and clients that check each byte: what the runs of
tests/bench/region-cache are made of."""

import asyncio, collections, functools, hashlib, itertools, json, os, random, shutil, signal, socket, subprocess, sys, tempfile, time
from dataclasses import dataclass, field


# Clients close a connection that was idle for so many seconds, before the node does.
CLIENT_IDLE_MAX = 15


def free_port():
    """A port that nothing listens at. It is below those that the kernel gives to connections, which could take it before the node."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", random.randrange(15_000, 32_000)))
                return probe.getsockname()[1]
            except OSError:
                continue


class MixedCatalog:
    """2,000 URLs of 500 B to 460 KB. Each tenth varies by a request field. The origin takes 2 s for the first byte."""

    urls, first_byte, ranges = 2000, 2.0, 0.1

    def varies(self, at):
        return at % 10 == 3

    def body(self, at, variant):
        seed = hashlib.sha256(f"{at} {variant if self.varies(at) else ''}".encode()).digest()
        size = 500 + (at * 7919) % 60_000 + (400_000 if at % 50 == 7 else 0)
        return (seed * (size // 32 + 1))[:size]


class EvenCatalog:
    """URLs of 8 to 24 KiB, `size` bytes in all. The origin answers at once."""

    first_byte, ranges = 0.0, 0.0

    def __init__(self, size):
        self.urls = size // (16 << 10)

    def varies(self, at):
        return False

    @functools.lru_cache(maxsize=None)
    def body(self, at, variant=""):
        seed = hashlib.sha256(f"even {at}".encode()).digest()
        size = (8 << 10) + (at * 7919) % (16 << 10)
        return (seed * (size // 32 + 1))[:size]


@dataclass
class Plan:
    """What a fleet is made of. `regions`: their names. `shield`: the region that stands before the origin, if any."""

    regions: list = field(default_factory=lambda: ["fra", "us", "ap"])
    nodes_per_region: int = 3
    has_peers: bool = True
    shield: str = ""
    copy_after: int = 3
    memory: str = "32MiB"
    disk: str = "none"
    slice: str = "256KiB"
    catalog: object = field(default_factory=MixedCatalog)


class Origin:
    """Counts requests by URL and variant. A range gets a 206, a tag that matches a 304."""

    def __init__(self, catalog):
        self.catalog = catalog
        self.requests, self.count = collections.Counter(), 0
        self.by_status = collections.Counter()

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=4096)
        self.port = self.server.sockets[0].getsockname()[1]

    async def serve(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *rest = head.split("\r\n")
                method, target, _ = line.split(" ", 2)
                fields = {k.lower(): v.strip() for k, v in (f.split(":", 1) for f in rest if ":" in f)}
                at = int(target[1:].split("?")[0])
                variant = fields.get("x-variant", "")
                self.requests[at, variant if self.catalog.varies(at) else ""] += 1
                self.count += 1
                if self.catalog.first_byte:
                    await asyncio.sleep(self.catalog.first_byte)
                self.respond(writer, method, at, variant, fields)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass
        finally:
            writer.close()

    def respond(self, writer, method, at, variant, fields):
        body = self.catalog.body(at, variant)
        tag = '"%s"' % hashlib.sha256(body).hexdigest()[:12]
        common = f"ETag: {tag}\r\nCache-Control: max-age=3600\r\nContent-Type: image/png\r\n"
        common += "Vary: X-Variant\r\n" if self.catalog.varies(at) else ""
        asked = fields.get("range", "")
        if fields.get("if-none-match") == tag:
            status, length, body = "304 Not Modified", "", b""
        elif asked.startswith("bytes=") and fields.get("if-range", tag) == tag:
            first, last = asked[6:].split("-")
            first, last = int(first), min(int(last or len(body) - 1), len(body) - 1)
            common += f"Content-Range: bytes {first}-{last}/{len(body)}\r\n"
            body = body[first:last + 1]
            status, length = "206 Partial Content", f"Content-Length: {len(body)}\r\n"
        else:
            status, length = "200 OK", f"Content-Length: {len(body)}\r\n"
        self.by_status[status[:3]] += 1
        writer.write(f"HTTP/1.1 {status}\r\n{common}{length}\r\n".encode())
        if method != "HEAD":
            writer.write(body)


class Relay:
    """A way to a port. `is_cut(port, since)` tells whether it is cut for the connection that came at this time from this port of a
    node: then bytes are held back, as in a network that drops packets."""

    def __init__(self, target, is_cut):
        self.target, self.is_cut = target, is_cut

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=1024)
        self.port = self.server.sockets[0].getsockname()[1]

    async def serve(self, reader, writer):
        opened = writer.get_extra_info("peername")[1], time.monotonic()
        await self.wait_while_cut(opened)
        try:
            there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self.pump(reader, there[1], opened), self.pump(there[0], writer, opened))

    async def pump(self, reader, writer, opened):
        try:
            while piece := await reader.read(65536):
                await self.wait_while_cut(opened)
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def wait_while_cut(self, opened):
        while self.is_cut(*opened):
            await asyncio.sleep(0.05)


class Node:
    def __init__(self, fleet, region, number):
        self.fleet, self.region = fleet, region
        self.name = f"{region}-{number}"
        self.http, self.admin, self.peer = free_port(), free_port(), free_port()
        self.folder = os.path.join(fleet.folder, self.name)
        os.makedirs(self.folder)
        self.process = None
        self.to_peers = Relay(self.peer, lambda port, since: fleet.is_cut(self, port, since))
        self.to_redis = Relay(fleet.redis_port, lambda *_: self.name in fleet.cut_from_redis)
        # Whether clients ask it, and how often it went down.
        self.is_used, self.downs = True, 0

    async def write_config(self):
        fleet, plan = self.fleet, self.fleet.plan
        await self.to_peers.start()
        await self.to_redis.start()
        peers = f"""
[peers]
addresses = ["127.0.0.1:{self.peer}"]
announced = "127.0.0.1:{self.to_peers.port}"
certificate = "{fleet.folder}/peers/{self.name}.pem"
key = "{fleet.folder}/peers/{self.name}.key"
ca = "{fleet.folder}/peers/ca.pem"
copy_after = {plan.copy_after}
""" if plan.has_peers else ""
        # Through the relay only if it may be cut: the relays share one thread with the clients.
        redis_port = self.to_redis.port if self.name in fleet.may_lose_redis else fleet.redis_port
        with open(os.path.join(self.folder, "edge.toml"), "w") as file:
            file.write(f"""
[node]
name = "{self.name}"
region = "{self.region}"
workers = 1
data_directory = "{self.folder}/data"
[admin]
address = "127.0.0.1:{self.admin}"
[bus]
redis = "redis://127.0.0.1:{redis_port}"
[log]
access = "{self.folder}/access.log"
[store]
memory = "{plan.memory}"
disk = "{plan.disk}"
slice = "{plan.slice}"
disk_reserve = "0B"
[[listeners]]
address = "127.0.0.1:{self.http}"
{peers}
[pools.main]
origins = ["http://127.0.0.1:{fleet.origin.port}"]
[sites.all]
hosts = "*"
{f'shield = "{plan.shield}"' if plan.shield else ""}
""")

    def start(self):
        self.errors = open(os.path.join(self.folder, "stderr"), "a")
        self.process = subprocess.Popen([self.fleet.skerry, "run", "--config", os.path.join(self.folder, "edge.toml")],
                                        stdout=subprocess.DEVNULL, stderr=self.errors)

    async def ready(self):
        for _ in range(600):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.http)
                writer.close()
                status, _, _ = await ask(self.admin, "GET", "/readyz", "localhost")
                if status == 200:
                    return
            except (OSError, asyncio.IncompleteReadError):
                pass
            if self.process.poll() is not None:
                break
            await asyncio.sleep(0.05)
        with open(os.path.join(self.folder, "stderr")) as file:
            sys.exit(f"{self.name} did not start:\n{file.read()[-3000:]}")

    async def metrics(self):
        """The value of each line of /metrics, by name and labels."""
        _, _, body = await ask(self.admin, "GET", "/metrics", "localhost")
        lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def local_ports(self):
        """The ports of this process' sockets: /proc/PID/fd has their inodes, /proc/net/tcp their ports."""
        folder = f"/proc/{self.process.pid}/fd"
        inodes = {read_link(os.path.join(folder, file))[8:-1] for file in os.listdir(folder)}
        with open("/proc/net/tcp") as table:
            rows = (line.split(None, 10) for line in table)
            return {int(row[1][9:], 16) for row in rows if row[9] in inodes}


def read_link(path):
    try:
        return os.readlink(path)
    except OSError:
        return ""


async def ask(port, method, target, host, fields=(), stream=None):
    """Status, fields and content of a response."""
    reader, writer = stream or await asyncio.open_connection("127.0.0.1", port)
    lines = "".join(f"{field}\r\n" for field in fields)
    writer.write(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status = int(head.split(" ", 2)[1])
    got = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in head.split("\r\n")[1:] if ":" in line)}
    if status in (204, 304):
        return status, got, b""
    if "content-length" in got:
        body = await reader.readexactly(int(got["content-length"]))
    else:
        body = b""
        while (size := int((await reader.readuntil(b"\r\n")).strip(), 16)) > 0:
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    if not stream:
        writer.close()
    return status, got, body


class Fleet:
    """`may_lose_redis`: the names of nodes whose way to Redis can be cut. `spare`: the region of a node that has a certificate
    and is started later, if any."""

    def __init__(self, skerry, plan, may_lose_redis=(), spare=None):
        self.skerry, self.plan, self.may_lose_redis = skerry, plan, set(may_lose_redis)
        self.folder = tempfile.mkdtemp(prefix="region-")
        self.redis_port, self.redis = free_port(), None
        self.cut_from_redis = set()
        # The node that is cut off from its peers, its ports, and when they were looked up.
        self.cut_from_peers, self.cut_ports, self.cut_ports_at = None, set(), 0.0
        self.nodes = [Node(self, region, number) for region in plan.regions for number in range(plan.nodes_per_region)]
        self.spare = spare and Node(self, spare, plan.nodes_per_region)

    async def start(self):
        self.origin = Origin(self.plan.catalog)
        await self.origin.start()
        self.start_redis()
        if self.plan.has_peers:
            names = [node.name for node in self.nodes] + ([self.spare.name] if self.spare else [])
            subprocess.run([self.skerry, "peers", "certificate", "--directory", f"{self.folder}/peers", *names], check=True,
                           stdout=subprocess.DEVNULL)
        for node in self.nodes:
            await node.write_config()
            node.start()
        for node in self.nodes:
            await node.ready()
        await asyncio.sleep(4)

    async def add_spare(self):
        """Starts one more node, which clients use from now on."""
        node, self.spare = self.spare, None
        await node.write_config()
        node.start()
        self.nodes.append(node)
        node.is_used = False
        await node.ready()
        node.is_used = True
        return node

    def is_cut(self, asked, port, since):
        """Whether the way to a node is cut for the connection that came at this time from this port of another node. A connection
        whose node is not known yet waits for the next look at the ports."""
        if not self.cut_from_peers:
            return False
        return asked is self.cut_from_peers or port in self.cut_ports or since > self.cut_ports_at

    async def cut_peers(self, node):
        """Cuts a node off from its peers, both ways; `None`: mends all ways."""
        self.cut_from_peers = node
        if node:
            await self.look_at_ports()
            self.looking = asyncio.create_task(self.look_again())

    async def look_again(self):
        while self.cut_from_peers:
            await asyncio.sleep(0.5)
            await self.look_at_ports()

    async def look_at_ports(self):
        if node := self.cut_from_peers:
            began = time.monotonic()
            self.cut_ports = await asyncio.to_thread(node.local_ports)
            self.cut_ports_at = began

    def start_redis(self):
        self.redis = subprocess.Popen(["redis-server", "--port", str(self.redis_port), "--save", "", "--appendonly", "no",
                                       "--dir", self.folder], stdout=subprocess.DEVNULL)

    def in_region(self, region):
        return [node for node in self.nodes if node.region == region]

    async def owners(self, asked, urls):
        """The names of the nodes that own these URLs, in the region of the node that is asked."""
        stream = await asyncio.open_connection("127.0.0.1", asked.admin)
        owners = {}
        for at in urls:
            target = f"/nodes/owner?url=http://edge.test/{at}"
            owners[at] = json.loads((await ask(asked.admin, "GET", target, "localhost", stream=stream))[2])["owner"]
        stream[1].close()
        return owners

    def stop(self):
        for process in [node.process for node in self.nodes] + [self.redis]:
            if process:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Load:
    """Requests until `count` have been sent or `is_over` is set. `skew`: the exponent of Zipf's law; 0: each URL as often. `hot`: a
    URL that gets half of all requests."""

    def __init__(self, fleet, seed, skew=0.9, hot=None):
        self.fleet, self.random, self.catalog = fleet, random.Random(seed), fleet.plan.catalog
        weights = [1 / (rank + 1) ** skew for rank in range(self.catalog.urls)]
        self.urls = list(range(self.catalog.urls))
        random.Random(1).shuffle(self.urls)
        if hot is not None:
            self.urls.append(hot)
            weights.append(sum(weights))
        self.weights = list(itertools.accumulate(weights))
        self.pairs, self.left, self.sent = set(), 0, 0
        self.errors, self.wrong, self.excused = [], [], 0
        self.per_node, self.waits, self.is_over = collections.Counter(), [], False

    async def run(self, count, in_flight):
        self.left, self.is_over = count, False
        await asyncio.gather(*(self.client() for _ in range(in_flight)))

    async def run_each_once(self, in_flight):
        """One request for each URL."""
        rest = list(self.urls)
        self.next_url = rest.pop
        self.left, self.is_over = len(rest), False
        await asyncio.gather(*(self.client() for _ in range(in_flight)))
        del self.next_url

    def next_url(self):
        return self.random.choices(self.urls, cum_weights=self.weights)[0]

    async def client(self):
        streams = {}
        while self.left > 0 and not self.is_over:
            self.left -= 1
            used = [node for node in self.fleet.nodes if node.is_used]
            node, at = self.random.choice(used), self.next_url()
            variant = self.random.choice("ab")
            body = self.catalog.body(at, variant)
            fields, is_range = [f"X-Variant: {variant}"], self.random.random() < self.catalog.ranges
            first = self.random.randrange(len(body)) if is_range else 0
            last = min(len(body) - 1, first + self.random.randrange(1, 20_000)) if is_range else len(body) - 1
            if is_range:
                fields.append(f"Range: bytes={first}-{last}")
            self.pairs.add((at, variant if self.catalog.varies(at) else "", node.region))
            began, stream, downs = time.monotonic(), streams.pop(node.name, None), node.downs
            if stream and (stream[1].is_closing() or stream[2] != downs or began - stream[3] > CLIENT_IDLE_MAX):
                stream[1].close()
                stream = None
            try:
                stream = stream or (*await asyncio.open_connection("127.0.0.1", node.http), downs, began)
                request = ask(node.http, "GET", f"/{at}", "edge.test", fields, stream[:2])
                status, got, said = await asyncio.wait_for(request, 30)
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError) as error:
                stream and stream[1].close()
                self.fail(node, downs, f"{node.name} /{at} {fields}: {type(error).__name__} after {time.monotonic() - began:.2f} s")
                continue
            streams[node.name] = (*stream[:3], time.monotonic())
            self.sent += 1
            self.per_node[node.name] += 1
            if node.downs == downs:
                self.waits.append(time.monotonic() - began)
            if status != (206 if is_range else 200):
                self.fail(node, downs, f"{node.name} /{at} {fields}: status {status} {got.get('proxy-status', '')}")
            elif said != body[first:last + 1]:
                self.wrong.append(f"{node.name} /{at} {fields}: {len(said)} bytes, not those of {first}-{last}: {got}")
        for stream in streams.values():
            stream[1].close()

    def fail(self, node, downs, text):
        # The node went down meanwhile: its client asks another node, as it would after a reset.
        if not node.is_used or node.downs != downs:
            self.excused += 1
        else:
            self.errors.append(text)


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0
