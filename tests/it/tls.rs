//! TLS of listeners: openssl as the client for features that rustls lacks, rustls for long connections.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

use crate::harness::{Answer, Edge, Origin, raw, until};

const FIXED: &str = "[sites.all]\nhosts = \"*\"\nrespond.content = \"hello\"\n";

/// The output of `openssl s_client` with these arguments after it has sent `input`.
fn openssl(edge: &Edge, arguments: &[&str], input: &str) -> String {
    let address = edge.https.expect("TLS").to_string();
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &address])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("openssl: {error}; tests need it"));
    // It may have ended already.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("openssl ends");
    let (out, err) = (output.stdout, output.stderr);
    format!("{}{}", String::from_utf8_lossy(&out), String::from_utf8_lossy(&err))
}

#[test]
fn only_sound_versions_and_suites_are_spoken() {
    let edge = Edge::with_tls(FIXED);
    for (arguments, spoken) in [
        (vec!["-tls1_3"], "TLSv1.3"),
        (vec!["-tls1_2"], "TLSv1.2"),
        (
            vec!["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"],
            "ECDHE-ECDSA-AES128-GCM-SHA256",
        ),
        (
            vec!["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"],
            "ECDHE-ECDSA-CHACHA20-POLY1305",
        ),
        (vec!["-tls1_3", "-curves", "X25519"], "TLSv1.3"),
        (vec!["-tls1_3", "-curves", "P-256"], "TLSv1.3"),
    ] {
        let said = openssl(&edge, &arguments, "");
        assert!(
            said.contains(&format!("Cipher is {spoken}"))
                || said.contains(&format!("New, {spoken}")),
            "{arguments:?}: {said}"
        );
    }
    let weak = |suite: &'static str| vec!["-tls1_2", "-cipher", suite];
    for arguments in [
        vec!["-tls1", "-cipher", "ALL:@SECLEVEL=0"],
        vec!["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        // No forward secrecy, no AEAD, no encryption, no certificate.
        weak("AES128-GCM-SHA256:@SECLEVEL=0"),
        weak("ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0"),
        weak("ECDHE-ECDSA-AES256-SHA:@SECLEVEL=0"),
        weak("DHE-RSA-AES128-GCM-SHA256:@SECLEVEL=0"),
        weak("ECDHE-ECDSA-NULL-SHA:@SECLEVEL=0"),
        weak("AECDH-AES128-SHA:@SECLEVEL=0"),
    ] {
        let said = openssl(&edge, &arguments, "");
        assert!(said.contains("Cipher is (NONE)"), "{arguments:?}: {said}");
    }
    until("all are counted", || edge.metric("skerry_tls_handshakes_total") >= 14.0);
}

#[test]
fn a_client_gets_the_first_certificate_whose_signatures_it_accepts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = FIXED.to_owned();
    for key in ["ec -pkeyopt ec_paramgen_curve:prime256v1", "rsa:2048"] {
        let path = |end: &str| folder.path().join(format!("{}.{end}", &key[..2]));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=edge.test"])
            .args(["-addext", "subjectAltName=DNS:edge.test", "-newkey"])
            .args(key.split(' '))
            .arg("-keyout")
            .arg(path("key"))
            .arg("-out")
            .arg(path("pem"))
            .output()
            .unwrap_or_else(|error| panic!("openssl: {error}; tests need it"));
        assert!(made.status.success(), "{made:?}");
        config += &format!(
            "[[tls.certificates]]\ncertificate = {:?}\nkey = {:?}\n",
            path("pem"),
            path("key")
        );
    }
    let edge = Edge::with_tls(&config);
    for (arguments, signature) in [
        (&["-tls1_3"][..], "ECDSA"),
        (&["-tls1_2"], "ECDSA"),
        (&["-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256"], "RSA-PSS"),
        (&["-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256:ecdsa_secp256r1_sha256"], "ECDSA"),
        (&["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"], "RSA-PSS"),
    ] {
        let said = openssl(&edge, &[&["-servername", "edge.test"], arguments].concat(), "");
        let expected = format!("Peer signature type: {signature}");
        assert!(said.contains(&expected), "{arguments:?}: {said}");
    }
}

#[test]
fn a_client_that_speaks_no_protocol_of_ours_gets_an_alert() {
    let edge = Edge::with_tls(FIXED);
    for (offered, agreed) in [
        ("h2", "ALPN protocol: h2"),
        ("http/1.1", "ALPN protocol: http/1.1"),
        // Ours is the order.
        ("http/1.1,h2", "ALPN protocol: h2"),
        ("spdy/3,http/1.1", "ALPN protocol: http/1.1"),
        ("spdy/3", "no application protocol"),
        ("http/1.0", "no application protocol"),
        ("h2c", "no application protocol"),
    ] {
        let said = openssl(&edge, &["-alpn", offered], "");
        assert!(said.contains(agreed), "{offered}: {said}");
    }
    // A client that negotiated one protocol must not use the other.
    let get = "GET / HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n";
    let said = openssl(&edge, &["-alpn", "http/1.1", "-ign_eof"], get);
    assert!(said.contains("HTTP/1.1 200 OK"), "{said}");
    let said = openssl(&edge, &["-alpn", "h2", "-ign_eof"], get);
    assert!(!said.contains("HTTP/1.1"), "{said}");
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let said = openssl(&edge, &["-alpn", "http/1.1", "-ign_eof"], preface);
    assert!(said.contains("HTTP/1.1 400"), "{said}");
}

