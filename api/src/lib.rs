//! The service, and the command line that is a client of it. `jobs` is the heart; `router` has every route;
//! `serve` is how it starts and stops. The engine and the policies meet here and nowhere else.

pub mod config;
pub mod jobs;
pub mod limits;
