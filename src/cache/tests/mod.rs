//! Tests of the room as a whole: an oracle and whole exchanges.

mod costs;
mod oracle;
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod scenarios;