#[test]
fn neither_renegotiation_nor_early_data_is_taken() {
    let edge = Edge::with_tls(FIXED);
    let get = "GET / HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n";
    // A line "R" has openssl renegotiate; what follows would be the request.
    let said = openssl(&edge, &["-tls1_2"], &format!("R\n{get}"));
    assert!(said.contains("RENEGOTIATING") && !said.contains("200 OK"), "{said}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (session, early) = (at("session"), at("early"));
    let first = openssl(&edge, &["-tls1_3", "-ign_eof", "-sess_out", &session], get);
    assert!(first.contains("200 OK"), "{first}");
    assert!(first.contains("Max Early Data: 0"), "{first}");
    std::fs::write(&early, get).expect("a file");
    let resumed = ["-tls1_3", "-ign_eof", "-sess_in", &session, "-early_data", &early];
    let second = openssl(&edge, &resumed, get);
    assert!(second.contains("Reused, TLSv1.3"), "{second}");
    assert!(second.contains("Early data was not sent"), "{second}");
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A connection that trusts this certificate alone.
fn connect(
    edge: &Edge,
    trusted: &CertificateDer<'static>,
    version: &'static SupportedProtocolVersion,
    change: impl FnOnce(&mut ClientConfig),
) -> Tls {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    change(&mut config);
    let name = "edge.test".try_into().expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    let socket = TcpStream::connect(edge.https.expect("TLS")).expect("the node listens");
    socket.set_read_timeout(Some(std::time::Duration::from_secs(30))).expect("a timeout");
    StreamOwned::new(connection, socket)
}

/// One request on a connection that stays.
fn ask(stream: &mut Tls) -> std::io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n")?;
    let mut said = Vec::new();
    while !said.ends_with(b"hello") {
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            length => said.extend_from_slice(&bytes[..length]),
        }
    }
    assert!(said.starts_with(b"HTTP/1.1 200 OK\r\n"));
    Ok(())
}

#[test]
fn connections_outlive_new_certificates_and_a_new_oldest_version() {
    use rustls::version::{TLS12, TLS13};
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    let make = || {
        let made =
            rcgen::generate_simple_self_signed(["edge.test".to_owned()]).expect("a certificate");
        std::fs::write(path("cert.pem"), made.cert.pem()).expect("a file");
        std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).expect("a file");
        made.cert.der().clone()
    };
    let text = |version: &str| {
        let (certificate, key) = (path("cert.pem"), path("key.pem"));
        format!(
            "{FIXED}[tls]\nversion_min = {version:?}\n\
             [[tls.certificates]]\ncertificate = {certificate:?}\nkey = {key:?}\n"
        )
    };
    let old = make();
    let edge = Edge::with_tls(&text("1.2"));
    let mut kept = [connect(&edge, &old, &TLS12, |_| {}), connect(&edge, &old, &TLS13, |_| {})];
    kept.iter_mut().for_each(|stream| ask(stream).expect("an answer"));
    let new = make();
    let changes = edge.reload(&text("1.3")).expect("a good file");
    assert!(changes.iter().all(|change| !change.contains("after a restart")), "{changes:?}");
    kept.iter_mut().for_each(|stream| ask(stream).expect("the old connections go on"));
    ask(&mut connect(&edge, &new, &TLS13, |_| {})).expect("the new certificate");
    ask(&mut connect(&edge, &old, &TLS13, |_| {})).expect_err("the old certificate");
    ask(&mut connect(&edge, &new, &TLS12, |_| {})).expect_err("the old version");
    edge.reload(&text("1.2")).expect("a good file");
    ask(&mut connect(&edge, &new, &TLS12, |_| {})).expect("the old version again");
    kept.iter_mut().for_each(|stream| ask(stream).expect("and still"));
}

#[test]
fn records_as_small_as_can_be_are_put_together() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let made = rcgen::generate_simple_self_signed(["edge.test".to_owned()]).expect("a certificate");
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).expect("a file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    let edge = Edge::with_tls(&format!(
        "{FIXED}[[tls.certificates]]\ncertificate = {certificate:?}\nkey = {key:?}\n"
    ));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        // With its header of five bytes: 27 of content a record, the handshake's too.
        let small = |config: &mut ClientConfig| config.max_fragment_size = Some(32);
        let mut stream = connect(&edge, made.cert.der(), version, small);
        for _ in 0..3 {
            ask(&mut stream).expect("an answer");
        }
    }
}

#[test]
fn plain_http_on_a_port_with_tls_is_a_400_that_says_so() {
    let origin = Origin::start(|_| Answer::ok("never"));
    let edge = Edge::with_tls(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n",
        origin.url()
    ));
    let said = raw(edge.https.expect("TLS"), b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{said:?}");
    assert!(said.contains("\nthis port serves HTTPS: use an https URL\nrequest "), "{said:?}");
    let line = &edge.log(1)[0];
    assert_eq!((&line["status"], &line["failure"]), (&400.into(), &"plain-http".into()), "{line}");
    assert_eq!(edge.metric("skerry_requests_unread_total{reason=\"plain-http\"}"), 1.0);
    assert_eq!(edge.metric("skerry_tls_handshakes_total{outcome=\"not_tls\"}"), 1.0);
    assert_eq!(origin.request_count(), 0);
}
