//! Any bytes as a compressed stream: what comes out stays within its bounds.
#![no_main]

use std::io::Read;

use ampoule_engine::image::compression::{Bounds, Decompressed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let bounds = Bounds { bytes_max: 1 << 20, ..Bounds::default() };
    if let Ok(mut stream) = Decompressed::new(bytes, bounds) {
        let mut out = Vec::new();
        let _ = stream.read_to_end(&mut out);
        assert!(out.len() <= 1 << 20);
    }
});
