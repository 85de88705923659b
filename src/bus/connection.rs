//! Connections to Redis (one server, Sentinel or a cluster), and the commands of the purge bus.

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

use super::heartbeats::{HEARTBEAT, LEAVE};
use super::ledger::Receipt;
use super::record::{PurgeRecord, StreamEntry};
use super::settings::{RedisUrl, Settings, Topology};
use crate::purge::EntryId;
use crate::random::random_u64;

/// Opens connections to Redis.
pub(super) struct Connector {
    url: RedisUrl,
    password: Option<String>,
    certificates: Option<TlsCertificates>,
    connect_timeout: Duration,
    command_timeout: Duration,
    keys: Arc<RedisKeys>,
}

/// Names of the keys and channels in Redis. All have the same hash tag, so that they are on one node of
/// a cluster.
pub(super) struct RedisKeys {
    /// Hash: epoch, number and id of the stream's last entry; version of the node table.
    pub state: String,
    stream: String,
    /// Hash: each node's last heartbeat, by name.
    pub nodes: String,
    /// Hash: each node's announcement, by name.
    pub members: String,
    /// Sorted set: the nodes that have not missed three heartbeats, by the time of the last.
    pub beats: String,
    /// Sorted set: the nodes, by the version of the table that changed them last.
    pub changes: String,
    receipts: String,
    /// Channel of the wake-ups.
    pub wake: String,
    /// Channel of the receipts for a node, without the node's name at its end.
    pub receipts_to: String,
}

/// Handles a message of a subscription (channel, payload). Called on the connection's task: it must
/// not wait.
pub(super) type MessageHandler = Box<dyn Fn(String, Bytes) + Send + Sync>;

/// A connection to Redis. Clones share it.
#[derive(Clone)]
pub(super) struct RedisConnection {
    kind: ConnectionKind,
    pub(super) keys: Arc<RedisKeys>,
}

