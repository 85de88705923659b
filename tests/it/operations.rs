//! Operating a node: configuration errors, reloads, drains, certificates.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use crate::harness::{
    Answer, Client, Edge, Gate, Origin, Process, Request, exchange, free_address, skerry, until,
};

fn fixed(content: &str) -> String {
    format!(
        "[store]\nmemory = \"64MiB\"\ndisk = \"none\"\n[log]\naccess = \"off\"\n\
         [sites.all]\nhosts = \"*\"\nrespond.content = {content:?}\n"
    )
}

fn passing(origin: &Origin) -> String {
    format!(
        "[store]\nmemory = \"64MiB\"\ndisk = \"none\"\n[log]\naccess = \"off\"\n\
         [pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n",
        origin.url()
    )
}

/// Exit code 2 and one line that has these words.
#[track_caller]
fn check_refused(arguments: &[&str], words: &[&str]) {
    check_failed(arguments, 2, words);
}

/// This exit code and one line that has these words.
#[track_caller]
fn check_failed(arguments: &[&str], code: i32, words: &[&str]) {
    let output = skerry(arguments);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
    assert_eq!(told.lines().count(), 1, "{arguments:?}: {told}");
    assert!(words.iter().all(|word| told.contains(word)), "{arguments:?}: {told}");
}

#[test]
fn a_startup_error_is_one_line_and_exit_code_2() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data").display().to_string();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").to_string();
    let run = |more: &[&'static str]| -> Vec<String> {
        let usual = ["run", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        usual.iter().chain(more).map(|&word| word.to_owned()).collect()
    };
    let check = |arguments: Vec<String>, words: &[&str]| {
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        if !arguments.contains(&"--data-dir") {
            arguments.extend(["--data-dir", &data]);
        }
        check_refused(&arguments, words);
    };
    check(run(&["--config", "/nowhere/edge.toml"]), &["/nowhere/edge.toml", "No such file"]);
    check(run(&[]), &["nothing to serve"]);
    check(run(&["--origin", "ftp://a"]), &["--origin", "ftp://a"]);
    check(run(&["--origin", "http://127.0.0.1:9", "--workers", "0"]), &["--workers"]);
    check(
        run(&["--origin", "http://127.0.0.1:9", "--data-dir", "/proc/nowhere"]),
        &["/proc/nowhere"],
    );
    let on_taken = |flag: &str, other: &str| {
        ["run", "--origin", "http://127.0.0.1:9", flag, &taken, other, "127.0.0.1:0"]
            .map(str::to_owned)
            .to_vec()
    };
    check_refused(
        &["run", "--orgin", "http://a"],
        &["--orgin", "a similar argument exists: '--origin'"],
    );
    check_refused(&["run", "--http", "8080"], &["--http", "address and port"]);
    check_refused(&["explain"], &["required", "<URL>"]);
    check_refused(&["pruge", "--all"], &["pruge", "purge"]);
    check(on_taken("--http", "--admin"), &[&taken, "in use"]);
    check(on_taken("--admin", "--http"), &[&taken, "in use"]);
}

#[test]
fn a_disk_cache_that_does_not_fit_is_refused_before_anything_is_taken() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("edge.toml");
    let text = "[store]\ndisk = \"900TiB\"\n[sites.all]\nhosts = \"*\"\nrespond.content = \"x\"\n";
    std::fs::write(&file, text).expect("a file");
    let file = file.to_str().expect("a plain name");
    let words =
        ["edge.toml:2:8: 900.0 TiB of disk cache does not fit the file system of ", "at most "];
    check_refused(&["check", file], &words);
    let data = folder.path().join("data").display().to_string();
    check_refused(&["run", "--config", file, "--data-dir", &data], &words);
    assert!(!folder.path().join("data").exists(), "nothing was made");
}

#[test]
fn clients_cannot_use_up_the_files_that_origins_and_the_admin_api_need() {
    let origin = Origin::start(|_| Answer::ok(b"content".to_vec()).fresh_for(600));
    let node = Process::start_with_open_files(128, &passing(&origin));
    assert!(node.said("64 connections are accepted"), "the limit is logged");
    let mut first = Client::connect(node.http);
    assert_eq!(first.get("edge.test", "/first", &[]).status, 200);
    let others: Vec<_> = (0..150).map(|_| TcpStream::connect(node.http)).collect();
    until("the node has refused the connections beyond the limit", || {
        node.metric("skerry_connections_refused_total{limit=\"total\"") >= 87.0
    });
    assert_eq!(first.get("edge.test", "/second", &[]).status, 200);
    drop(others);
    until("only the first connection is open", || node.metric("skerry_connections") < 2.0);
    assert_eq!(exchange(node.http, "edge.test", "/third", &[]).status, 200);
}

