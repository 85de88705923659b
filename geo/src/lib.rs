//! Where an address is.
