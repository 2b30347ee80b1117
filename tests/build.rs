//! Builds the program that looks around inside a sandbox: static C, so that it needs nothing of an image.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=inside/inside.c");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let program = Path::new(&out).join("inside");
    let status = Command::new("gcc")
        .args(["-static", "-O2", "-s", "-pthread", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .arg("inside/inside.c")
        .status()
        .expect("gcc is installed by `make setup`");
    assert!(status.success(), "gcc could not build inside/inside.c");
    assert!(fs::metadata(&program).is_ok_and(|program| program.len() > 0), "gcc wrote no program");
}
