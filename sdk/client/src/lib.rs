//! The types that travel over Ampoule's HTTP API, and a client that speaks it.

pub mod types;
