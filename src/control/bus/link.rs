//! Connections to Redis, and the few things that are said over them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::TlsCertificates;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline,
    ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, RedisFuture, RedisResult, TlsMode,
    Value,
};

use super::ledger::Receipt;
use super::record::{EntryId, PurgeRecord, StreamHead};
use super::settings::{RedisUrl, Settings, Topology};
use crate::control::fleet::{HeardNode, Heartbeat, StreamPlace};
use crate::random::random_u64;

/// How connections are made.
pub(super) struct Connector {
    url: RedisUrl,
    password: Option<String>,
    certificates: Option<TlsCertificates>,
    connect_timeout: Duration,
    command_timeout: Duration,
    keys: Arc<Keys>,
}

/// The names in Redis. All have one hash tag, so that a cluster keeps them together.
pub(super) struct Keys {
    state: String,
    stream: String,
    nodes: String,
    receipts: String,
    /// The channel of records.
    pub wake: String,
    /// The channel of one node's receipts, without the node's name.
    pub receipts_to: String,
}

/// What takes messages from subscriptions; called on the connection's task, must not wait.
pub(super) type OnMessage = Box<dyn Fn(String, Bytes) + Send + Sync>;

/// One connection. Clones share it.
#[derive(Clone)]
pub(super) struct Link {
    connection: Connection,
    keys: Arc<Keys>,
}

#[derive(Clone)]
enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// What Redis says at a heartbeat.
pub(super) struct Beat {
    pub head: StreamHead,
    /// What was last said under this node's name: by itself, or by another of that name.
    pub before: Heartbeat,
    /// All nodes that Redis knows.
    pub nodes: Vec<HeardNode>,
}

/// What Redis has kept of a purge.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    /// Where it stands in the stream.
    pub place: Option<StreamPlace>,
    /// Of each node.
    pub receipts: BTreeMap<String, Receipt>,
}

impl Receipts {
    pub(super) fn is_empty(&self) -> bool {
        self.place.is_none() && self.receipts.is_empty()
    }
}

/// A purge on its way to Redis.
pub(super) struct Outgoing {
    /// `None`: it can't be read, which whoever reads it will find.
    pub id: Option<String>,
    /// [`PurgeRecord`] as it is published.
    pub record: Bytes,
}

/// One entry of the stream.
pub(super) struct Entry {
    pub id: EntryId,
    pub epoch: String,
    pub number: u64,
    /// The id of the entry before it, when it was appended.
    pub previous: Option<EntryId>,
    /// `None`: a form that this version doesn't know.
    pub record: Option<PurgeRecord>,
    /// Its length in the stream.
    pub record_bytes: usize,
}

/// A receipt on its way to Redis.
pub(super) struct ReceiptMessage {
    /// The purge's id.
    pub id: String,
    /// The node that was asked for the purge.
    pub to: String,
    /// [`super::Receipt`] as text.
    pub text: String,
}

