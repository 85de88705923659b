//! Private origins: the signature that an S3-compatible bucket checks, and a field with a secret. The origin
//! verifies each request as the S3 reference describes, from its own side: it decodes the target and encodes
//! it again. botocore is a second oracle.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use serde_json::Value;
use skerry::Clock;
use tempfile::TempDir;

use crate::clients::{python, run_with_input};
use crate::harness::origin::ReceivedRequest;
use crate::harness::{Answer, Edge, Origin, Process, Random, Request, skerry, until};

const KEY_ID: &str = "AKIDEXAMPLE";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// An edge before a bucket that verifies, and the folder with its key.
struct Bucket {
    edge: Edge,
    origin: Arc<Origin>,
    keys: TempDir,
}

impl Bucket {
    fn start() -> Self {
        Self::with("", answer)
    }

    /// `options`: more lines of the table `[pools.bucket]`.
    fn with(
        options: &str,
        answer: impl Fn(&ReceivedRequest) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let origin = Arc::new(Origin::start(answer));
        let keys = tempfile::tempdir().expect("a temporary folder");
        write_keys(keys.path(), SECRET_KEY);
        let edge = Edge::with(&config(&origin.url(), keys.path(), options));
        Self { edge, origin, keys }
    }

    fn send(&self, method: &str, target: &str, fields: &[&str], body: &[u8]) -> u16 {
        let request = Request { method, host: "edge.test", target, fields, body };
        self.edge.connect().request(request).status
    }

    fn last(&self) -> ReceivedRequest {
        self.origin.received().pop().expect("a request")
    }
}

fn config(url: &str, keys: &Path, options: &str) -> String {
    let keys = keys.join("keys").display().to_string();
    format!(
        "[pools.bucket]\norigins = {url:?}\nhost = \"bucket.s3.example\"\n{options}\n\
         [pools.bucket.sign]\nkind = \"aws-sigv4\"\nregion = \"eu-central-1\"\n\
         credentials_file = {keys:?}\nmethods = [\"GET\", \"HEAD\", \"PUT\"]\n\
         [sites.all]\nhosts = \"*\"\npool = \"bucket\"\ncache.enabled = false\n"
    )
}

fn write_keys(folder: &Path, secret_key: &str) {
    let text =
        format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {secret_key}\n");
    // Replaced at once, as a program that rotates keys does.
    std::fs::write(folder.join("next"), text).expect("a file");
    std::fs::rename(folder.join("next"), folder.join("keys")).expect("a file");
}

/// The answer of a bucket: 403 without a good signature.
fn answer(request: &ReceivedRequest) -> Answer {
    match verify(request, SECRET_KEY) {
        Ok(()) => Answer::ok("content"),
        Err(why) => Answer::status(403).body(format!("<Code>SignatureDoesNotMatch</Code>{why}")),
    }
}

fn verify(request: &ReceivedRequest, secret_key: &str) -> Result<(), String> {
    let field = |name: &str| request.header(name).ok_or_else(|| format!("no field {name}"));
    let authorization = field("authorization")?;
    let part = |name: &str| {
        let (_, rest) = authorization.split_once(&format!("{name}="))?;
        rest.split(',').next()
    };
    let (Some(credential), Some(names), Some(signature)) =
        (part("Credential"), part("SignedHeaders"), part("Signature"))
    else {
        return Err(format!("Authorization is {authorization}"));
    };
    let (time, payload) = (field("x-amz-date")?, field("x-amz-content-sha256")?);
    if payload != "UNSIGNED-PAYLOAD" && payload != hex(digest(&SHA256, &request.body).as_ref()) {
        return Err("XAmzContentSHA256Mismatch".to_owned());
    }
    let scope = format!("{}/eu-central-1/s3/aws4_request", &time[..8]);
    if credential != format!("{KEY_ID}/{scope}") {
        return Err(format!("Credential is {credential}"));
    }
    let unsigned = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).find(|name| {
        let must_be = name.starts_with("x-amz-") || name == "host" || name == "range";
        must_be && !names.split(';').any(|signed| signed == name)
    });
    if let Some(name) = unsigned {
        return Err(format!("{name} is not signed"));
    }
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let text = |text: &str| encode(&decode(&text.replace('+', "%20")), false);
    let mut parameters: Vec<(String, String)> = query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
        .map(|(name, value)| (text(name), text(value)))
        .collect();
    parameters.sort();
    let parameters: Vec<String> =
        parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut canonical =
        format!("{}\n{}\n{}\n", request.method, encode(&decode(path), true), parameters.join("&"),);
    for name in names.split(';') {
        let words: Vec<&str> = field(name)?.split_ascii_whitespace().collect();
        canonical.push_str(&format!("{name}:{}\n", words.join(" ")));
    }
    canonical.push_str(&format!("\n{names}\n{payload}"));
    let hash = hex(digest(&SHA256, canonical.as_bytes()).as_ref());
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hash}");
    let mut key = format!("AWS4{secret_key}").into_bytes();
    for step in scope.split('/').chain([to_sign.as_str()]) {
        key = hmac::sign(&hmac::Key::new(HMAC_SHA256, &key), step.as_bytes()).as_ref().to_vec();
    }
    if hex(&key) == signature { Ok(()) } else { Err(format!("expected {canonical}")) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next().expect("a digit"), bytes.next().expect("a digit")];
            let digits = std::str::from_utf8(&digits).expect("digits");
            out.push(u8::from_str_radix(digits, 16).expect("digits"));
        } else {
            out.push(byte);
        }
    }
    out
}

