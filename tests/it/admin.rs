//! The admin API at the socket: access control, transports and error responses.

use std::net::TcpListener;
use std::process::Command;
use std::thread;

use serde_json::Value;

use crate::harness::authority::{Authority, text};
use crate::harness::{Answer, Edge, Origin, Request, skerry};

/// One call by the real curl: the status (0: no answer) and the body.
fn curl(edge: &Edge, authority: &Authority, path: &str, more: &[&str]) -> (u16, String) {
    let output = Command::new("curl")
        .args(["--silent", "--max-time", "10", "--write-out", "\n%{http_code}", "--cacert"])
        .arg(authority.file())
        .args(more)
        .arg(format!("https://{}{path}", edge.admin))
        .output()
        .expect("curl runs");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = told.rsplit_once('\n').expect("a status");
    (status.parse().expect("a number"), body.to_owned())
}

fn with_tls(authority: &Authority, more: &str) -> Edge {
    let (certificate, key) = authority.issue("127.0.0.1");
    Edge::with(&format!(
        "[admin]\n{more}[admin.tls]\ncertificate = {certificate:?}\nkey = {key:?}\nclient_ca = {:?}\n\
         [sites.all]\nhosts = \"*\"\nrespond.content = \"x\"\n",
        authority.file()
    ))
}

#[test]
fn only_clients_with_a_certificate_of_the_authority_may_call() {
    let authority = Authority::new();
    let edge = with_tls(&authority, "audit_log = \"audit.log\"\n");
    let (certificate, key) = authority.issue("ops.test");
    let mine = ["--cert", text(&certificate), "--key", text(&key)];
    assert_eq!(curl(&edge, &authority, "/nodes", &mine).0, 200);
    assert_eq!(curl(&edge, &authority, "/healthz", &[]), (200, "ok\n".to_owned()));
    let (status, body) = curl(&edge, &authority, "/nodes", &[]);
    assert_eq!(status, 401, "{body}");
    assert!(body.contains("a client certificate signed by"), "{body}");
    let other = Authority::new();
    let (certificate, key) = other.issue("ops.test");
    let theirs = ["--cert", text(&certificate), "--key", text(&key)];
    assert_eq!(curl(&edge, &authority, "/nodes", &theirs).0, 0, "not even a connection");

    let purge = [&mine[..], &["--data", "{\"all\": true}"]].concat();
    let (status, body) = curl(&edge, &authority, "/purge", &purge);
    assert_eq!(status, 200, "{body}");
    let audit = std::fs::read_to_string(edge.path("audit.log")).expect("a file");
    assert!(audit.contains("\"who\":\"ops.test\""), "{audit}");
}

#[test]
fn the_tokens_file_sets_the_permissions_of_a_certificate() {
    let authority = Authority::new();
    let tokens = tempfile::NamedTempFile::new().expect("a file");
    let hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let lines = format!("eye read certificate:eye.test\nops all sha256:{hash}\n");
    std::fs::write(tokens.path(), lines).expect("a file");
    let edge = with_tls(&authority, &format!("tokens = {:?}\n", tokens.path()));
    let (certificate, key) = authority.issue("eye.test");
    let eye = ["--cert", text(&certificate), "--key", text(&key)];
    assert_eq!(curl(&edge, &authority, "/nodes", &eye).0, 200);
    let (status, body) =
        curl(&edge, &authority, "/purge", &[&eye[..], &["--data", "{\"all\": true}"]].concat());
    assert_eq!(status, 403, "{body}");
    assert!(body.contains("may only read"), "{body}");
    let (certificate, key) = authority.issue("unknown.test");
    let unknown = ["--cert", text(&certificate), "--key", text(&key)];
    assert_eq!(curl(&edge, &authority, "/nodes", &unknown).0, 401);
    // A token does, with a certificate or without.
    let token = ["--header", "Authorization: Bearer test"];
    assert_eq!(curl(&edge, &authority, "/nodes", &token).0, 200);
}

