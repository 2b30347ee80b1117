//! Runs sandboxes and keeps images: everything that touches the kernel. Knows nothing of HTTP, jobs or policies.

pub mod builder;
pub mod image;
pub mod isolation;
pub mod probe;
pub mod runtime;
pub mod sandbox;
pub mod spec;
mod sys;
