//! The TLS room at the handshake.
