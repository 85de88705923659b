//! Numbers that cannot be guessed and that no two nodes share.

/// Random bits from the operating system's generator.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random generator works");
    u64::from_le_bytes(bytes)
}