impl Connector {
    /// Reads the files that the settings name.
    pub(super) fn new(settings: &Settings, url: &RedisUrl) -> std::io::Result<Self> {
        let password = match &settings.password_file {
            Some(path) => Some(std::fs::read_to_string(path)?.trim_end().to_owned()),
            None => url.password.clone(),
        };
        let root_cert = settings.ca_file.as_ref().map(std::fs::read).transpose()?;
        let certificates =
            root_cert.map(|root| TlsCertificates { client_tls: None, root_cert: Some(root) });
        Ok(Self {
            url: url.clone(),
            password,
            certificates,
            connect_timeout: settings.connect_timeout,
            command_timeout: settings.command_timeout,
            keys: Arc::new(Keys::new(&settings.prefix)),
        })
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// A connection on which a command may take `block` longer than usual.
    pub(super) async fn connect(
        &self,
        block: Duration,
        on_message: Option<OnMessage>,
    ) -> RedisResult<Link> {
        let response_timeout = self.command_timeout + block;
        let connecting = self.connection(response_timeout, on_message);
        // Looking for a primary through several sentinels has no limit of its own.
        let connected = tokio::time::timeout(2 * self.connect_timeout, connecting).await;
        let connection = connected.map_err(|_| timed_out())??;
        Ok(Link { connection, keys: self.keys.clone() })
    }

    async fn connection(
        &self,
        response_timeout: Duration,
        on_message: Option<OnMessage>,
    ) -> RedisResult<Connection> {
        let push = on_message.map(|on_message| {
            move |push: PushInfo| {
                if let Some((channel, payload)) = message(push) {
                    on_message(channel, payload);
                }
                Ok::<(), ()>(())
            }
        });
        if self.url.topology == Topology::Cluster {
            let mut client = ClusterClient::builder(self.addresses())
                .use_protocol(ProtocolVersion::RESP3)
                .connection_timeout(self.connect_timeout)
                .response_timeout(response_timeout)
                .retries(1);
            if self.url.tls {
                client = client.tls(TlsMode::Secure);
            }
            if let Some(certificates) = self.certificates.clone() {
                client = client.certs(certificates);
            }
            if let Some(user) = &self.url.user {
                client = client.username(user);
            }
            if let Some(password) = &self.password {
                client = client.password(password);
            }
            if let Some(push) = push {
                client = client.push_sender(push);
            }
            return client.build()?.get_async_connection().await.map(Connection::Cluster);
        }
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(response_timeout));
        if let Some(push) = push {
            config = config.set_push_sender(push);
        }
        let client = match &self.url.topology {
            Topology::Sentinel { service } => self.sentinel(service)?.async_get_client().await?,
            _ => self.single()?,
        };
        client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::Single)
    }

    fn single(&self) -> RedisResult<Client> {
        let address = self.addresses().into_iter().next();
        let address = address.ok_or_else(|| invalid("no address"))?;
        let mut redis = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_db(self.url.database);
        if let Some(user) = &self.url.user {
            redis = redis.set_username(user);
        }
        if let Some(password) = &self.password {
            redis = redis.set_password(password);
        }
        let info = address.into_connection_info()?.set_redis_settings(redis);
        match &self.certificates {
            Some(certificates) if self.url.tls => {
                Client::build_with_tls(info, certificates.clone())
            }
            _ => Client::open(info),
        }
    }

    fn sentinel(&self, service: &str) -> RedisResult<SentinelClient> {
        let mut builder =
            SentinelClientBuilder::new(self.addresses(), service, SentinelServerType::Master)?
                .set_client_to_redis_protocol(ProtocolVersion::RESP3);
        if self.url.tls {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_sentinel_tls_mode(TlsMode::Secure);
        }
        if let Some(certificates) = &self.certificates {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates.clone());
        }
        if let Some(user) = &self.url.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = &self.password {
            builder = builder.set_client_to_redis_password(password);
        }
        builder.build()
    }

    fn addresses(&self) -> Vec<ConnectionAddr> {
        let address = |(host, port): &(String, u16)| match self.url.tls {
            true => ConnectionAddr::TcpTls {
                host: host.clone(),
                port: *port,
                insecure: false,
                tls_params: None,
            },
            false => ConnectionAddr::Tcp(host.clone(), *port),
        };
        self.url.hosts.iter().map(address).collect()
    }
}

impl Keys {
    fn new(prefix: &str) -> Self {
        let name = |what: &str| format!("{{{prefix}:purge}}:{what}");
        Self {
            state: name("state"),
            stream: name("stream"),
            nodes: name("nodes"),
            receipts: name("receipts:"),
            wake: name("wake"),
            receipts_to: name("receipts-to:"),
        }
    }

    fn receipts_of(&self, id: &str) -> String {
        format!("{}{id}", self.receipts)
    }
}

impl Link {
    /// Teaches Redis the scripts, so that they can be called by their names.
    pub(super) async fn load_scripts(&mut self) -> RedisResult<()> {
        let mut pipeline = redis::pipe();
        for script in [PUBLISH, BEAT, RENAME] {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(script).ignore();
        }
        if let Connection::Cluster(_) = self.connection {
            // A cluster's client sends this to every primary only when it stands alone.
            for script in [PUBLISH, BEAT, RENAME] {
                let mut load = redis::cmd("SCRIPT");
                load.arg("LOAD").arg(script);
                load.query_async::<Value>(self).await?;
            }
            return Ok(());
        }
        pipeline.exec_async(self).await
    }

    /// Appends records to the stream, in this order, each with a wake-up that carries it.
    pub(super) async fn publish(
        &mut self,
        purges: &[Outgoing],
        retention: Duration,
        receipts_kept: Duration,
    ) -> RedisResult<()> {
        let mut pipeline = redis::pipe();
        for Outgoing { id, record } in purges {
            let wakes = if record.len() <= WAKE_BYTES_MAX { &**record } else { b"" };
            let receipts = self.keys.receipts_of(id.as_deref().unwrap_or_default());
            pipeline
                .cmd("EVALSHA")
                .arg(sha1(PUBLISH))
                .arg(3)
                .arg(&self.keys.state)
                .arg(&self.keys.stream)
                .arg(receipts)
                .arg(new_epoch())
                .arg(retention.as_millis() as u64)
                .arg(&self.keys.wake)
                .arg(&**record)
                .arg(wakes)
                .arg(PLACE)
                .arg(receipts_kept.as_secs().max(1))
                .ignore();
        }
        pipeline.exec_async(self).await
    }

