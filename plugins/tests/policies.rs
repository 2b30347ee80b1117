//! The promises about policies, kept by the real engine and the real components, which `make policies` builds.

#[path = "policies/builds.rs"]
mod builds;
#[path = "policies/cases.rs"]
mod cases;
#[path = "policies/commands.rs"]
mod commands;
#[path = "policies/loading.rs"]
mod loading;
#[path = "policies/misbehaviour.rs"]
mod misbehaviour;
#[path = "policies/service.rs"]
mod service;