#[test]
fn the_commands_use_tls_and_report_its_errors() {
    let authority = Authority::new();
    let edge = with_tls(&authority, "");
    let (certificate, key) = authority.issue("ops.test");
    let at = edge.admin.to_string();
    let purge = |more: &[&str]| {
        let output = skerry(&[&["purge", "--all", "--admin", &at][..], more].concat());
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), told + &String::from_utf8_lossy(&output.stdout))
    };
    let file = authority.file();
    let ca = ["--ca", text(&file)];
    let mine = [&ca[..], &["--certificate", text(&certificate), "--key", text(&key)]].concat();
    let (code, told) = purge(&mine);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("in force after"), "{told}");
    let check = |more: &[&str], exit_code: i32, expected: &str| {
        let (code, told) = purge(more);
        assert_eq!(code, Some(exit_code), "{told}");
        assert!(told.contains(expected), "{told}");
    };
    check(&ca, 1, "a client certificate signed by");
    check(&[], 3, "--ca");
    let other = Authority::new();
    check(&["--ca", text(&other.file())], 3, "has not signed the node's certificate");
    check(&["--ca", "/nowhere.pem"], 2, "/nowhere.pem");
    let plain = Edge::before("http://127.0.0.1:9");
    let at_plain = plain.admin.to_string();
    let output = skerry(&["purge", "--all", "--admin", &at_plain, "--ca", text(&file)]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("leave out --ca"), "{told}");
}

#[test]
fn refusals_are_audited_and_counted() {
    let tokens = tempfile::NamedTempFile::new().expect("a file");
    let hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    std::fs::write(tokens.path(), format!("eye read sha256:{hash}\n")).expect("a file");
    let edge = Edge::with(&format!(
        "[admin]\naudit_log = \"audit.log\"\ntokens = {:?}\n[sites.all]\nhosts = \"*\"\nrespond.content = \"x\"\n",
        tokens.path()
    ));
    let call = |token: &str| {
        let fields = [format!("Authorization: Bearer {token}")];
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let mut client = crate::harness::Client::connect(edge.admin);
        client
            .request(Request {
                method: "POST",
                host: "localhost",
                target: "/purge",
                fields: &fields,
                body: b"{\"all\": true}",
            })
            .status
    };
    assert_eq!((call("guess"), call("test")), (401, 403));
    for _ in 0..40 {
        assert_eq!(call("guess"), 401);
    }
    let audit = std::fs::read_to_string(edge.path("audit.log")).expect("a file");
    let lines: Vec<Value> =
        audit.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!((&lines[0]["status"], &lines[0]["who"]), (&401.into(), &Value::Null));
    assert_eq!((&lines[1]["status"], &lines[1]["who"]), (&403.into(), &"eye".into()));
    assert_eq!(lines[1]["call"], "POST /purge");
    assert!(lines.len() < 42, "who guesses doesn't fill the disk: {} lines", lines.len());
    let output = Command::new("curl")
        .args(["--silent", "--header", "Authorization: Bearer test"])
        .arg(format!("http://{}/metrics", edge.admin))
        .output()
        .expect("curl runs");
    let metrics = String::from_utf8_lossy(&output.stdout);
    assert!(metrics.contains("skerry_admin_refused_total{status=\"401\"} 41"), "{metrics}");
}

#[test]
fn purges_above_the_rate_limit_get_retry_after() {
    let edge = Edge::with(
        "[admin]\npurges_per_second_max = 1\naudit_log = \"audit.log\"\n\
         [sites.all]\nhosts = \"*\"\nrespond.content = \"x\"\n",
    );
    let answers: Vec<_> =
        (0..20).map(|_| edge.admin("POST", "/purge", "{\"tag\": \"t\"}")).collect();
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert_eq!(answers[0].status, 200);
    let first = refused.first().expect("twenty calls take less than twenty seconds");
    assert_eq!(first.header("retry-after"), "1");
    assert!(first.text().contains("send several URLs or tags in one call"), "{}", first.text());
    let audit = std::fs::read_to_string(edge.path("audit.log")).expect("a file");
    assert!(audit.contains("\"status\":429"), "{audit}");
}

#[test]
fn connections_that_callers_keep_leave_room_for_others() {
    let edge = Edge::before("http://127.0.0.1:9");
    let kept = || {
        let mut client = crate::harness::Client::connect(edge.admin);
        let answer = client.request(Request {
            method: "GET",
            host: "localhost",
            target: "/readyz",
            fields: &[],
            body: b"",
        });
        let closes = answer.header("connection") == "close";
        (!closes).then_some(client)
    };
    let mut clients = Vec::new();
    for _ in 0..700 {
        clients.extend(kept());
    }
    assert!((500..600).contains(&clients.len()), "{} of 1024 places are kept", clients.len());
}

#[test]
fn a_misspelt_parameter_is_refused_by_name() {
    let edge = Edge::before("http://127.0.0.1:9");
    let check = |method: &str, target: &str, expected: &str| {
        let answer = edge.admin(method, target, "{\"tag\": \"t\"}");
        assert_eq!(answer.status, 400, "{target}");
        assert!(answer.text().contains(expected), "{}", answer.text());
    };
    check(
        "POST",
        "/purge?wiat=all",
        "unknown parameter \\\"wiat\\\": expected one of wait, timeout",
    );
    check("POST", "/purge?wait=all&wait=none", "is repeated: expected once");
    check("GET", "/purges?sinse=1", "expected one of since, limit");
    check("GET", "/explain?ulr=http://a/", "expected one of url, client, country");
}

