//! The types that travel over Ampoule's HTTP API, and a client that speaks it.

pub mod client;
pub mod types;

pub use client::{Client, ClientError, Endpoint};