#[derive(Clone)]
enum ConnectionKind {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// The receipts of a purge in Redis.
#[derive(Debug, Default)]
pub(super) struct StoredReceipts {
    /// Whether the stream had the purge.
    pub is_published: bool,
    /// Receipts by node name.
    pub receipts: BTreeMap<String, Receipt>,
}

impl StoredReceipts {
    pub(super) fn is_empty(&self) -> bool {
        !self.is_published && self.receipts.is_empty()
    }
}

/// A purge to publish.
pub(super) struct PurgeMessage {
    /// Id of the purge. `None`: the record cannot be parsed; nodes that read it soft-purge everything.
    pub id: Option<String>,
    /// The encoded [`PurgeRecord`].
    pub record: Bytes,
}

/// A receipt to send.
pub(super) struct ReceiptMessage {
    /// The purge's id.
    pub id: String,
    /// The node that received the purge request.
    pub to: String,
    /// The encoded [`super::Receipt`].
    pub text: String,
}

impl Connector {
    /// Reads the password and certificate files.
    ///
    /// # Errors
    /// A file cannot be read.
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
            keys: Arc::new(RedisKeys::new(&settings.prefix)),
        })
    }

    pub(super) fn keys(&self) -> &RedisKeys {
        &self.keys
    }

    /// Opens a connection. A command may take `block` longer than `command_timeout`.
    pub(super) async fn connect(
        &self,
        block: Duration,
        on_message: Option<MessageHandler>,
    ) -> RedisResult<RedisConnection> {
        let response_timeout = self.command_timeout + block;
        let connecting = self.connect_to_topology(response_timeout, on_message);
        // The search for a primary through several sentinels has no timeout of its own.
        let connected = tokio::time::timeout(2 * self.connect_timeout, connecting).await;
        let kind = connected.map_err(|_| timed_out())??;
        Ok(RedisConnection { kind, keys: self.keys.clone() })
    }

    async fn connect_to_topology(
        &self,
        response_timeout: Duration,
        on_message: Option<MessageHandler>,
    ) -> RedisResult<ConnectionKind> {
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
            return client.build()?.get_async_connection().await.map(ConnectionKind::Cluster);
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
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map(ConnectionKind::Single)
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

impl RedisKeys {
    fn new(prefix: &str) -> Self {
        let name = |what: &str| format!("{{{prefix}:purge}}:{what}");
        Self {
            state: name("state"),
            stream: name("stream"),
            nodes: name("nodes"),
            members: name("members"),
            beats: name("beats"),
            changes: name("changes"),
            receipts: name("receipts:"),
            wake: name("wake"),
            receipts_to: name("receipts-to:"),
        }
    }

    fn receipts_of(&self, id: &str) -> String {
        format!("{}{id}", self.receipts)
    }
}

impl RedisConnection {
    /// Loads the scripts into Redis, so that EVALSHA can call them.
    pub(super) async fn load_scripts(&mut self) -> RedisResult<()> {
        let mut pipeline = redis::pipe();
        for script in SCRIPTS {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(script).ignore();
        }
        if let ConnectionKind::Cluster(_) = self.kind {
            // The cluster client sends SCRIPT LOAD to every primary only outside a pipeline.
            for script in SCRIPTS {
                let mut load = redis::cmd("SCRIPT");
                load.arg("LOAD").arg(script);
                load.query_async::<Value>(self).await?;
            }
            return Ok(());
        }
        pipeline.exec_async(self).await
    }

    /// Appends records to the stream, in this order, and sends each to all nodes as a wake-up.
    pub(super) async fn publish(
        &mut self,
        purges: &[PurgeMessage],
        retention: Duration,
        receipts_kept: Duration,
    ) -> RedisResult<()> {
        let mut pipeline = redis::pipe();
        for PurgeMessage { id, record } in purges {
            let wake_up = if record.len() <= WAKE_BYTES_MAX { &**record } else { b"" };
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
                .arg(wake_up)
                .arg(POSITION_FIELD)
                .arg(receipts_kept.as_secs().max(1))
                .ignore();
        }
        pipeline.exec_async(self).await
    }

    /// The stream's epoch.
    pub(super) async fn epoch(&mut self) -> RedisResult<String> {
        redis::cmd("HGET").arg(&self.keys.state).arg("epoch").query_async(self).await
    }

    /// Gives the stream a new epoch, unless another node has just done so. Returns the epoch.
    pub(super) async fn rename_epoch(&mut self, known: &str) -> RedisResult<String> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(sha1(RENAME)).arg(1).arg(&self.keys.state).arg(known).arg(new_epoch());
        command.query_async(self).await
    }

    /// Reads up to `count` entries after `id`. Waits up to `block` for the first.
    pub(super) async fn read(
        &mut self,
        id: EntryId,
        count: usize,
        block: Duration,
    ) -> RedisResult<Vec<StreamEntry>> {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(count).arg("BLOCK").arg(block.as_millis().max(1) as u64);
        command.arg("STREAMS").arg(&self.keys.stream).arg(id.to_string());
        let reply: Option<redis::streams::StreamReadReply> = command.query_async(self).await?;
        let entries = reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
        entries.map(|entry| parse_entry(&entry)).collect()
    }

    /// Reads up to `count` entries up to and including `id`, the last one first.
    pub(super) async fn read_back(
        &mut self,
        id: EntryId,
        count: usize,
    ) -> RedisResult<Vec<StreamEntry>> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(&self.keys.stream).arg(id.to_string()).arg("-").arg("COUNT").arg(count);
        let reply: redis::streams::StreamRangeReply = command.query_async(self).await?;
        reply.ids.iter().map(parse_entry).collect()
    }

    /// Subscribes to channels.
    pub(super) async fn subscribe(&mut self, channels: &[&str]) -> RedisResult<()> {
        match &mut self.kind {
            ConnectionKind::Single(connection) => connection.subscribe(channels).await,
            ConnectionKind::Cluster(connection) => connection.subscribe(channels).await,
        }
    }

    pub(super) async fn ping(&mut self) -> RedisResult<()> {
        redis::cmd("PING").exec_async(self).await
    }

    /// Stores receipts of node `name` for `kept`, and sends them to the nodes that wait for them: one command,
    /// and one message to each of those nodes, however many receipts there are.
    pub(super) async fn store_receipts(
        &mut self,
        name: &str,
        receipts: &[ReceiptMessage],
        kept: Duration,
    ) -> RedisResult<()> {
        let mut messages: BTreeMap<&str, String> = BTreeMap::new();
        for receipt in receipts {
            let message = messages.entry(&receipt.to).or_default();
            let separator = if message.is_empty() { "" } else { "\n" };
            message.push_str(&format!("{separator}{} {name} {}", receipt.id, receipt.text));
        }
        let mut command = redis::cmd("EVALSHA");
        command.arg(sha1(RECEIPTS)).arg(receipts.len());
        for receipt in receipts {
            command.arg(self.keys.receipts_of(&receipt.id));
        }
        command.arg(name).arg(kept.as_secs().max(1));
        for receipt in receipts {
            command.arg(&receipt.text);
        }
        for (to, message) in messages {
            command.arg(format!("{}{to}", self.keys.receipts_to)).arg(message);
        }
        command.exec_async(self).await
    }

    /// Reads the receipts of a purge.
    pub(super) async fn fetch_receipts(&mut self, id: &str) -> RedisResult<StoredReceipts> {
        let key = self.keys.receipts_of(id);
        let fields: Vec<(String, String)> =
            redis::cmd("HGETALL").arg(key).query_async(self).await?;
        let mut found = StoredReceipts::default();
        for (name, text) in fields {
            if name == POSITION_FIELD {
                found.is_published = true;
            } else if let Some(receipt) = Receipt::parse(&text) {
                found.receipts.insert(name, receipt);
            }
        }
        Ok(found)
    }
}

