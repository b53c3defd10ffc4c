//! Integration tests: real processes, real sockets, loopback only.
