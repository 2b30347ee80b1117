//! What the filter promises: the data is complete, the program means what the data says, and the kernel agrees.

mod data;
mod kernel;
mod program;
