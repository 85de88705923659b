//! The system's figures about this process, under the names that Prometheus' clients share. Read
//! from `/proc` at each scrape; what is not there, as on other systems, is left out.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Asks anew for each scrape.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name, help, value: Option<f64>| match value {
            Some(value) => {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
            }
            None => Ok(()),
        };
        let times = Times::read();
        gauge("process_resident_memory_bytes", "Memory of the process", status_bytes("VmRSS:"))?;
        gauge("process_open_fds", "Open descriptors", open_descriptors())?;
        gauge("process_max_fds", "Descriptors that may be open", descriptors_max())?;
        gauge(
            "process_start_time_seconds",
            "When the process began, since 1970",
            times.as_ref().and_then(|times| Some(boot_time()? + times.started)),
        )?;
        let Some(times) = times else { return Ok(()) };
        let cpu = ConstCounter::new(times.cpu);
        let help = "Processor time of all threads";
        cpu.encode(encoder.encode_descriptor(
            "process_cpu_seconds",
            help,
            None,
            cpu.metric_type(),
        )?)
    }
}

/// Processor time of all threads of this process, in seconds. `None`: the system does not tell.
pub(crate) fn cpu_seconds() -> Option<f64> {
    Times::read().map(|times| times.cpu)
}

/// In seconds.
struct Times {
    cpu: f64,
    /// Since the machine began.
    started: f64,
}

impl Times {
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the name, in brackets, and may have anything in it.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
        Some(Self { cpu: (ticks(11)? + ticks(12)?) / HERTZ, started: ticks(19)? / HERTZ })
    }
}

fn boot_time() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn status_bytes(name: &str) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1024.0)
}

fn open_descriptors() -> Option<f64> {
    // The folder's size is their number since Linux 6.2; before, it is 0 and they are counted.
    match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some(fs::read_dir("/proc/self/fd").ok()?.count() as f64),
        open => Some(open as f64),
    }
}

fn descriptors_max() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Ticks a second in `/proc`, on every architecture that Linux still has.
const HERTZ: f64 = 100.0;
