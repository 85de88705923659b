//! Certificates and sessions of TLS.

use super::*;

fn pair_in(folder: &std::path::Path, file: &str, names: &[&str]) -> CertificateFiles {
    let pair = tls::self_signed::self_signed(names, Clock::system().now()).expect("a pair");
    let certificate = folder.join(format!("{file}.pem"));
    let key = folder.join(format!("{file}.key"));
    std::fs::write(&certificate, pair.certificate).expect("written");
    std::fs::write(&key, pair.key).expect("written");
    CertificateFiles { certificate, key, names: None }
}

/// The names in the certificate that a client sees who asks for `name`.
async fn shown(edge: &Running, name: Option<&str>) -> String {
    let mut command = Command::new("sh");
    let server_name = name.map_or("-noservername".into(), |name| format!("-servername {name}"));
    let script = format!(
        "openssl s_client -connect {} {server_name} </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName",
        edge.https
    );
    let output = command.args(["-c", &script]).output().await.expect("openssl runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_certificate_is_chosen_by_name_and_reloaded_without_dropping_a_connection() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = with(|settings| {
        settings.tls.certificates = vec![
            pair_in(folder.path(), "default", &["default.example"]),
            pair_in(folder.path(), "exact", &["www.example.org"]),
            pair_in(folder.path(), "wild", &["*.example.org"]),
        ];
    });
    running(settings, async |edge| {
        assert!(shown(&edge, None).await.contains("DNS:default.example"));
        assert!(shown(&edge, Some("nobody.example")).await.contains("DNS:default.example"));
        assert!(shown(&edge, Some("WWW.example.org")).await.contains("DNS:www.example.org"));
        assert!(shown(&edge, Some("a.example.org")).await.contains("DNS:*.example.org"));
        assert!(shown(&edge, Some("a.b.example.org")).await.contains("DNS:default.example"));

        let mut live = edge.raw().await;
        live.write_all(GET).await.expect("written");
        read_until(&mut live, "hello\n").await;
        // A key that is not the certificate's: the old pair stays.
        let key = folder.path().join("exact.key");
        let good = std::fs::read(&key).expect("read");
        std::fs::copy(folder.path().join("wild.key"), &key).expect("copied");
        let error = edge.tls.reload().expect_err("not a pair").to_string();
        assert!(error.contains("do not match"), "{error}");
        assert!(shown(&edge, Some("www.example.org")).await.contains("DNS:www.example.org"));
        std::fs::write(&key, good).expect("written");
        pair_in(folder.path(), "exact", &["www.example.org", "new.example"]);
        let now = Clock::system().now();
        assert!(edge.tls.keep_current(now).expect("good files"));
        assert!(!edge.tls.keep_current(now).expect("nothing new"));
        assert!(shown(&edge, Some("new.example")).await.contains("DNS:new.example"));
        live.write_all(GET).await.expect("written");
        read_until(&mut live, "hello\n").await;
    });
}

#[tokio::test]
async fn changed_files_are_looked_at_by_the_interval_that_the_last_reload_set() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut settings = TlsSettings {
        certificates: vec![pair_in(folder.path(), "a", &["first.example"])],
        reload_interval: Duration::from_secs(3600),
        ..TlsSettings::default()
    };
    let tls = TlsState::load(&settings, folder.path(), &Clock::system()).expect("certificates");
    let watch = tls.clone().watch();
    let reload = async {
        // The watch has begun its hour by now.
        settings.reload_interval = Duration::from_millis(10);
        tls.replace(&settings, folder.path()).expect("good files");
        let replaced = tls.names().expect("names");
        pair_in(folder.path(), "a", &["second.example", "another.example"]);
        while Arc::ptr_eq(&replaced, &tls.names().expect("names")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Shorter than any period that is not from the settings.
    let found = async {
        tokio::select! { biased; () = watch => {}, () = reload => {} }
    };
    timeout(Duration::from_secs(3), found).await.expect("the new certificate is found");
}

async fn session_file(edge: &Running, version: &str, how: &str, file: &std::path::Path) -> String {
    let script = format!(
        "printf 'GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n' | \
         openssl s_client -connect {} {version} {how} {} -ign_eof 2>&1",
        edge.https,
        file.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().await.expect("openssl runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_session_is_resumed_by_another_node_that_has_the_ticket_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys: PathBuf = folder.path().join("keys");
    std::fs::write(&keys, format!("{}\n", "0f".repeat(32))).expect("written");
    let settings = with(|settings| {
        let lifetime = Duration::from_secs(3600);
        settings.tls.ticket_keys = TicketKeys::File { path: keys, lifetime };
    });
    running(settings.clone(), async |edge| {
        let other = start(&settings).await;
        for (count, version) in [(1, "-tls1_2"), (2, "-tls1_3")] {
            let file = folder.path().join("session");
            let first = session_file(&edge, version, "-sess_out", &file).await;
            assert!(first.contains("200 OK"), "{first}");
            let second = session_file(&other, version, "-sess_in", &file).await;
            assert!(second.contains("Reused, TLSv1."), "{version}: {second}");
            other.reaches(Metric::Handshakes, "resumed", count).await;
        }
    });
}
