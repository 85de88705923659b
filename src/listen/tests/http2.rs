//! HTTP/2 as a client speaks it: floods, and the answers to h2load.

use super::*;

pub(super) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// GET / by the static table (RFC 7541 A), authority `a`.
pub(super) fn h2_get(stream: u32) -> Vec<u8> {
    let block = [0x82, 0x86, 0x84, 0x41, 0x01, b'a'];
    let mut frame = vec![0, 0, block.len() as u8, 1, 5];
    frame.extend(stream.to_be_bytes());
    frame.extend(block);
    frame
}

/// The same for /slow, which waits.
fn h2_get_slow(stream: u32) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x44, 5];
    block.extend(b"/slow");
    block.extend([0x41, 0x01, b'a']);
    let mut frame = vec![0, 0, block.len() as u8, 1, 5];
    frame.extend(stream.to_be_bytes());
    frame.extend(block);
    frame
}

fn h2_reset(stream: u32) -> Vec<u8> {
    let mut frame = vec![0, 0, 4, 3, 0];
    frame.extend(stream.to_be_bytes());
    frame.extend([0, 0, 0, 8]);
    frame
}

/// A GOAWAY with this error code stands in the bytes.
fn has_goaway(bytes: &[u8], code: u8) -> bool {
    bytes.windows(17).any(|frame| frame[3..9] == [7, 0, 0, 0, 0, 0] && frame[16] == code)
}

#[test]
fn rapid_reset_is_cut_off_whether_or_not_the_requests_were_begun() {
    let few = with(|settings| settings.limits.h2.resets_per_10s_max = 50);
    running(few, async |edge| {
        for (wait, ended) in [(false, "flood"), (true, "resets")] {
            let mut stream = edge.raw().await;
            stream.write_all(H2_PREFACE).await.expect("written");
            let mut requests = 0;
            let attack = async {
                for stream_id in (1..20_000).step_by(2) {
                    requests += 1;
                    let request = if wait { h2_get_slow(stream_id) } else { h2_get(stream_id) };
                    if stream.write_all(&request).await.is_err() {
                        return;
                    }
                    if wait {
                        // A request that the kernel has taken does not arrive if the connection is cut first.
                        tokio::select! {
                            () = edge.seen.arrived.notified() => {}
                            () = edge.reaches(Metric::Http2Ended, ended, 1) => return,
                        }
                    }
                    if stream.write_all(&h2_reset(stream_id)).await.is_err() {
                        return;
                    }
                    if edge.total(Metric::Http2Ended, ended) == 1 {
                        return;
                    }
                }
            };
            timeout(PATIENCE, attack).await.expect("cut off");
            edge.reaches(Metric::Http2Ended, ended, 1).await;
            assert!(requests < 5_000, "{requests} requests, {ended}");
            assert_eq!(edge.total(Metric::Http2Resets, "") > 50, wait);
            let mut said = Vec::new();
            _ = stream.read_to_end(&mut said).await;
            assert!(said.is_empty() || has_goaway(&said, 11), "no GOAWAY with ENHANCE_YOUR_CALM");
        }
    });
}

#[test]
fn too_many_http2_requests_a_second_are_cut_off_when_that_is_asked_for() {
    let few = with(|settings| settings.limits.h2.requests_per_second_max = Some(10));
    running(few, async |edge| {
        let mut stream = edge.raw().await;
        stream.write_all(H2_PREFACE).await.expect("written");
        for stream_id in (1..60).step_by(2) {
            _ = stream.write_all(&h2_get(stream_id)).await;
        }
        edge.reaches(Metric::Http2Ended, "requests", 1).await;
    });
}

#[test]
fn h2load_gets_every_answer_on_every_protocol() {
    running(with(|_| {}), async |edge| {
        let (plain, tls) = (edge.url("/"), edge.url_tls("/stream"));
        for arguments in [
            vec!["-n2000", "-c8", "-m16", &plain],
            vec!["-n500", "-c4", "-m8", &tls],
            vec!["-n1000", "-c8", "--h1", &plain],
            vec!["-n200", "-c4", "--h1", &tls],
        ] {
            let output = Command::new("h2load").args(&arguments).output().await.expect("h2load");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains(" 0 failed, 0 errored"), "{arguments:?}: {said}");
        }
    });
}
