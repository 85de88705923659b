//! A fill copies one upstream response into the store while any number of clients read it.
//!
//! The first request for a key leads a fill, later ones follow it ([`collapse`]). The leader's task
//! moves the body into a window of recent bytes and into the store ([`pump`]), and wakes the
//! readers. The fastest reader sets the pace: the fill may be one window ahead of it, then it stops reading
//! from upstream. A slow reader
//! that falls behind the window reads complete slices from the store ([`reader`]). Range requests
//! fetch only the slices that are missing ([`parts`]).

pub(crate) mod collapse; // which requests share an upstream request
mod filling; // a response whose body is being fetched
pub(crate) mod parts; // serves a range of a partly stored object
mod pump; // moves an upstream body into its fill
mod reader; // one client's reading of a fill
mod readers; // the cursors of all readers
mod settings;
mod slice_buffer; // cuts a part into slices
pub(crate) mod slices; // computes which ranges must be fetched (pure functions)
mod state; // what leader, pump, followers and readers share
mod window; // the bytes of a fill that are in memory

pub(crate) use self::filling::Filling;
pub(crate) use self::settings::Settings;
pub(crate) use crate::labels::FillEnd;

#[cfg(test)]
mod tests;