#[test]
fn the_level_of_the_error_log_is_the_configurations() {
    let quiet = Process::start(&fixed("x").replace("[log]\n", "[log]\nlevel = \"debug\"\n"));
    quiet.signal(Signal::HUP);
    quiet.wait_for("configuration reloaded");
    let mut client = Client::connect(quiet.http);
    client.request(Request { method: "GET", host: "", target: "/", fields: &[], body: b"" });
    quiet.wait_for("DEBUG");
}

#[test]
fn a_rotated_log_is_written_anew_and_the_configuration_is_not_reloaded() {
    let text = fixed("x").replace("access = \"off\"", "access = \"access.log\"");
    assert!(text.contains("access.log"), "{text}");
    let node = Process::start(&text);
    let request = |target| Client::connect(node.http).get("edge.test", target, &[]).status;
    let has_line = |name: &str, target: &str| {
        std::fs::read_to_string(node.path(name)).is_ok_and(|log| log.contains(target))
    };
    assert_eq!(request("/before"), 200);
    until("the first request is logged", || has_line("access.log", "/before"));
    std::fs::rename(node.path("access.log"), node.path("access.log.1")).expect("a rotation");
    // An operator is in the middle of a change.
    node.replace_config("[sites.all]\n");
    node.signal(Signal::USR1);
    until("a new file has the next requests", || {
        assert_eq!(request("/after"), 200);
        has_line("access.log", "/after")
    });
    assert!(has_line("access.log.1", "/before"));
    assert!(!node.said("the old configuration stays in use"), "the file was read");
}

#[test]
fn check_knows_what_the_options_and_variables_of_the_node_set() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("edge.toml");
    let text = fixed("x") + "[dns.probes]\nurl = \"http://www.test/\"\n";
    std::fs::write(&file, text).expect("a file");
    let file = file.display().to_string();
    check_refused(&["check", &file], &["has no effect without bus.redis"]);
    let checked = skerry(&["check", &file, "--redis", "redis://127.0.0.1:1"]);
    assert!(checked.status.success(), "{checked:?}");
    let misnamed = ["check", &file, "--redis", "redis://127.0.0.1:1", "--name", "a b"];
    check_refused(&misnamed, &["--name", "found \"a b\""]);
}

#[test]
fn check_tells_every_mistake_with_its_place() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("edge.toml");
    let text = "[node]\nworkers = 0\n[limits]\nidle_timeout = \"soon\"\nidle_timeuot = 1\n\
                [pools.main]\norigins = \"nowhere\"\n[sites.www]\nhosts = \"www.test\"\npool = \"man\"\n";
    std::fs::write(&file, text).expect("a file");
    let path = file.display().to_string();
    let output = skerry(&["check", &path]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    for line in [2, 4, 5, 7, 10] {
        assert!(told.contains(&format!("{path}:{line}:")), "line {line} in {told}");
    }
    std::fs::write(&file, fixed("${env.NOWHERE:-fine}") + "# ${env.NOWHERE}\n").expect("a file");
    let output = skerry(&["check", &path]);
    assert!(output.status.success(), "{output:?}");
    std::fs::write(&file, fixed("${env.NOWHERE}")).expect("a file");
    check_refused(
        &["check", &path],
        &[&format!("{path}:8:"), "environment variable NOWHERE is not set"],
    );
}

