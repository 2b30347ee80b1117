//! Turns a core module that wit-bindgen made, built for wasm32-unknown-unknown, into a component:
//! what `wasm-tools component new` does, from the same crate, so that nothing has to be installed.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use wit_component::ComponentEncoder;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [module, component] = &arguments[..] else {
        bail!("usage: ampoule-componentize MODULE.wasm COMPONENT.wasm");
    };
    let (module, component) = (PathBuf::from(module), PathBuf::from(component));
    let core = fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
    let encoded = ComponentEncoder::default()
        .validate(true)
        .module(&core)
        .and_then(|mut encoder| encoder.encode())
        .with_context(|| format!("cannot make a component of {}", module.display()))?;
    // Written beside and renamed, so that an interrupted build leaves no half policy that looks up to date.
    let partial = component.with_extension("wasm.partial");
    fs::write(&partial, encoded).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, &component).with_context(|| format!("cannot write {}", component.display()))
}
