//! Signed requests to a server of others that verifies signatures: the S3 server of the crate s3s-fs, which
//! tests/clients/install installs. It knows one bucket, to which objects are sent through the node.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::clients::{Server, installed};
use crate::harness::{Edge, Request, Response, exchange, until};

const KEY_ID: &str = "AKIDEXAMPLE";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// A node before the server, and the folder with the bucket and the node's key.
struct Store {
    edge: Edge,
    server: Server,
    folder: TempDir,
}

impl Store {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("bucket")).expect("a folder");
        let mut command = Command::new(installed("bin/s3s-fs"));
        command.args(["--host", "127.0.0.1", "--port", "0"]).arg(&root);
        command.args(["--access-key", KEY_ID, "--secret-key", SECRET_KEY]);
        command.env("RUST_LOG", "s3s_fs=info");
        let server = Server::run(&mut command, "server is running at http://127.0.0.1:");
        write_key(folder.path(), SECRET_KEY);
        let key = folder.path().join("key").display().to_string();
        let edge = Edge::with(&format!(
            "[pools.bucket]\norigins = {:?}\nhost = \"origin\"\n\
             [pools.bucket.sign]\nkind = \"aws-sigv4\"\nregion = \"eu-central-1\"\n\
             credentials_file = {key:?}\nmethods = [\"GET\", \"HEAD\", \"PUT\"]\n\
             [sites.all]\nhosts = \"*\"\npool = \"bucket\"\ncache.enabled = false\n",
            server.url
        ));
        Self { edge, server, folder }
    }

    fn send(&self, method: &str, target: &str, fields: &[&str], body: &[u8]) -> Response {
        let request = Request { method, host: "edge.test", target, fields, body };
        self.edge.connect().request(request)
    }

    fn get(&self, target: &str) -> Response {
        self.send("GET", target, &[], b"")
    }
}

/// Replaces the node's key at once, as a program that rotates keys does.
fn write_key(folder: &Path, secret_key: &str) {
    let text =
        format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {secret_key}\n");
    std::fs::write(folder.join("next"), text).expect("a file");
    std::fs::rename(folder.join("next"), folder.join("key")).expect("a file");
}

#[test]
fn an_s3_server_accepts_the_node_s_signatures_for_objects_of_any_name() {
    let store = Store::start();
    let address = store.server.url.strip_prefix("http://").expect("a URL");
    let unsigned = exchange(address.parse().expect("an address"), address, "/bucket/a", &[]);
    assert_eq!(unsigned.status, 403, "the server lets everybody in");
    for (written, also) in [
        ("/bucket/a.txt", "/bucket/%61.txt"),
        ("/bucket/a%20b/c.txt", "/bucket/a%20b%2Fc.txt"),
        ("/bucket/caf%C3%A9", "/bucket/caf%c3%a9"),
        ("/bucket/%E6%97%A5%E6%9C%AC", "/bucket/%E6%97%A5%e6%9c%ac"),
        ("/bucket/1+1=2", "/bucket/1%2B1%3D2"),
        ("/bucket/(a)!'*,;:@&$~", "/bucket/%28a%29%21%27%2A%2C%3B%3A%40%26%24%7E"),
    ] {
        assert_eq!(store.send("PUT", written, &[], written.as_bytes()).status, 200, "{written}");
        for target in [written, also] {
            let response = store.get(target);
            assert_eq!((response.status, response.text()), (200, written), "{target}");
        }
        let part = store.send("GET", written, &["Range: bytes=1-6"], b"");
        assert_eq!((part.status, part.text()), (206, "bucket"), "{written}");
        let head = store.send("HEAD", written, &[], b"");
        let length = written.len().to_string();
        assert_eq!((head.status, head.header("content-length")), (200, length), "{written}");
    }
    let listed = store.get("/bucket?prefix=a%20b&max-keys=5&list-type=2");
    assert!(listed.text().contains("<Key>a b/c.txt</Key>"), "{}", listed.text());
    let listed = store.get("/bucket?list-type=2&delimiter=%2F&prefix=caf%C3%A9");
    assert!(listed.text().contains("<Key>caf\u{e9}</Key>"), "{}", listed.text());
    let large = vec![b'x'; 3_000_000];
    assert_eq!(store.send("PUT", "/bucket/large", &[], &large).status, 200);
    assert_eq!(store.get("/bucket/large").body, large);
    assert_eq!(store.get("/bucket/none").status, 404);
    assert_eq!(store.send("DELETE", "/bucket/a.txt", &[], b"").status, 403, "it is not signed");
}

#[test]
fn an_s3_server_refuses_a_wrong_key_and_accepts_the_next_one_without_a_restart() {
    let store = Store::start();
    assert_eq!(store.send("PUT", "/bucket/a", &[], b"content").status, 200);
    write_key(store.folder.path(), "another-key");
    until("the node signs with the wrong key", || store.get("/bucket/a").status == 403);
    let refused = store.get("/bucket/a");
    assert!(refused.text().contains("<Code>SignatureDoesNotMatch</Code>"), "{}", refused.text());
    write_key(store.folder.path(), SECRET_KEY);
    until("the node signs with the good key", || store.get("/bucket/a").status == 200);
    assert_eq!(store.get("/bucket/a").text(), "content");
}