#[test]
fn a_drained_node_finishes_requests_in_flight_and_exits_with_0() {
    let gate = Gate::default();
    let behind = gate.clone();
    let origin = Origin::start(move |request| match request.target.as_str() {
        "/slow" => Answer::ok("finished").behind(&behind),
        _ => Answer::ok("hello"),
    });
    let mut node = Process::start(&passing(&origin));
    let ready = || Client::connect(node.admin).get("localhost", "/readyz", &[]).status;
    assert_eq!(ready(), 200);
    let mut idle = Client::connect(node.http);
    assert_eq!(idle.get("edge.test", "/", &[]).status, 200);
    let mut busy = Client::connect(node.http);
    busy.send(b"GET /slow HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    origin.wait_for_requests(2);
    node.signal(Signal::TERM);
    node.wait_for("shutting down");
    until("it says that it is not ready", || ready() == 503);
    gate.open();
    let response = busy.read(false);
    assert_eq!((response.status, response.text()), (200, "finished"));
    assert!(idle.is_closed() && busy.is_closed());
    assert!(node.end().success());
}

#[test]
fn a_bad_file_leaves_the_old_configuration_and_is_logged() {
    let node = Process::start(&fixed("first"));
    let mut client = Client::connect(node.http);
    assert_eq!(client.get("edge.test", "/", &[]).text(), "first");
    node.replace_config("[sites.all]\nhosts = \"*\"\nrespnd.content = \"second\"\n");
    node.signal(Signal::HUP);
    node.wait_for("the old configuration stays in use");
    node.wait_for("edge.toml:3");
    assert_eq!(client.get("edge.test", "/", &[]).text(), "first");
    node.replace_config(&fixed("third"));
    node.signal(Signal::HUP);
    node.wait_for("configuration reloaded");
    assert_eq!(client.get("edge.test", "/", &[]).text(), "third");
}

#[test]
fn a_reload_changes_routes_under_a_connection_that_stays() {
    let origin = Origin::start(|_| Answer::ok("passed").fresh_for(60));
    let text = format!("[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n", origin.url());
    let edge = Edge::with(&text);
    let mut client = edge.connect();
    assert_eq!(client.get("edge.test", "/", &[]).text(), "passed");
    let ruled = format!("{text}[[sites.all.rules]]\npath = \"/new\"\nrespond.content = \"new\"\n");
    let changes = edge.reload(&ruled).expect("a good file");
    assert!(changes.iter().any(|change| change.contains("rules")), "{changes:?}");
    assert_eq!(client.get("edge.test", "/new", &[]).text(), "new");
    assert!(client.get("edge.test", "/", &[]).is_hit(), "what was stored is still there");
    let mistakes = edge.reload("[sites.all]\n").expect_err("a bad file");
    assert!(!mistakes.is_empty());
    assert_eq!(client.get("edge.test", "/new", &[]).text(), "new");
    // The same by the admin API.
    std::fs::write(edge.path("edge.toml"), "nonsense").expect("a file");
    assert_eq!(edge.admin("POST", "/reload", "").status, 422);
}

#[test]
fn certificates_are_reloaded_with_the_configuration() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let make = || {
        let made =
            rcgen::generate_simple_self_signed(["edge.test".to_owned()]).expect("a certificate");
        std::fs::write(path("cert.pem"), made.cert.pem()).expect("a file");
        std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).expect("a file");
    };
    make();
    let text = format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n\
         [[tls.certificates]]\ncertificate = {:?}\nkey = {:?}\n",
        origin.url(),
        path("cert.pem"),
        path("key.pem")
    );
    let edge = Edge::with_tls(&text);
    let port = edge.https.expect("TLS").port();
    // Trusting only this very certificate.
    let is_trusted = |authority: &str| {
        let resolve = format!("edge.test:{port}:127.0.0.1");
        let url = format!("https://edge.test:{port}/");
        let arguments = ["-s", "--cacert", authority, "--resolve", &resolve, &url];
        let output = Command::new("curl").args(arguments).output().expect("curl");
        output.status.success() && output.stdout == b"hello"
    };
    std::fs::copy(path("cert.pem"), path("first.pem")).expect("a copy");
    assert!(is_trusted(&path("first.pem")));
    make();
    edge.reload(&text).expect("a good file");
    assert!(is_trusted(&path("cert.pem")));
    assert!(!is_trusted(&path("first.pem")));
}

#[test]
fn purge_and_explain_work_from_the_command_line() {
    let origin = Origin::start(|_| Answer::ok("hello").fresh_for(60));
    let edge = Edge::before(&origin.url());
    let admin = edge.admin.to_string();
    edge.get("/a");
    assert!(edge.get("/a").is_hit());
    let purged = skerry(&["purge", "--admin", &admin, "http://edge.test/a"]);
    assert!(purged.status.success(), "{purged:?}");
    assert!(!edge.get("/a").is_hit());
    let explained = skerry(&["explain", "--admin", &admin, "http://edge.test/a"]);
    assert!(explained.status.success(), "{explained:?}");
    assert!(String::from_utf8_lossy(&explained.stdout).contains("site \"all\""), "{explained:?}");
    check_failed(&["purge", "--admin", &admin, "edge.test/a"], 1, &[]);
    check_failed(&["explain", "--admin", &admin, "edge.test/a"], 1, &[]);
    check_failed(&["explain", "--admin", "127.0.0.1:9", "http://edge.test/a"], 3, &[]);
}

