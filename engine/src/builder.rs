//! Builds as values: a Dockerfile and its context become a plan, and whatever is wrong with them is told, before
//! anything runs. Everything here but the walk through the context is pure.

pub mod check;
pub mod context;
pub mod dockerfile;
pub mod execute;
pub mod expand;
pub mod fetch;
pub(crate) mod gather;
mod glob;
pub mod ignore;
pub mod plan;
pub mod source;
mod suggest;
