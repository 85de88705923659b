//! HAProxy as an origin behind the PROXY protocol (`accept-proxy`).

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::free_address;
use crate::harness::{Edge, until};

/// A running HAProxy, ended when it is dropped. It answers each request with the addresses that the PROXY protocol
/// states: those of the client, then those at which the client reached the node.
struct HaProxy {
    address: SocketAddr,
    process: Child,
    _folder: TempDir,
}

impl HaProxy {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = free_address();
        let config = format!(
            "global\n  maxconn 100\n\
             defaults\n  mode http\n  timeout client 10s\n  timeout server 10s\n  timeout connect 10s\n\
             frontend origin\n  bind {address} accept-proxy\n\
             \x20 http-request return status 200 content-type text/plain \
             lf-string \"%[src] %[src_port] %[dst] %[dst_port]\"\n"
        );
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, config).expect("a file");
        let process = Command::new("haproxy")
            .args(["-db", "-q", "-f"])
            .arg(&file)
            .spawn()
            .unwrap_or_else(|error| panic!("haproxy: {error}; tests need it"));
        until("HAProxy listens", || TcpStream::connect(address).is_ok());
        Self { address, process, _folder: folder }
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn haproxy_learns_the_client_s_address_from_either_version_of_the_proxy_protocol() {
    let haproxy = HaProxy::start();
    for version in ["v1", "v2"] {
        let edge = Edge::with(&format!(
            "[pools.main]\norigins = \"http://{}\"\nsend_proxy_protocol = {version:?}\n\
             [pools.main.check]\ninterval = \"2s\"\ntimeout = \"2s\"\nassume = \"down\"\n\
             [sites.all]\nhosts = \"*\"\ncache.enabled = false\n\
             [guard]\ntrusted_proxies = [\"127.0.0.1\"]\n",
            haproxy.address
        ));
        // A check states no client: HAProxy then takes the addresses of the connection.
        let has_passed = || {
            let report = edge.admin("GET", "/origins", "");
            let report: Value = serde_json::from_str(report.text()).expect("JSON");
            report["pools"][0]["origins"][0]["last_check"]["passed"] == true
        };
        until("a check has passed", has_passed);
        let mut client = edge.connect();
        let local = client.local_address();
        let expected = format!("127.0.0.1 {} 127.0.0.1 {}", local.port(), edge.http.port());
        for _ in 0..2 {
            assert_eq!(client.get("edge.test", "/", &[]).text(), expected, "{version}");
        }
        let of_another = edge.get_with("/", &["X-Forwarded-For: 192.0.2.7"]);
        let seen = of_another.text().to_owned();
        assert!(seen.starts_with("192.0.2.7 "), "{version}: {seen}");
        assert!(seen.ends_with(&format!(" 127.0.0.1 {}", edge.http.port())), "{version}: {seen}");
        let of_ipv6 = edge.get_with("/", &["X-Forwarded-For: 2001:db8::7"]);
        let seen = of_ipv6.text().to_owned();
        assert!(seen.starts_with("2001:db8::7 "), "{version}: {seen}");
    }
}
