//! Units of `Type=notify`: what the process tells systemd, and when.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

#[test]
fn the_service_is_ready_when_it_serves_and_stopping_when_it_drains() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("notify");
    let manager = UnixDatagram::bind(&socket).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let http: SocketAddr = free.local_addr().expect("an address");
    drop(free);
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
    // It hears signals by then: a reload does not end it.
    kill_process(pid, Signal::HUP).expect("it runs");
    kill_process(pid, Signal::TERM).expect("it runs");
    assert_eq!(message(), "STOPPING=1");
    assert!(child.wait().expect("a child").success());
}
