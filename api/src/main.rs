//! The program: the launcher when it was executed as one, else what the command line says.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: the launcher must be one thread that has read nothing.
    ampoule_engine::sandbox::launcher::enter();
    ampoule_api::cli::main()
}
