//! Suggestions for addresses, networks, hosts and URLs that are nearly right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Subnets};
use toml::de::DeValue;

use super::{Remedy, near, several, variables, write};
use crate::upstream::SOCKET_PATH_BYTES_MAX;

/// A network in another notation: a netmask, a range of addresses, a wildcard.
pub(crate) fn network(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    let text = text.trim();
    if let Some(remedy) = several(text) {
        return Some(remedy);
    }
    if let Some((first, last)) = text.split_once('-') {
        let (first, last): (Ipv4Addr, Ipv4Addr) =
            (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let networks: Vec<_> = Ipv4Subnets::new(first, last, 0).take(9).collect();
        let networks: Vec<_> =
            networks.iter().map(|network| format!("{:?}", network.to_string())).collect();
        let fits = (1..=8).contains(&networks.len());
        return fits.then(|| format!("write {}", networks.join(", ")));
    }
    if let Some((address, prefix)) = text.split_once('/') {
        let address: IpAddr = address.parse().ok()?;
        if let Ok(mask) = prefix.parse::<Ipv4Addr>() {
            let network = IpNet::with_netmask(address, mask.into()).ok()?;
            return write(network.trunc().to_string());
        }
        let max = if address.is_ipv4() { 32 } else { 128 };
        return Some(format!("the prefix length of such an address is 0 to {max}"));
    }
    let octets: Vec<&str> = text.trim_end_matches(".*").split('.').collect();
    if text.ends_with('*') && (1..=3).contains(&octets.len()) {
        let zeros = ".0".repeat(4 - octets.len());
        let network = format!("{}{zeros}/{}", octets.join("."), 8 * octets.len());
        return network.parse::<IpNet>().ok().and_then(|network| write(network.to_string()));
    }
    let is_name = text.contains(|c: char| c.is_ascii_alphabetic()) && !text.contains(':');
    is_name.then(|| "names are not looked up here: write addresses".to_owned())
}

/// An address with a port or a prefix length, or the name of a host.
pub(crate) fn address(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    let bare = text.split('/').next()?.trim_matches(['[', ']']);
    if bare.parse::<IpAddr>().is_ok_and(|address| !address.is_unspecified()) && bare != &**text {
        return write(bare);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return write(address.ip().to_string());
    }
    if let Some(remedy) = several(text) {
        return Some(remedy);
    }
    let is_name = text.contains(|c: char| c.is_ascii_alphabetic()) && !text.contains(':');
    is_name.then(|| "names are not looked up here: write addresses".to_owned())
}

/// An address with port that has no address, no port, or a name.
pub(crate) fn socket(value: &DeValue<'_>) -> Remedy {
    let port = match value {
        DeValue::Integer(port) => port.as_str().parse::<u16>().ok(),
        DeValue::String(text) => {
            let bare = text.strip_prefix('*').unwrap_or(text);
            bare.strip_prefix(':').unwrap_or(bare).parse::<u16>().ok()
        }
        _ => None,
    };
    if let Some(port) = port {
        return Some(format!(
            "write \"127.0.0.1:{port}\" for this machine only, or \"0.0.0.0:{port}\" for all interfaces"
        ));
    }
    if let DeValue::Array(_) = value {
        return Some("write one address; each listener is a table [[listeners]]".to_owned());
    }
    let DeValue::String(text) = value else { return None };
    if let Some(remedy) = variables(text) {
        return Some(remedy);
    }
    if text.starts_with("unix:") || text.starts_with('/') {
        return Some("a node listens on IP addresses, and not on Unix sockets".to_owned());
    }
    if let Some((_, rest)) = text.split_once("://") {
        let address = rest.trim_end_matches('/');
        return match address.parse::<SocketAddr>() {
            Ok(_) => write(address),
            Err(_) => Some("write an IP address and the port, without scheme and path".to_owned()),
        };
    }
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if inner.is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok()) {
        return Some(format!("add the port, as in \"{text}:PORT\""));
    }
    if let Some((address, port)) = bare_ipv6(text) {
        return Some(format!(
            "an IPv6 address with a port has brackets: write \"[{address}]:{port}\""
        ));
    }
    if text.parse::<IpAddr>().is_ok() {
        let example =
            if text.contains(':') { format!("[{text}]:PORT") } else { format!("{text}:PORT") };
        return Some(format!("add the port, as in {example:?}"));
    }
    let (host, port) = text.rsplit_once(':')?;
    if let Ok(address) = host.parse::<IpAddr>() {
        return match port.parse::<u16>() {
            // An IPv6 address without brackets.
            Ok(port) => write(SocketAddr::new(address, port).to_string()),
            Err(_) => Some("a port is a number from 1 to 65535".to_owned()),
        };
    }
    port.parse::<u16>().ok()?;
    match host {
        "localhost" => write(format!("127.0.0.1:{port}")),
        _ => Some("names are not looked up here: write an IP address and the port".to_owned()),
    }
}

