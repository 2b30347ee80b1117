//! The program: what the command line says.

use std::process::ExitCode;

fn main() -> ExitCode {
    ampoule_api::cli::main()
}
