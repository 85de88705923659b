//! Why a command failed, with its exit code.

use std::fmt;

/// Why a command failed: one line, and a code for scripts. docs/reference/cli.md lists the codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// The node answered that it cannot or must not do this. Also `config diff` with differences.
    Refused(String),
    /// The command line or the configuration has a mistake, or the node cannot start.
    Invalid(String),
    /// The node could not be asked: no connection, no TLS, or no answer.
    Unreachable(String),
    /// The command is carried out on this node, and not yet on all others that were waited for.
    Incomplete(String),
}

impl CommandError {
    /// The exit code of the process.
    pub fn code(&self) -> u8 {
        match self {
            Self::Refused(_) => 1,
            Self::Invalid(_) => 2,
            Self::Unreachable(_) => 3,
            Self::Incomplete(_) => 4,
        }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(message)
            | Self::Invalid(message)
            | Self::Unreachable(message)
            | Self::Incomplete(message) => f.write_str(message),
        }
    }
}

impl From<String> for CommandError {
    fn from(message: String) -> Self {
        Self::Invalid(message)
    }
}