/// A host with scheme, port, path, or a wildcard in another notation.
pub(crate) fn host(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    if let Some(remedy) = several(text) {
        return Some(remedy);
    }
    if let Some(remedy) = variables(text) {
        return Some(remedy);
    }
    if text.is_empty() || &**text == "_" {
        return Some("write \"*\" for all other hosts".to_owned());
    }
    if text.starts_with(['~', '^']) || text.contains(['(', '\\', '$']) {
        return Some("there are no regular expressions: write each host, or \"*.example.org\" for all below one".to_owned());
    }
    if !text.is_ascii() {
        return Some(
            "write the name as DNS has it, in ASCII: an international name begins with \"xn--\""
                .to_owned(),
        );
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return write(format!("[{text}]"));
    }
    if let Some(remedy) = label(text) {
        return Some(remedy);
    }
    let rest = text.split_once("://").map_or(&**text, |(_, rest)| rest);
    let name = rest.split(['/', '?', '#']).next()?;
    let name = name.rsplit_once(':').map_or(name, |(name, _)| name).trim_end_matches('.');
    let parent = name.trim_start_matches(['*', '.']);
    if parent.contains('*') {
        return Some("\"*\" stands only at the beginning, for the labels before a name".to_owned());
    }
    let name = if parent.len() < name.len() { format!("*.{parent}") } else { parent.to_owned() };
    let labels = name.trim_start_matches("*.").split('.');
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    (name != **text && { labels }.all(is_label)).then(|| write(name))?
}

/// A host name one of whose labels no name can have, or an address that is none.
fn label(name: &str) -> Remedy {
    let labels = || name.split('.').map(|label| label.trim_start_matches('*'));
    if let Some(label) = labels().find(|label| label.starts_with('-') || label.ends_with('-')) {
        return Some(format!(
            "{label:?} begins or ends with \"-\", and no part of a host name does"
        ));
    }
    if labels().any(|label| label.len() > 63) {
        return Some("a part of a host name has at most 63 characters".to_owned());
    }
    let is_number = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_digit());
    labels().next_back().is_some_and(is_number).then(|| {
        "a name that ends in a number is an IPv4 address, which has four numbers from 0 to 255"
            .to_owned()
    })
}

/// The URL of an origin without scheme, with a path, or with an impossible port.
pub(crate) fn origin(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    let text = text.trim();
    if let Some(remedy) = variables(text) {
        return Some(remedy);
    }
    if let Some((scheme, address)) = text.split_once("://")
        && let Some((address, port)) = bare_ipv6(address)
    {
        return Some(format!(
            "an IPv6 address with a port has brackets: write \"{scheme}://[{address}]:{port}\""
        ));
    }
    if let Some(remedy) = unix_origin(text).or_else(|| other_form_of_origin(text)) {
        return Some(remedy);
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        if text.parse::<Ipv6Addr>().is_ok() {
            return write(format!("http://[{text}]"));
        }
        let authority = text.split('/').next()?;
        let scheme = likely_scheme(authority);
        return (!authority.is_empty() && !authority.contains(' '))
            .then(|| write(format!("{scheme}://{authority}")))?;
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.is_empty() {
        return Some(format!("the host is missing: write \"{scheme}://origin.example\""));
    }
    if let Some((_, port)) = authority.rsplit_once(':').filter(|(host, _)| !host.ends_with(':'))
        && !port.ends_with(']')
        && port.parse::<u16>().map_or(true, |port| port == 0)
    {
        return Some("a port is a number from 1 to 65535".to_owned());
    }
    if !["http", "https"].contains(&scheme) {
        return Some("an origin is reached by http or https".to_owned());
    }
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    if let Some(remedy) = label(host).filter(|_| host.parse::<IpAddr>().is_err()) {
        return Some(remedy);
    }
    let path = path.trim_end_matches('/');
    match path.is_empty() {
        true if text.ends_with('/') => write(text.trim_end_matches('/')),
        true => None,
        false => Some(format!(
            "write \"{scheme}://{authority}\", and add_prefix = \"/{path}\" in the site or rule"
        )),
    }
}

/// The scheme of an origin that is written without one. Addresses, `localhost` and names without a dot are servers nearby, which
/// rarely have a certificate.
fn likely_scheme(authority: &str) -> &'static str {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (authority, ""),
    };
    let is_public = host.contains('.') && host.parse::<Ipv4Addr>().is_err();
    match port {
        "443" | "8443" => "https",
        "80" | "8080" => "http",
        _ if is_public => "https",
        _ => "http",
    }
}