/// Looked at in a real browser: it fills itself from the API, and the console stays silent.
#[test]
fn the_dashboard_shows_the_node_and_why_there_was_no_hit() {
    let edge = Edge::with(&fixed("hello"));
    edge.admin("POST", "/purge", r#"{"tag": "<b>bold</b>"}"#);
    let page = dashboard(&edge, "");
    assert!(page.contains(r#"class="badge good" role="status">ready<"#), "{page}");
    assert!(page.contains("Requests of the last hour that were not hits"), "{page}");
    let page = dashboard(&edge, "#purges");
    assert!(page.contains("&lt;b&gt;bold&lt;/b&gt;"), "{page}");
}

/// The page after the browser has run its script for five seconds.
fn dashboard(edge: &Edge, view: &str) -> String {
    let profile = tempfile::tempdir().expect("a temporary folder");
    let out = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"])
        .args(["--disable-background-networking", "--disable-component-update"])
        .args(["--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=5000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("http://{}/{view}", edge.admin))
        .output()
        .expect("chromium is on the PATH");
    let log = String::from_utf8_lossy(&out.stderr);
    let console: Vec<_> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(console.is_empty(), "{console:?}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn top_shows_what_a_node_does_and_why_not_from_cache() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(60));
    let edge = Edge::before(&origin.url());
    let at = edge.admin.to_string();
    let look = Command::new(env!("CARGO_BIN_EXE_skerry"))
        .args(["top", "--admin", &at])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    // Send requests until it has polled twice; it shows the requests between two polls.
    let asking = AtomicBool::new(true);
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while asking.load(Ordering::Relaxed) {
                number += 1;
                edge.get("/hit");
                edge.get(&format!("/{number}"));
            }
        });
        let output = look.wait_with_output().expect("it ends by itself");
        asking.store(false, Ordering::Relaxed);
        output
    });
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    assert!(!told.contains('\x1b'), "no colours in a pipe: {told}");
    for words in ["ready", "requests", "hits", "absent", "origins", "memory", "purges"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    check_failed(&["top", "--admin", "127.0.0.1:1"], 3, &["127.0.0.1:1", "is the node running"]);
}

#[test]
fn geo_lookups_need_no_node() {
    let output = skerry(&["geo", "80.128.0.1", "127.0.0.1"]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("country       DE Germany"), "{told}");
    check_refused(&["geo", "nowhere"], &["nowhere", "expected an IP address"]);
    check_refused(&["geo", "::1", "--config", "/nowhere"], &["/nowhere", "No such file"]);
}

#[test]
fn a_node_that_waits_for_redis_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let closed = free_address();
    let text = format!("[bus]\nredis = \"redis://{closed}\"\nstart_wait = \"1h\"\n{}", fixed("a"));
    std::fs::write(folder.path().join("edge.toml"), text).expect("written");
    let mut child = Command::new(env!("CARGO_BIN_EXE_skerry"))
        .args(["run", "--config", "edge.toml", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let told = lines.by_ref().map_while(Result::ok).find(|line| line.contains("bus.start_wait"));
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let told = told.expect("a line");
    assert!(told.contains("serves once") && told.contains("3600s"), "{told}");
    assert!(told.contains(&closed.to_string()), "{told}");
}

#[test]
fn a_demo_starts_where_its_ports_are_taken() {
    let demo = || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut child = Command::new(env!("CARGO_BIN_EXE_skerry"))
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let port = lines.map_while(Result::ok).find_map(|line| {
            line.split_once("curl -i  http://localhost:")?.1.split('/').next()?.parse::<u16>().ok()
        });
        (folder, child, port)
    };
    // Another process may use the default ports: at least one of the two nodes uses others.
    let mut demos = [demo(), demo()];
    for (_, _, port) in &demos {
        let at = ([127, 0, 0, 1], port.expect("a line to try")).into();
        let first = Client::connect(at).get("localhost", "/data.json", &[]);
        assert_eq!(first.status, 200, "{first:?}");
    }
    assert_ne!(demos[0].2, demos[1].2);
    for (_, child, _) in &mut demos {
        child.kill().and_then(|()| child.wait()).expect("a child");
    }
}
