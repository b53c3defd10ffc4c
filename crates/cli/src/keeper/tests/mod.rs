//! Real keepers with real jobs. A keeper owns its whole process (signals,
//! orphans), so each test runs one as a process of its own: this test program,
//! started again in the role of a keeper. Its gate is this program once more,
//! which hands its sockets to the test and waits: the test speaks as the gate.

mod ends;
mod gates;
mod life;
mod roles;
mod starts;
mod trees;
mod world;