impl ConnectionLike for RedisConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match &mut self.kind {
            ConnectionKind::Single(connection) => connection.req_packed_command(command),
            ConnectionKind::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match &mut self.kind {
            ConnectionKind::Single(link) => link.req_packed_commands(pipeline, offset, count),
            ConnectionKind::Cluster(link) => link.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match &self.kind {
            ConnectionKind::Single(connection) => connection.get_db(),
            ConnectionKind::Cluster(connection) => connection.get_db(),
        }
    }
}

/// The channel and payload of a message; `None` for other pushes.
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

fn parse_entry(entry: &redis::streams::StreamId) -> RedisResult<StreamEntry> {
    let epoch: Option<String> = entry.get("e");
    let number: Option<u64> = entry.get("n");
    let record: Option<Vec<u8>> = entry.get("r");
    let previous: Option<String> = entry.get("p");
    Ok(StreamEntry {
        id: parse_id(&entry.id)?,
        epoch: epoch.unwrap_or_default(),
        number: number.unwrap_or_default(),
        previous: previous.and_then(|id| id.parse().ok()),
        record_bytes: record.as_ref().map_or(0, Vec::len),
        record: record.and_then(|record| PurgeRecord::parse(&record)),
    })
}

pub(super) fn parse_id(text: &str) -> RedisResult<EntryId> {
    text.parse().map_err(invalid)
}

fn invalid(why: &'static str) -> RedisError {
    (ErrorKind::UnexpectedReturnType, why).into()
}

fn timed_out() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

/// The error as text, truncated: the error of a pipeline lists each of its commands. Refused credentials are
/// explained, because the server's text is about its protocol.
pub(super) fn shortened(error: &RedisError) -> String {
    let credentials = match error.code() {
        Some("NOAUTH") => {
            "Redis requires a password: set bus.password_file, or the URL redis://:PASSWORD@host"
        }
        Some("WRONGPASS") => {
            "Redis refuses this user or password: check bus.password_file and the user in bus.redis"
        }
        _ => "",
    };
    if !credentials.is_empty() {
        return credentials.to_owned();
    }
    let text = error.to_string();
    match text.char_indices().nth(ERROR_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// A random epoch, which a script uses if the stream has none.
pub(super) fn new_epoch() -> String {
    format!("{:016x}", random_u64())
}

/// The hash by which EVALSHA calls a script.
pub(super) fn sha1(script: &str) -> String {
    redis::Script::new(script).get_hash().to_owned()
}

/// The scripts that EVALSHA calls.
const SCRIPTS: [&str; 5] = [PUBLISH, RECEIPTS, RENAME, HEARTBEAT, LEAVE];

/// In one atomic step: numbers the record, appends it, trims the stream, stores the record's position
/// with the receipts, and publishes the wake-up.
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

/// Stores one receipt of a node for each key, unless there is one, and publishes messages. A key has had a
/// lifetime since its purge was published, unless Redis has lost it.
const RECEIPTS: &str = "\
for at, key in ipairs(KEYS) do
  redis.call('HSETNX', key, ARGV[1], ARGV[at + 2])
  if redis.call('HLEN', key) == 1 then redis.call('EXPIRE', key, ARGV[2]) end
end
for at = #KEYS + 3, #ARGV, 2 do redis.call('PUBLISH', ARGV[at], ARGV[at + 1]) end
return #KEYS
";

/// Replaces the epoch if it is still the given one. Returns the epoch.
const RENAME: &str = "\
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch == ARGV[1] then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[2])
  return ARGV[2]
end
return epoch
";

/// Field with a purge's position in the stream, beside the receipts. A node name cannot begin with `@`.
const POSITION_FIELD: &str = "@place";
const ERROR_CHARS_MAX: usize = 200;
/// A longer record is not sent as a wake-up, because Redis disconnects subscribers with large output
/// buffers. Nodes read it from the stream, which wakes their readers too.
const WAKE_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_credentials_are_explained() {
        let text = |code: &str| {
            let detail = Some("HELLO must be called with …".to_owned());
            shortened(&redis::make_extension_error(code.to_owned(), detail))
        };
        assert!(text("NOAUTH").starts_with("Redis requires a password: set bus.password_file"));
        assert!(text("WRONGPASS").starts_with("Redis refuses this user or password: check"));
        assert!(text("NOPERM").contains("NOPERM"));
    }
}
