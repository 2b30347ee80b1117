//! The service, and the command line that is a client of it. `jobs` is the heart; `router` has every route;
//! `serve` is how it starts and stops. The engine and the policies meet here and nowhere else.

pub mod app;
pub mod cli;
pub mod config;
pub mod door;
pub mod images;
pub mod jobs;
pub mod limits;
pub mod listen;
pub mod metrics;
pub mod openapi;
pub mod policies;
pub mod problem;
pub mod registries;
pub mod request;
pub mod review;
pub mod router;
pub mod serve;
pub mod state;
pub mod system;
pub mod telemetry;
pub mod tokens;
pub mod uploads;
