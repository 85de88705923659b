//! The integration tests, one binary. A file is a feature; `harness` has what they share.

mod conformance;
mod docs;
mod tidy;
