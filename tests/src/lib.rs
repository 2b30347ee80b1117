//! What the tests stand on: a real service in a throw-away folder, images made here, and a look at the host
//! before and after. Nothing of this is linked with the product.

pub mod archive;
pub mod builds;
pub mod distribution;
pub mod docker;
pub mod events;
pub mod host;
pub mod http;
pub mod registry;
pub mod service;

use std::env;
use std::path::PathBuf;
use std::time::Duration;

pub use events::{Sent, events};
pub use service::{Options, Service};

/// How many times slower than a usual machine this one is: an emulated one says so in `AMPOULE_TEST_SLOWNESS`.
pub fn slowness() -> u32 {
    env::var("AMPOULE_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// A waiting time that a test may reckon with on any machine.
pub fn patience(on_a_usual_machine: Duration) -> Duration {
    on_a_usual_machine * slowness()
}

/// The folder for what is made once and used by many tests, below the build folder.
///
/// # Panics
/// When the test program does not lie in cargo's build folder and `AMPOULE_TEST_DATA` is not set.
pub fn test_data() -> PathBuf {
    if let Some(folder) = env::var_os("AMPOULE_TEST_DATA") {
        return PathBuf::from(folder);
    }
    let folder = build_folder().parent().expect("the build folder has a parent").join("test-data");
    std::fs::create_dir_all(&folder).expect("the build folder can be written");
    folder
}

/// The folder of this build (`target/debug`): the test program lies in its `deps`.
fn build_folder() -> PathBuf {
    let program = env::current_exe().expect("/proc is mounted");
    program
        .ancestors()
        .find(|folder| folder.join("deps").is_dir())
        .unwrap_or_else(|| panic!("{} does not lie in cargo's build folder", program.display()))
        .to_path_buf()
}

/// The built `ampoule` program.
///
/// # Panics
/// When it is not built.
pub fn ampoule_program() -> PathBuf {
    let program = env::var_os("AMPOULE_TEST_PROGRAM").map_or_else(|| build_folder().join("ampoule"), PathBuf::from);
    assert!(program.is_file(), "{} is missing\nhint: cargo build -p ampoule-api", program.display());
    program
}
