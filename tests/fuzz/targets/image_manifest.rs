//! Any bytes are a manifest and a config, or errors.
#![no_main]

use ampoule_engine::image::{config, manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = manifest::parse(bytes);
    let _ = config::check(bytes);
});