/// An origin behind a Unix socket.
fn unix_origin(text: &str) -> Remedy {
    if let Some(path) = text.strip_prefix("unix:") {
        let most = SOCKET_PATH_BYTES_MAX;
        return Some(match path.len() > most && path.starts_with('/') {
            true => format!(
                "the path of a Unix socket has at most {most} bytes, this one {}",
                path.len()
            ),
            false => {
                "write the absolute path of a Unix socket, as in \"unix:/run/app.sock\"".to_owned()
            }
        });
    }
    if text.starts_with("https://unix:") || text.starts_with("http://unix:") {
        return Some("write \"unix:/PATH\" for a Unix socket, which has no TLS".to_owned());
    }
    None
}

/// Remedies for values that are no URL of one server: options of other servers, names of SRV records, a password, a protocol as scheme, a wildcard.
fn other_form_of_origin(text: &str) -> Remedy {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
        return Some("a URL has no user and password here: set request_fields.set = { Authorization = … }, or [pools.NAME.secret_header] with a file".to_owned());
    }
    if let Some((url, _)) = text.split_once(' ').filter(|(url, _)| !url.ends_with(',')) {
        return Some(format!(
            "options of an origin stand in a table: write {{ url = {url:?}, weight = 2 }}"
        ));
    }
    if let Some(name) = srv_name(text) {
        let scheme =
            if text.starts_with("https") || name.contains("_https.") { "https" } else { "http" };
        return Some(format!(
            "this is a name of SRV records: write {{ srv = \"{scheme}://{name}\" }}"
        ));
    }
    if let Some((_, rest)) =
        text.split_once("://").filter(|(scheme, _)| ["h2c", "h2", "grpc", "grpcs"].contains(scheme))
    {
        let scheme =
            if text.starts_with("h2c:") || text.starts_with("grpc:") { "http" } else { "https" };
        return Some(format!("write \"{scheme}://{rest}\", and protocol = \"http2\" in the pool"));
    }
    if text.contains("://") && text.contains('*') {
        return Some("an origin is one server: its name has no wildcard".to_owned());
    }
    None
}

/// The name of SRV records (RFC 2782) in the place of an origin's host.
pub(crate) fn srv_name(text: &str) -> Option<&str> {
    let name = text.split_once("://").map_or(text, |(_, rest)| rest);
    let is_service = name.starts_with('_') && (name.contains("._tcp.") || name.contains("._udp."));
    is_service.then_some(name)
}

/// A Redis URL without scheme, with another one, or with a database that is no number.
pub(crate) fn redis(value: &DeValue<'_>) -> Remedy {
    if let DeValue::Array(_) = value {
        return Some(
            "write one URL; it may list several hosts, as in \"redis+cluster://a:6379,b:6379\""
                .to_owned(),
        );
    }
    let DeValue::String(text) = value else { return None };
    let text = text.trim();
    if text.contains(['?', ' ']) {
        // The parser says why.
        return None;
    }
    let secret = "a password with special characters is percent-encoded in a URL";
    let Some((scheme, rest)) = text.split_once("://") else {
        let rest = text.split_once(":/").map_or(text, |(_, rest)| rest);
        // A URL with a password is not repeated in a message.
        let is_server = !rest.is_empty() && !rest.contains(['@', ' ', '/']);
        return is_server.then(|| write(format!("redis://{rest}")))?;
    };
    let known = ["redis", "rediss", "redis+sentinel", "redis+cluster"];
    if scheme == "unix" || scheme.ends_with("+unix") {
        return Some(
            "a Redis server is reached over TCP: write \"redis://127.0.0.1:6379\"".to_owned(),
        );
    }
    let kind = ["sentinel", "cluster"].into_iter().find(|kind| scheme.ends_with(kind));
    if let Some(kind) = kind.filter(|_| !scheme.contains('+')) {
        return Some(format!("the URL of such Redis servers begins with redis+{kind}://"));
    }
    if scheme.starts_with("http") || !scheme.contains("redis") && !scheme.contains("valkey") {
        let near = near(scheme, known).unwrap_or("redis");
        return Some(format!("the URL of a Redis server begins with {near}://"));
    }
    let (hosts, database) = rest.rsplit_once('/').unwrap_or((rest, ""));
    if hosts.contains('@') && (hosts.matches('@').count() > 1 || hosts.contains('/')) {
        return Some(secret.to_owned());
    }
    let is_number = database.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number && !scheme.contains("sentinel") {
        return Some("a database is a number, such as /0".to_owned());
    }
    let port = hosts.rsplit_once(':').map(|(_, port)| port);
    let is_port = |port: &str| port.ends_with(']') || port.parse::<u16>().is_ok();
    (!port.is_none_or(is_port)).then(|| "a port is a number from 1 to 65535".to_owned())
}

