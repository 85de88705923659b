//! Units of `Type=notify`: what the process tells systemd, and when.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::free_address;

/// A rotation of logs sends these signals at any time, which end a process that does not handle them.
#[test]
fn a_node_that_starts_outlives_the_signals_of_a_rotation() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // A Redis that never answers: the node waits for it before it serves.
    let redis = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let config = folder.path().join("edge.toml");
    let text = format!(
        "[store]\nmemory = \"64MiB\"\ndisk = \"none\"\n[log]\naccess = \"off\"\n\
         [bus]\nredis = \"redis://{}\"\nstart_wait = \"2s\"\n\
         [sites.all]\nhosts = \"*\"\nrespond.content = \"x\"\n",
        redis.local_addr().expect("an address")
    );
    std::fs::write(&config, text).expect("a file");
    let mut child = Command::new(env!("CARGO_BIN_EXE_skerry"))
        .args(["run", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"])
        .arg("--config")
        .arg(&config)
        .arg("--data-dir")
        .arg(folder.path().join("data"))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let _connection = redis.accept().expect("the node asks Redis");
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::USR1).expect("it runs");
    kill_process(pid, Signal::HUP).expect("it runs");
    let lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let mut lines = lines.map_while(Result::ok);
    assert!(lines.any(|line| line.contains("admin http://")), "the node serves");
    // Else the process ends because nobody reads its log.
    let rest = std::thread::spawn(move || lines.for_each(drop));
    kill_process(pid, Signal::TERM).expect("it runs");
    assert!(child.wait().expect("a child").success());
    rest.join().expect("the end of the log");
}

#[test]
fn the_service_is_ready_when_it_serves_and_stopping_when_it_drains() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("notify");
    let manager = UnixDatagram::bind(&socket).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let http = free_address();
    let config = folder.path().join("edge.toml");
    let text = format!(
        "[store]\nmemory = \"64MiB\"\ndisk = \"none\"\n[log]\naccess = \"off\"\n\
         [[listeners]]\naddress = \"{http}\"\n[sites.all]\nhosts = \"*\"\nrespond.content = \"x\"\n"
    );
    std::fs::write(&config, text).expect("a file");
    let mut child = Command::new(env!("CARGO_BIN_EXE_skerry"))
        .args(["run", "--admin", "127.0.0.1:0", "--workers", "1", "--config"])
        .arg(&config)
        .arg("--data-dir")
        .arg(folder.path().join("data"))
        .env("NOTIFY_SOCKET", &socket)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let message = || {
        let mut bytes = [0; 64];
        let length = manager.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    assert_eq!(message(), "READY=1");
    assert!(TcpStream::connect(http).is_ok(), "the listeners are bound");
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a pid");
    // The node handles signals by then: a reload does not end it.
    kill_process(pid, Signal::HUP).expect("it runs");
    kill_process(pid, Signal::TERM).expect("it runs");
    assert_eq!(message(), "STOPPING=1");
    assert!(child.wait().expect("a child").success());
}