fn encode(bytes: &[u8], is_path: bool) -> String {
    let encode = |byte: &u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(*byte).to_string()
        }
        b'/' if is_path => "/".to_owned(),
        byte => format!("%{byte:02X}"),
    };
    bytes.iter().map(encode).collect()
}

#[test]
fn a_private_bucket_verifies_every_kind_of_request() {
    let bucket = Bucket::start();
    let check = |method: &str, target: &str, fields: &[&str], received: &str| {
        let status = bucket.send(method, target, fields, b"");
        let request = bucket.last();
        assert_eq!((status, request.target.as_str()), (200, received), "{method} {target}");
        assert_eq!(request.header("host"), Some("bucket.s3.example"));
    };
    check("GET", "/", &[], "/");
    check("HEAD", "/a.txt", &[], "/a.txt");
    check("GET", "/a.txt", &["Range: bytes=0-9"], "/a.txt");
    check("GET", "/a.txt", &["Range:  bytes=0-9 , 20-", "If-Range: \"x\""], "/a.txt");
    check("GET", "/a.txt", &["If-None-Match: \"a\", \"b\""], "/a.txt");
    check("GET", "/a.txt", &["If-Modified-Since: Fri, 24 May 2013 00:00:00 GMT"], "/a.txt");
    check("GET", "/a.txt", &["Accept: a/b", "Accept-Encoding: gzip", "Cookie: a=b"], "/a.txt");
    check("GET", "/a%20b/caf%c3%a9", &[], "/a%20b/caf%C3%A9");
    check("GET", "/caf\u{e9}", &[], "/caf%C3%A9");
    check("GET", "//a//b", &[], "//a//b");
    check("GET", "/a/./b/../c", &[], "/a/c");
    check("GET", "/a(1)+b@c=d&e!'*,;:$", &[], "/a%281%29%2Bb%40c%3Dd%26e%21%27%2A%2C%3B%3A%24");
    check("GET", "/?b=2&a=1&a=0&acl", &[], "/?b=2&a=1&a=0&acl");
    check("GET", "/?q=a+b%20c%2Fd/%e9(&~=-", &[], "/?q=a%20b%20c%2Fd%2F%E9%28&~=-");
    check("GET", "/a?response-content-type=text%2Fhtml&versionId=3", &[], "/a?versionId=3");
}

#[test]
fn content_that_streams_is_not_hashed_and_no_content_is() {
    let bucket = Bucket::start();
    let hash = || bucket.last().header("x-amz-content-sha256").map(str::to_owned);
    assert_eq!(bucket.send("PUT", "/a", &["Content-Type: text/plain"], b"hello"), 200);
    assert_eq!(hash().as_deref(), Some("UNSIGNED-PAYLOAD"));
    assert_eq!(bucket.send("PUT", "/a", &["Content-Length: 0"], b""), 200);
    assert_eq!(hash(), Some(hex(digest(&SHA256, b"").as_ref())));
}

#[test]
fn a_client_adds_no_field_to_what_is_signed_and_other_methods_are_not_signed() {
    let bucket = Bucket::start();
    let fields = [
        "X-Amz-Acl: public-read",
        "X-Amz-Copy-Source: /other/secret",
        "X-Amz-Date: 20200101T000000Z",
        "X-Amz-Security-Token: token",
        "Authorization: AWS4-HMAC-SHA256 Credential=x",
    ];
    assert_eq!(bucket.send("PUT", "/a", &fields, b""), 200);
    let request = bucket.last();
    let names = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase());
    let mut amazon: Vec<String> = names.filter(|name| name.starts_with("x-amz-")).collect();
    amazon.sort();
    assert_eq!(amazon, ["x-amz-content-sha256", "x-amz-date"]);
    assert_eq!(bucket.send("DELETE", "/a", &[], b""), 403);
    assert_eq!(bucket.last().header("authorization"), None);
}

