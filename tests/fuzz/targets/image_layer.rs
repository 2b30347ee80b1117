//! Any archive is unpacked beneath its folder or refused: nothing beside the folder is made or changed.
#![no_main]

use std::fs::{self, File};
use std::os::fd::AsFd;

use ampoule_engine::image::compression::Bounds;
use ampoule_engine::image::layer::{UnpackLimits, unpack};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut archive = bytes.to_vec();
    for block in archive.chunks_exact_mut(512) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::create_dir(folder.path().join("root")).unwrap();
    fs::write(folder.path().join("outside"), "untouched").unwrap();
    let root = File::open(folder.path().join("root")).unwrap();
    let bounds = Bounds { bytes_max: 1 << 20, ..Bounds::default() };
    let _ = unpack(&archive[..], root.as_fd(), UnpackLimits { bounds, entries_max: 1000 });
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    assert_eq!(fs::read_to_string(folder.path().join("outside")).unwrap(), "untouched");
});
