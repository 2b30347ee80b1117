//! The service through its routes, with a real database and a runtime that plays given endings.

mod builds;
mod events;
mod jobs;
mod policies;
mod problems;
mod recovery;
mod stage;
mod surface;
mod tokens;