#[test]
fn the_origins_403_to_a_wrong_key_is_passed_on_and_a_new_key_is_used_without_a_restart() {
    let bucket = Bucket::start();
    assert_eq!(bucket.edge.get("/a").status, 200);
    write_keys(bucket.keys.path(), "another-key");
    until("the node signs with the new key", || bucket.edge.get("/a").status == 403);
    let response = bucket.edge.get("/a");
    assert!(
        response.text().starts_with("<Code>SignatureDoesNotMatch</Code>"),
        "{}",
        response.text()
    );
    assert_eq!(verify(&bucket.last(), "another-key"), Ok(()));
    // A file that cannot be used changes nothing and is counted once.
    let unreadable = || bucket.edge.metric("skerry_upstream_credentials_unreadable_total");
    assert_eq!(unreadable(), 0.0);
    std::fs::write(bucket.keys.path().join("keys"), "[other]\n").expect("a file");
    until("the file was read", || unreadable() == 1.0);
    bucket.edge.get("/a");
    assert_eq!(verify(&bucket.last(), "another-key"), Ok(()));
    write_keys(bucket.keys.path(), SECRET_KEY);
    until("the node signs with the good key", || bucket.edge.get("/a").status == 200);
    assert_eq!(unreadable(), 1.0);
}

#[test]
fn a_retry_is_signed_again() {
    let clock: Arc<OnceLock<Clock>> = Arc::default();
    let later = clock.clone();
    let bucket = Bucket::with("", move |request| match later.get() {
        Some(clock) if request.connection == 0 => {
            clock.advance(Duration::from_secs(3600));
            // The origin closes the connection without an answer.
            Answer::raw("")
        }
        _ => answer(request),
    });
    assert!(clock.set(bucket.edge.clock.clone()).is_ok());
    assert_eq!(bucket.edge.get("/a").status, 200);
    let times: Vec<String> = (bucket.origin.received().iter())
        .map(|request| request.header("x-amz-date").expect("a signature").to_owned())
        .collect();
    assert_eq!(times.len(), 2);
    assert_ne!(times[0][..11], times[1][..11], "an hour has passed: {times:?}");
}

#[test]
fn a_secret_field_replaces_the_clients() {
    let keys = tempfile::tempdir().expect("a temporary folder");
    let file = keys.path().join("secret");
    std::fs::write(&file, "hunter2\n").expect("a file");
    let file = file.display().to_string();
    let option = format!("secret_header = {{ name = \"X-Origin-Secret\", file = {file:?} }}");
    let bucket = Bucket::with(&option, answer);
    let all = || {
        let headers = bucket.last().headers;
        let secrets =
            headers.into_iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-origin-secret"));
        secrets.map(|(_, value)| value).collect::<Vec<_>>()
    };
    let fields = ["X-Origin-Secret: guess", "x-origin-secret: hunter"];
    assert_eq!(bucket.send("GET", "/a", &fields, b""), 200);
    assert_eq!(all(), ["hunter2"]);
    // Unsigned requests have it too, and a new secret is used without a restart.
    std::fs::write(&file, "correct horse").expect("a file");
    until("the node sends the new secret", || {
        bucket.send("DELETE", "/a", &[], b"");
        all() == ["correct horse"]
    });
}

#[test]
fn no_secret_is_in_logs_admin_answers_or_metrics() {
    let origin = Origin::start(answer);
    let keys = tempfile::tempdir().expect("a temporary folder");
    write_keys(keys.path(), SECRET_KEY);
    std::fs::write(keys.path().join("secret"), "hunter2-hunter2").expect("a file");
    let file = keys.path().join("secret").display().to_string();
    let option = format!("secret_header = {{ name = \"X-Origin-Secret\", file = {file:?} }}");
    let log = keys.path().join("access.log");
    let text = config(&origin.url(), keys.path(), &option);
    let text =
        format!("{text}[log]\naccess = {:?}\nlevel = \"trace\"\n", log.display().to_string());
    let node = Process::start(&text);
    let get = |address, target: &str| crate::harness::exchange(address, "localhost", target, &[]);
    assert_eq!(get(node.http, "/a").status, 200);
    // Failures are logged with what is known of the request; so are keys that cannot be used.
    origin.kill();
    assert_eq!(get(node.http, "/b").status, 502);
    std::fs::write(
        keys.path().join("keys"),
        format!("[other]\naws_secret_access_key = {SECRET_KEY}\n"),
    )
    .expect("a file");
    node.wait_for("cannot reload the credentials of pool bucket");
    let access = || std::fs::read_to_string(&log).unwrap_or_default();
    until("both requests are in the access log", || access().lines().count() >= 2);
    let mut seen = vec![("access log".to_owned(), access())];
    for target in ["/metrics", "/config", "/status", "/healthz", "/explain?url=http://edge.test/a"]
    {
        seen.push((target.to_owned(), get(node.admin, target).text().to_owned()));
    }
    seen.push(("error log".to_owned(), node.lines_with("").join("\n")));
    for (place, text) in seen {
        for secret in [SECRET_KEY, "hunter2", "AWS4-HMAC-SHA256", "Signature="] {
            assert!(!text.contains(secret), "{place} has {secret}: {text}");
        }
    }
}

