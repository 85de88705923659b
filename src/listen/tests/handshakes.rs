//! The limit of TLS handshakes.

use super::*;

#[test]
fn connections_that_send_nothing_keep_no_other_client_out() {
    let settings = with(|settings| {
        settings.limits.handshakes_max = 3;
        settings.limits.handshake_timeout = Duration::from_secs(3600);
    });
    running(settings, async |edge| {
        let mut silent = Vec::new();
        for count in 1..=3 {
            silent.push(TcpStream::connect(edge.https).await.expect("connected"));
            edge.reaches(Metric::Connections, "", count).await;
        }
        silent[0].write_all(&[0x16, 3, 1]).await.expect("written");
        assert_eq!(edge.curl(&[&edge.url_tls("/")]).await, "hello\n");
        assert_eq!(rest(&mut silent[0]).await, "", "the one that has waited longest is closed");
        edge.reaches(Metric::ConnectionsTimedOut, "handshake", 1).await;
        assert_eq!(edge.total(Metric::HandshakesReplaced, ""), 1);
        edge.reaches(Metric::Connections, "", 2).await;
        assert_eq!(edge.curl(&[&edge.url_tls("/")]).await, "hello\n");
        assert_eq!(edge.total(Metric::HandshakesReplaced, ""), 1, "a place was free");
    });
}