    /// Leaves the heartbeat of node `name`; learns the stream's head and the other nodes'
    /// heartbeats.
    pub(super) async fn beat(&mut self, name: &str, heartbeat: &Heartbeat) -> RedisResult<Beat> {
        let mut command = redis::cmd("EVALSHA");
        command
            .arg(sha1(BEAT))
            .arg(2)
            .arg(&self.keys.state)
            .arg(&self.keys.nodes)
            .arg(new_epoch())
            .arg(name)
            .arg(heartbeat.to_text());
        type Answer = (String, u64, String, u64, String, Vec<(String, String)>);
        let (epoch, number, id, now, before, nodes): Answer = command.query_async(self).await?;
        let head = StreamHead { epoch, number, id: parse_id(&id)? };
        // Milliseconds since 1970, and the heartbeat.
        let parse = |text: &str| {
            let (at_ms, heartbeat) = text.split_once(' ').unwrap_or((text, ""));
            (at_ms.parse().unwrap_or_default(), Heartbeat::parse(heartbeat))
        };
        let nodes = nodes.into_iter().map(|(node, text)| {
            let (at_ms, heartbeat): (u64, _) = parse(&text);
            HeardNode { node, at_ms, ago_ms: now.saturating_sub(at_ms), heartbeat }
        });
        Ok(Beat { head, before: parse(&before).1, nodes: nodes.collect() })
    }

    /// Takes a node out of the fleet.
    pub(super) async fn leave(&mut self, node: &str) -> RedisResult<()> {
        redis::cmd("HDEL").arg(&self.keys.nodes).arg(node).exec_async(self).await
    }

    /// Gives the history another name, unless somebody has just done so.
    pub(super) async fn rename_epoch(&mut self, known: &str) -> RedisResult<String> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(sha1(RENAME)).arg(1).arg(&self.keys.state).arg(known).arg(new_epoch());
        command.query_async(self).await
    }

    /// Up to `count` entries after `id`; waits up to `block` for one.
    pub(super) async fn read(
        &mut self,
        id: EntryId,
        count: usize,
        block: Duration,
    ) -> RedisResult<Vec<Entry>> {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(count).arg("BLOCK").arg(block.as_millis().max(1) as u64);
        command.arg("STREAMS").arg(&self.keys.stream).arg(id.to_string());
        let reply: Option<redis::streams::StreamReadReply> = command.query_async(self).await?;
        let entries = reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
        entries.map(|entry| parse_entry(&entry)).collect()
    }

    pub(super) async fn subscribe(&mut self, channels: &[&str]) -> RedisResult<()> {
        match &mut self.connection {
            Connection::Single(connection) => connection.subscribe(channels).await,
            Connection::Cluster(connection) => connection.subscribe(channels).await,
        }
    }

    pub(super) async fn ping(&mut self) -> RedisResult<()> {
        redis::cmd("PING").exec_async(self).await
    }

    /// Leaves receipts of node `name`, and tells those who wait for them.
    pub(super) async fn leave_receipts(
        &mut self,
        name: &str,
        receipts: &[ReceiptMessage],
        kept: Duration,
    ) -> RedisResult<()> {
        let mut pipeline = redis::pipe();
        for receipt in receipts {
            let key = self.keys.receipts_of(&receipt.id);
            let channel = format!("{}{}", self.keys.receipts_to, receipt.to);
            let message = format!("{} {name} {}", receipt.id, receipt.text);
            pipeline.cmd("HSET").arg(&key).arg(name).arg(&receipt.text).ignore();
            pipeline.cmd("EXPIRE").arg(&key).arg(kept.as_secs().max(1)).ignore();
            pipeline.cmd("PUBLISH").arg(channel).arg(message).ignore();
        }
        pipeline.exec_async(self).await
    }

    /// What is kept of a purge.
    pub(super) async fn receipts(&mut self, id: &str) -> RedisResult<Receipts> {
        let key = self.keys.receipts_of(id);
        let fields: Vec<(String, String)> =
            redis::cmd("HGETALL").arg(key).query_async(self).await?;
        let mut found = Receipts::default();
        for (name, text) in fields {
            if name == PLACE {
                found.place = parse_place(&text);
            } else if let Some(receipt) = Receipt::parse(&text) {
                found.receipts.insert(name, receipt);
            }
        }
        Ok(found)
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match &mut self.connection {
            Connection::Single(connection) => connection.req_packed_command(command),
            Connection::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match &mut self.connection {
            Connection::Single(link) => link.req_packed_commands(pipeline, offset, count),
            Connection::Cluster(link) => link.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match &self.connection {
            Connection::Single(connection) => connection.get_db(),
            Connection::Cluster(connection) => connection.get_db(),
        }
    }
}

fn message(push: PushInfo) -> Option<(String, Bytes)> {
    if push.kind != redis::PushKind::Message {
        return None;
    }
    let mut data = push.data.into_iter();
    match (data.next()?, data.next()?) {
        (Value::BulkString(channel), Value::BulkString(payload)) => {
            Some((String::from_utf8(channel).ok()?, payload.into()))
        }
        _ => None,
    }
}

fn parse_entry(entry: &redis::streams::StreamId) -> RedisResult<Entry> {
    let epoch: Option<String> = entry.get("e");
    let number: Option<u64> = entry.get("n");
    let record: Option<Vec<u8>> = entry.get("r");
    let previous: Option<String> = entry.get("p");
    Ok(Entry {
        id: parse_id(&entry.id)?,
        epoch: epoch.unwrap_or_default(),
        number: number.unwrap_or_default(),
        previous: previous.and_then(|id| id.parse().ok()),
        record_bytes: record.as_ref().map_or(0, Vec::len),
        record: record.and_then(|record| PurgeRecord::parse(&record)),
    })
}

fn parse_place(text: &str) -> Option<StreamPlace> {
    let (epoch, number) = text.split_once(' ')?;
    Some((epoch.to_owned(), number.parse().ok()?))
}

fn parse_id(text: &str) -> RedisResult<EntryId> {
    text.parse().map_err(invalid)
}

fn invalid(why: &'static str) -> RedisError {
    (ErrorKind::UnexpectedReturnType, why).into()
}

fn timed_out() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

/// A pipeline's error names each of its hundred commands.
pub(super) fn brief(error: &RedisError) -> String {
    let told = error.to_string();
    match told.char_indices().nth(TOLD_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &told[..at]),
        None => told,
    }
}