#[test]
fn botocore_makes_the_same_signatures_for_random_requests() {
    let seed = std::process::id().into();
    println!("seed {seed}");
    let mut random = Random(seed);
    let bucket = Bucket::start();
    let mut sent = Vec::new();
    let mut client = bucket.edge.connect();
    for _ in 0..500 {
        let target = target(&mut random);
        let fields = fields(&mut random);
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let method = ["GET", "GET", "HEAD", "PUT"][below(&mut random, 4)];
        let body: &[u8] = if method == "PUT" { b"content" } else { b"" };
        let request = Request { method, host: "edge.test", target: &target, fields: &fields, body };
        let response = client.request(request);
        assert_eq!(response.status, 200, "{method} {target} {fields:?}: {}", response.text());
        sent.push(target);
    }
    let received = bucket.origin.received();
    assert_eq!(received.len(), sent.len());
    let list: Vec<_> = (received.iter().zip(&sent))
        .map(|(request, sent)| {
            let ReceivedRequest { method, target, headers, .. } = request;
            serde_json::json!({ "method": method, "target": target, "sent": sent, "fields": headers })
        })
        .collect();
    let input = serde_json::to_vec(&list).expect("JSON");
    let mut command = python("sigv4_verify.py");
    command.args(["eu-central-1", KEY_ID, SECRET_KEY]);
    assert_eq!(run_with_input(&mut command, &input).trim(), "ok 500");
}

fn below(random: &mut Random, bound: u64) -> usize {
    usize::try_from(random.below(bound)).expect("a small number")
}

/// A target in the gate's normal form, so that what is sent and what is received mean the same.
fn target(random: &mut Random) -> String {
    const PATH: [&str; 16] = [
        "a", "Z", "7", "-", "~", "_", "/", "%20", "%C3%A9", "(", ")", "+", "%2B", "!", "%25", "@x",
    ];
    const QUERY: [&str; 16] = [
        "a", "Z", "0", "=", "&b=", "%20", "+", "%2F", "/", "%C3%A9", "%e9", "~", "*", "%26", "&",
        ":",
    ];
    let mut pieces = |all: &[&str], most: u64| -> String {
        let count = random.below(most);
        (0..count).map(|_| all[below(random, all.len() as u64)]).collect()
    };
    let (path, query) = (pieces(&PATH, 20), pieces(&QUERY, 16));
    if query.is_empty() { format!("/{path}") } else { format!("/{path}?{query}") }
}

fn fields(random: &mut Random) -> Vec<String> {
    let all = BTreeMap::from([
        ("Range", "bytes=0-9"),
        ("If-Range", "\"v1\""),
        ("If-None-Match", "\"a\",   W/\"b\""),
        ("If-Modified-Since", "Fri, 24 May 2013 00:00:00 GMT"),
        ("Content-Type", "text/plain; charset=utf-8"),
        ("User-Agent", "a client/1.0"),
        ("X-Amz-Meta-A", "dropped"),
        ("Accept", "image/*"),
    ]);
    let chosen = all.into_iter().filter(|_| random.below(3) == 0);
    chosen.map(|(name, value)| format!("{name}: {value}")).collect()
}

#[test]
fn health_checks_of_a_private_bucket_are_signed() {
    let check = "check = { path = \"/health?b=2&a=%20\", interval = \"200ms\", timeout = \"200ms\", rise = 1, assume = \"down\" }\n\
                 secret_header = { name = \"X-Origin-Secret\", file = \"/proc/sys/kernel/ostype\" }";
    let bucket = Bucket::with(check, answer);
    // The bucket refuses a check without a signature.
    let last_check = || {
        let report = bucket.edge.admin("GET", "/origins", "");
        let report: Value = serde_json::from_str(report.text()).expect("JSON");
        report["pools"][0]["origins"][0]["last_check"].clone()
    };
    until("a check has passed", || last_check()["passed"] == true);
    let received = bucket.origin.received();
    let check = received.iter().find(|request| request.target.starts_with("/health"));
    let check = check.expect("a check");
    assert_eq!(check.header("x-origin-secret"), Some("Linux"));
    assert_eq!(verify(check, SECRET_KEY), Ok(()));
}