/// `::1:80`, which is an address as it stands, and hardly meant so: the address and the port.
fn bare_ipv6(text: &str) -> Option<(&str, u16)> {
    text.parse::<Ipv6Addr>().ok()?;
    let (address, port) = text.rsplit_once(':')?;
    address.parse::<Ipv6Addr>().ok()?;
    port.parse().ok().filter(|port| *port >= 80).map(|port| (address, port))
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;
    use super::*;

    #[test]
    fn networks_of_other_notations_are_translated() {
        check(network, "10.0.0.0/255.255.0.0", "write \"10.0.0.0/16\"");
        check(network, "10.0.0.0-10.0.0.255", "write \"10.0.0.0/24\"");
        check(network, "10.0.0.0-10.0.1.63", "write \"10.0.0.0/24\", \"10.0.1.0/26\"");
        check(network, "192.168.*", "write \"192.168.0.0/16\"");
        check(network, "10.0.0.0/33", "the prefix length of such an address is 0 to 32");
        check(network, "lb.example", "names are not looked up here: write addresses");
        check(network, "10.1", "");
    }

    #[test]
    fn addresses_and_hosts_are_completed_or_stripped() {
        check(socket, "localhost:80", "write \"127.0.0.1:80\"");
        check(socket, "9.9.9.9", "add the port, as in \"9.9.9.9:PORT\"");
        check(socket, "::1:80", "an IPv6 address with a port has brackets: write \"[::1]:80\"");
        check(socket, "::1", "add the port, as in \"[::1]:PORT\"");
        check(socket, "$ADDRESS", "write \"${env.ADDRESS}\"");
        check(socket, "1.2.3.4:99999", "a port is a number from 1 to 65535");
        check(redis, "redis:/a:1", "write \"redis://a:1\"");
        check(redis, "a:1", "write \"redis://a:1\"");
        check(redis, "http://a:1", "the URL of a Redis server begins with redis://");
        check(redis, "redis://a:1/db", "a database is a number, such as /0");
        check(redis, "redis://a:port", "a port is a number from 1 to 65535");
        check(
            redis,
            "redis://u:p@w@a:1",
            "a password with special characters is percent-encoded in a URL",
        );
        check(host, "https://a.example:443/x", "write \"a.example\"");
        check(host, "*a.example", "write \"*.a.example\"");
        check(host, ".a.example", "write \"*.a.example\"");
        check(host, "a b", "write each by itself: [\"a\", \"b\"]");
        check(origin, "a.example", "write \"https://a.example\"");
        check(origin, "a.example:8080", "write \"http://a.example:8080\"");
        check(origin, "127.0.0.1:3000", "write \"http://127.0.0.1:3000\"");
        check(origin, "localhost:3000", "write \"http://localhost:3000\"");
        check(origin, "app:8443", "write \"https://app:8443\"");
        check(origin, "[::1]", "write \"http://[::1]\"");
        check(origin, "::1", "write \"http://[::1]\"");
        check(origin, "http://a:99999", "a port is a number from 1 to 65535");
        check(origin, "ftp://a", "an origin is reached by http or https");
        check(origin, "https://a/", "write \"https://a\"");
        check(
            origin,
            "https://a/x/",
            "write \"https://a\", and add_prefix = \"/x\" in the site or rule",
        );
    }
}
