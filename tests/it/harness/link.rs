//! TCP proxies to a local port: one delays each byte, another one can be cut.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// The proxy. Dropping it closes its connections.
pub struct LongLink {
    /// The port to connect to.
    pub port: u16,
    _runtime: Runtime,
}

impl LongLink {
    /// Starts a proxy to `port` on this machine that delays each direction by `delay`.
    pub fn to(port: u16, delay: Duration) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let own_port = listener.local_addr().unwrap().port();
        runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(async move {
                    // The target does not listen: close the client's connection.
                    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    let ((near_in, near_out), (far_in, far_out)) =
                        (near.into_split(), far.into_split());
                    tokio::spawn(forward(near_in, far_out, delay));
                    forward(far_in, near_out, delay).await;
                });
            }
        });
        Self { port: own_port, _runtime: runtime }
    }
}

/// A proxy that can be cut: its connections break, and it accepts no others until it is mended.
pub struct CutLink {
    /// The port to connect to.
    pub port: u16,
    is_cut: watch::Sender<bool>,
    _runtime: Runtime,
}

impl CutLink {
    /// Starts a proxy to `port` on this machine.
    pub fn to(port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let own_port = listener.local_addr().unwrap().port();
        let (is_cut, cut) = watch::channel(false);
        runtime.spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cut.clone();
                if *cut.borrow_and_update() {
                    continue;
                }
                tokio::spawn(async move {
                    // The target does not listen: close the client's connection.
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.wait_for(|is_cut| *is_cut) => {}
                    }
                });
            }
        });
        Self { port: own_port, is_cut, _runtime: runtime }
    }

    pub fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    pub fn mend(&self) {
        self.is_cut.send_replace(false);
    }
}

async fn forward(
    mut from: impl AsyncReadExt + Unpin + Send + 'static,
    mut to: impl AsyncWriteExt + Unpin,
    delay: Duration,
) {
    let (sender, mut in_transit) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + delay;
            if sender.send((due, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    });
    while let Some((due, bytes)) = in_transit.recv().await {
        tokio::time::sleep_until(due).await;
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
