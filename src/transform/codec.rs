//! The interface of encoders and decoders, and how they fail.

use std::io;

use async_compression::core::util::{PartialBuffer, WriteBuffer};

use super::{Coding, DecodeLimit};
use crate::labels::CoderFailure;

/// An encoder or a decoder.
pub(super) trait Codec: Unpin {
    /// Codes input into output, until the input is empty or the output is full.
    fn run(
        &mut self,
        input: &mut PartialBuffer<&[u8]>,
        output: &mut WriteBuffer<'_>,
    ) -> Result<(), CodecError>;

    /// Writes all output that needs no more input. `true` when that is done.
    fn pause(&mut self, output: &mut WriteBuffer<'_>) -> Result<bool, CodecError>;

    /// Writes the rest of the output after the last input. `true` when that is done.
    fn end(&mut self, output: &mut WriteBuffer<'_>) -> Result<bool, CodecError>;

    /// How much a task codes before it yields, and how.
    fn turn(&self) -> Turn;

    /// The coding that a decoder undoes. `None` for an encoder.
    fn decoded_coding(&self) -> Option<Coding> {
        None
    }
}

/// Why a codec failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CodecError {
    #[error("the coded data are malformed or incomplete")]
    Malformed(#[from] io::Error),
    #[error("the decoded body is larger than {} bytes or {} times the coded one", .0.bytes_max, .0.ratio_max)]
    Limit(DecodeLimit),
}

impl CodecError {
    /// The label in metrics.
    pub(super) fn label(&self) -> CoderFailure {
        match self {
            Self::Malformed(_) => CoderFailure::Malformed,
            Self::Limit(_) => CoderFailure::DecodeLimit,
        }
    }
}

/// The work of one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// Bytes read and written.
    pub bytes: usize,
    /// Whether the codec only collects what it reads, and works when it is flushed or has a whole block: it
    /// must be flushed at the end of the turn, or a later turn does the work of many.
    pub collects: bool,
}
