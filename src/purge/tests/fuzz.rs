//! Fuzz targets: the bytes of the purge log, and the purge requirement of another node.

use super::frame::{
    FILE_HEADER, LogEnd, LogEntry, file_header, read_entries, read_file_header, read_frames,
    write_frame,
};
use super::requirement::Requirement;

/// A requirement that can be read is the same after it was written.
pub(crate) fn purge_requirement(data: &[u8]) {
    if let Some(requirement) = Requirement::parse(data) {
        assert_eq!(Requirement::parse(requirement.to_field().as_bytes()), Some(requirement));
    }
}

/// Entries that can be read are the same after they were written as a log. If the log is cut short or one of its
/// bytes is changed, the frames before the damage are read and the damage is reported. The first two bytes choose
/// the place, the third the change; zero cuts.
pub(crate) fn purge_log(data: &[u8]) {
    read_file_header(data);
    read_frames(data, drop);
    let Some((&[low, high, flip], payload)) = data.split_first_chunk() else { return };
    let Some(entries) = read_entries(payload) else { return };
    // Each entry in a frame of its own.
    let mut file = file_header(7).to_vec();
    let mut ends = vec![file.len()];
    for entry in &entries {
        let place = file.len() as u64;
        write_frame(&mut file, place, std::slice::from_ref(entry));
        ends.push(file.len());
    }
    assert_eq!(read(&file), (entries.clone(), file.len() as u64, LogEnd::Whole));
    assert_eq!(read_file_header(&file), Some(7));
    let at = FILE_HEADER + usize::from(u16::from_le_bytes([low, high])) % file.len();
    if at >= file.len() {
        return;
    }
    let whole = ends.iter().filter(|end| **end <= at).count() - 1;
    let (found, place, end) = match flip {
        0 => read(&file[..at]),
        flip => {
            file[at] ^= flip;
            read(&file)
        }
    };
    assert_eq!(found, entries[..whole], "damage at {at}");
    assert_eq!(place, ends[whole] as u64);
    assert_eq!(end == LogEnd::Whole, flip == 0 && at == ends[whole]);
}

fn read(file: &[u8]) -> (Vec<LogEntry>, u64, LogEnd) {
    let mut entries = Vec::new();
    let (place, end) = read_frames(file, |entry| entries.push(entry));
    (entries, place, end)
}