/// A metadata service that speaks version 2 alone. Its first keys expire in five minutes and a second.
fn metadata_service() -> Origin {
    let given = AtomicUsize::new(0);
    let roles = "/latest/meta-data/iam/security-credentials/";
    Origin::start(move |request| {
        let has_token = request.header("x-aws-ec2-metadata-token") == Some("TOKEN");
        match (request.method.as_str(), request.target.as_str()) {
            ("PUT", "/latest/api/token")
                if request.header("x-aws-ec2-metadata-token-ttl-seconds").is_some() =>
            {
                Answer::ok("TOKEN")
            }
            _ if !has_token => Answer::status(401),
            ("GET", target) if target == roles => Answer::ok("edge"),
            ("GET", target) if target.strip_prefix(roles) == Some("edge") => {
                let (secret, left) = match given.fetch_add(1, Ordering::SeqCst) {
                    0 => ("first", Duration::from_secs(301)),
                    _ => (SECRET_KEY, Duration::from_secs(3600)),
                };
                let expire = humantime::format_rfc3339_seconds(SystemTime::now() + left);
                Answer::ok(format!(
                    "{{\"Code\": \"Success\", \"AccessKeyId\": \"{KEY_ID}\", \"SecretAccessKey\": \"{secret}\", \
                     \"Token\": \"session/{secret}\", \"Expiration\": \"{expire}\"}}"
                ))
            }
            _ => Answer::status(404),
        }
    })
}

#[test]
fn a_node_uses_the_role_of_its_instance_and_gets_new_keys_before_they_expire() {
    let service = metadata_service();
    let bucket = Origin::start(|request| {
        let is_signed_with = |secret| verify(request, secret).is_ok();
        let token = request.header("x-amz-security-token").unwrap_or_default().to_owned();
        match (is_signed_with("first"), is_signed_with(SECRET_KEY)) {
            (false, false) => Answer::status(403),
            _ => Answer::ok(token),
        }
    });
    let edge = Edge::with(&format!(
        "[pools.bucket]\norigins = {:?}\nhost = \"bucket.s3.example\"\n\
         [pools.bucket.sign]\nkind = \"aws-sigv4\"\nregion = \"eu-central-1\"\ncredentials = \"instance {}\"\n\
         [sites.all]\nhosts = \"*\"\ncache.enabled = false\n",
        bucket.url(),
        service.url()
    ));
    let first = edge.get("/object");
    assert!(first.status == 200 && first.text().starts_with("session/"), "{first:?}");
    let renewed = format!("session/{SECRET_KEY}");
    until("the keys are renewed", || edge.get("/object").text() == renewed);
    let received = service.received();
    assert_eq!(received.len(), 6, "three requests for each set of keys");
    let refused = received.iter().filter(|request| {
        request.method == "GET" && request.header("x-aws-ec2-metadata-token").is_none()
    });
    assert_eq!(refused.count(), 0, "version 1 is never tried");
}

#[test]
fn without_keys_of_the_instance_a_node_does_not_start_and_says_which_request_failed() {
    let service = Origin::start(|_| Answer::status(403));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("edge.toml");
    let text = format!(
        "[pools.bucket]\norigins = \"http://127.0.0.1:9\"\nhost = \"origin\"\n\
         [pools.bucket.sign]\nkind = \"aws-sigv4\"\nregion = \"eu-central-1\"\ncredentials = \"instance {}\"\n\
         [sites.all]\nhosts = \"*\"\n[store]\ndisk = \"none\"\n",
        service.url()
    );
    std::fs::write(&file, text).expect("a file");
    let (file, data) =
        (file.display().to_string(), folder.path().join("data").display().to_string());
    let check = skerry(&["check", &file]);
    assert!(check.status.success(), "a check asks no instance");
    assert_eq!(service.request_count(), 0);
    let run = skerry(&[
        "run",
        "--config",
        &file,
        "--data-dir",
        &data,
        "--http",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
    ]);
    let error = String::from_utf8(run.stderr).expect("text");
    let expected = format!(
        "pool bucket: no credentials of the instance: PUT {}/latest/api/token: status 403: expected 200",
        service.url()
    );
    assert!(!run.status.success() && error.contains(&expected), "{error}");
}