/// A name for a history, in case that there is none yet.
fn new_epoch() -> String {
    format!("{:016x}", random_u64())
}

/// The name that Redis gives a script.
fn sha1(script: &str) -> String {
    redis::Script::new(script).get_hash().to_owned()
}

/// Appends, numbers, trims, wakes, and notes the place beside the receipts, in one step.
const PUBLISH: &str = "\
local state, stream, receipts = KEYS[1], KEYS[2], KEYS[3]
local epoch = redis.call('HGET', state, 'epoch')
if not epoch then
  epoch = ARGV[1]
  redis.call('HSET', state, 'epoch', epoch)
end
local number = redis.call('HINCRBY', state, 'number', 1)
local time = redis.call('TIME')
local oldest = string.format('%.0f', math.max(0, time[1] * 1000 - ARGV[2]))
local previous = redis.call('HGET', state, 'id') or '0-0'
local id = redis.call('XADD', stream, 'MINID', '~', oldest, '*',
  'e', epoch, 'n', number, 'p', previous, 'r', ARGV[4])
redis.call('HSET', state, 'id', id)
redis.call('HSET', receipts, ARGV[6], epoch .. ' ' .. string.format('%.0f', number))
redis.call('EXPIRE', receipts, ARGV[7])
redis.call('PUBLISH', ARGV[3], ARGV[5])
return id
";

/// Notes that a node is there; answers the stream's head, the time, what was last said under the
/// node's name, and all nodes.
const BEAT: &str = "\
local state, nodes = KEYS[1], KEYS[2]
local epoch = redis.call('HGET', state, 'epoch')
if not epoch then
  epoch = ARGV[1]
  redis.call('HSET', state, 'epoch', epoch)
end
local number = tonumber(redis.call('HGET', state, 'number') or '0')
local id = redis.call('HGET', state, 'id') or '0-0'
local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
local before = redis.call('HGET', nodes, ARGV[2]) or ''
redis.call('HSET', nodes, ARGV[2], string.format('%.0f', now) .. ' ' .. ARGV[3])
local all, flat = {}, redis.call('HGETALL', nodes)
for at = 1, #flat, 2 do all[#all + 1] = {flat[at], flat[at + 1]} end
return {epoch, number, id, now, before, all}
";

const RENAME: &str = "\
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch == ARGV[1] then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[2])
  return ARGV[2]
end
return epoch
";

/// Where a purge stands in the stream, as a field beside the receipts; no node can be called so.
const PLACE: &str = "@place";
const TOLD_CHARS_MAX: usize = 200;
/// A longer record wakes nobody: Redis cuts off subscribers that it has to buffer much for.
/// The readers of the stream have it at once anyway.
const WAKE_BYTES_MAX: usize = 64 << 10;