/// Sends raw request bytes and returns status, fields and body of the response.
fn written(edge: &Edge, head: &str) -> String {
    crate::harness::raw(edge.admin, format!("{head}\r\n\r\n").as_bytes())
}

#[test]
fn without_tokens_a_borrowed_name_reads_nothing() {
    let edge = Edge::before("http://127.0.0.1:9");
    let get = |path: &str, host: &str| {
        written(&edge, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close"))
    };
    for path in
        ["/store", "/purges", "/purges/1", "/nodes", "/explain", "/metrics", "/", "/nowhere"]
    {
        let answer = get(path, "evil.example:9180");
        assert!(answer.starts_with("HTTP/1.1 421 "), "{path}: {answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
        assert!(answer.contains("admin.hosts"), "{answer}");
        let absolute = format!("http://evil.example{path}");
        let answer = get(&absolute, "localhost");
        assert!(answer.starts_with("HTTP/1.1 421 "), "{absolute}: {answer}");
    }
    for host in ["localhost:1", "127.0.0.1", "[::1]:9180", "10.1.2.3:9180"] {
        assert!(get("/metrics", host).starts_with("HTTP/1.1 200 "), "{host}");
    }
    for path in ["/healthz", "/readyz"] {
        assert!(get(path, "pod.example").starts_with("HTTP/1.1 200 "), "{path}");
    }
    assert!(edge.metric("skerry_admin_refused_total{status=\"421\"") >= 16.0);

    let named = Edge::with(
        "[admin]\nhosts = [\"edge-1.example\"]\n[sites.all]\nhosts = \"*\"\nrespond.content = \"x\"\n",
    );
    let metrics = "GET /metrics HTTP/1.1\r\nHost: edge-1.example:9180\r\nConnection: close";
    assert!(written(&named, metrics).starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_request_without_one_host_is_refused() {
    let edge = Edge::before("http://127.0.0.1:9");
    for fields in ["Host: localhost\r\nHost: localhost", "Host: a b", "Host:", "X: y"] {
        for path in ["/healthz", "/store"] {
            let answer =
                written(&edge, &format!("GET {path} HTTP/1.1\r\n{fields}\r\nConnection: close"));
            assert!(answer.starts_with("HTTP/1.1 400 "), "{fields}: {answer}");
        }
    }
    assert!(written(&edge, "GET /healthz HTTP/1.0").starts_with("HTTP/1.0 200 "));
}

#[test]
fn every_call_takes_its_methods_and_names_them() {
    let edge = Edge::before("http://127.0.0.1:9");
    let reads = skerry::ADMIN_CALLS.iter().filter(|(_, method)| method == "GET");
    // These need a parameter.
    let reads = reads
        .map(|(path, _)| *path)
        .filter(|path| !["/explain", "/log", "/nodes/owner"].contains(path));
    for path in reads.chain(["/", "/dashboard.js"]) {
        let (get, head) = (edge.admin("GET", path, ""), edge.admin("HEAD", path, ""));
        assert_eq!((get.status, head.status), (200, 200), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert!(head.text().is_empty(), "{path}");
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let answer = edge.admin(method, path, "");
            assert_eq!((answer.status, &*answer.header("allow")), (405, "GET, HEAD"), "{path}");
        }
    }
    assert_eq!(edge.admin("HEAD", "/purges/none", "").status, 404);
    assert_eq!(edge.admin("POST", "/purges/none", "").status, 405);
    for path in ["/purge", "/prefetch", "/reload", "/config/rollback", "/drain", "/undrain"] {
        let answer = edge.admin("GET", path, "");
        assert_eq!((answer.status, &*answer.header("allow")), (405, "POST"), "{path}");
    }
}

#[test]
fn parameters_and_bodies_match_openapi() {
    let edge = Edge::before("http://127.0.0.1:9");
    for query in [
        "limit=0",
        "limit=1001",
        "limit=1.5",
        "limit=-1",
        "limit=",
        "since=-1",
        "since=nan",
        "since=inf",
    ] {
        assert_eq!(edge.admin("GET", &format!("/purges?{query}"), "").status, 400, "{query}");
    }
    for query in ["limit=1", "limit=1000", "since=0", "since=1.5", ""] {
        assert_eq!(edge.admin("GET", &format!("/purges?{query}"), "").status, 200, "{query}");
    }
    for body in
        ["{\"tag\": null}", "{\"all\": true, \"url\": null}", "{\"tag\": \"t\", \"site\": null}"]
    {
        assert_eq!(edge.admin("POST", "/purge", body).status, 400, "{body}");
    }
    assert_eq!(edge.admin("POST", "/purge", "{\"tag\": \"t\", \"reason\": null}").status, 200);
    let url = "\"url\": \"http://edge.test/\"";
    assert_eq!(
        edge.admin("POST", "/prefetch", &format!("{{{url}, \"sitemap\": null}}")).status,
        400
    );
    assert_eq!(edge.admin("POST", "/prefetch", &format!("{{{url}}}")).status, 202);
}

#[test]
fn an_address_that_others_reach_needs_tokens_or_certificates() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("edge.toml");
    let text = "[admin]\naddress = \"0.0.0.0:9180\"\n[sites.all]\nhosts = \"*\"\nrespond.content = \"x\"\n";
    std::fs::write(&file, text).expect("a file");
    let output = skerry(&["check", file.to_str().expect("a plain name")]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("set \"admin.tokens\" or \"admin.tls.client_ca\""), "{told}");
}

#[test]
fn a_reload_is_compared_with_what_runs() {
    let text = |level: &str, more: &str| {
        format!(
            "[log]\naccess = \"off\"\nlevel = {level:?}\n[sites.all]\nhosts = \"*\"\n\
             respond.content = \"x\"\n{more}"
        )
    };
    let edge = Edge::with(&text("info", ""));
    let needed = "log.level: \"info\" → \"warn\" (after a restart)";
    assert_eq!(edge.reload(&text("warn", "")), Ok(vec![needed.to_owned()]));
    // The restart is still needed, so each reload reports it again.
    assert_eq!(edge.reload(&text("warn", "")), Ok(vec![needed.to_owned()]));
    assert!(edge.reload(&text("warn", "nonsense = 1\n")).is_err());
    let changes = edge.reload(&text("warn", "silence = \"serve\"\n")).expect("a good file");
    assert_eq!(changes, [needed, "sites.all.silence: \"serve\" (added)"]);
    assert!(edge.reload("nonsense").is_err());
    let changes = edge.reload(&text("error", "")).expect("a good file");
    let gone = "sites.all.silence: removed (was \"serve\")";
    assert_eq!(changes, ["log.level: \"info\" → \"error\" (after a restart)", gone]);
    assert_eq!(edge.reload(&text("info", "")), Ok(vec![]), "as it runs");
}

/// A heartbeat or a purge would be held up as the calls are: they run beside them.
#[test]
fn reloads_that_wait_for_a_source_of_origins_hold_up_no_other_call() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let edge = Edge::before("http://127.0.0.1:9");
    let text = format!(
        "[pools.main]\norigins = [{{ http = \"http://{}/list\" }}]\n[sites.all]\nhosts = \"*\"\n",
        silent.local_addr().expect("its address")
    );
    std::fs::write(edge.path("edge.toml"), text).expect("a file");
    thread::scope(|scope| {
        let reload = || edge.admin("POST", "/reload", "").status;
        let first = scope.spawn(reload);
        let (asked, _) = silent.accept().expect("the source is asked");
        let second = scope.spawn(reload);
        // More calls that read the configuration than the background has threads.
        let calls = [(); 4].map(|()| scope.spawn(|| edge.admin("GET", "/config", "").status));
        assert_eq!(calls.map(|call| call.join().expect("no panic")), [200; 4]);
        assert!(!first.is_finished() && !second.is_finished(), "the reloads have ended before");
        drop(asked);
        assert_eq!([first, second].map(|reload| reload.join().expect("no panic")), [200; 2]);
    });
}

#[test]
fn a_reload_tells_changes_in_words() {
    let origin = Origin::start(|_| Answer::ok("x"));
    let text = |more: &str| {
        format!("[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n{more}", origin.url())
    };
    let edge = Edge::with(&text(""));
    let more = "rate = { per_second = 5 }\nsilence = \"serve\"\n[sites.all.response_fields.set]\n\
                x-served-by = \"us\"\n";
    let changes = edge.reload(&text(more)).expect("a good file").join("\n");
    for expected in [
        "sites.all.rate.per_second: \"none\" → 5",
        "sites.all.silence: \"serve\" (added)",
        "sites.all.response_fields.set: {} → { x-served-by = \"us\" }",
    ] {
        assert!(changes.contains(expected), "{expected}:\n{changes}");
    }
    assert!(!changes.contains("Some("), "{changes}");
}
